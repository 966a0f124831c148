//go:build unix

package archive

import (
	"bytes"
	"context"
	"io/fs"
	"os"
	"path"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// trees draws what a project folder may have in it.
func trees() *rapid.Generator[map[string]node] {
	element := rapid.OneOf(
		rapid.SampledFrom([]string{"a", "b", "ab", "a-b", "a b", "größe", `x\y`, "\xff\xfe", "C:", "...", "-", "*", "a\nb"}),
		rapid.StringMatching(`[a-c]{1,120}`),
	)
	return rapid.Custom(func(t *rapid.T) map[string]node {
		nodes := map[string]node{}
		folders := []string{"."}
		for range rapid.IntRange(0, 25).Draw(t, "entries") {
			name := path.Join(rapid.SampledFrom(folders).Draw(t, "folder"), element.Draw(t, "name"))
			if _, taken := nodes[name]; taken {
				continue
			}
			n := node{modified: rapid.Int64Range(0, 1<<32-1).Draw(t, "modified")}
			switch rapid.IntRange(0, 9).Draw(t, "kind") {
			case 0, 1, 2:
				n.mode = fs.ModeDir | fs.FileMode(rapid.Uint32Range(0, 0o777).Draw(t, "mode")) | 0o700
				folders = append(folders, name)
			case 3:
				n = node{mode: fs.ModeSymlink, content: rapid.StringMatching(`/?(\.\./){0,2}[a-z]{1,90}`).Draw(t, "target")}
			default:
				n.mode = fs.FileMode(rapid.Uint32Range(0, 0o777).Draw(t, "mode")) | 0o400
				n.content = contents().Draw(t, "content")
			}
			nodes[name] = n
		}
		return nodes
	})
}

// contents draws what a file may have in it: small and large, what compresses and what does not.
func contents() *rapid.Generator[string] {
	return rapid.Custom(func(t *rapid.T) string {
		size := rapid.OneOf(
			rapid.IntRange(0, 100), rapid.IntRange(0, 40<<10),
			rapid.SampledFrom([]int{blockSize - 1, blockSize, blockSize + 1, 2 * blockSize, 2*blockSize + 1, frameSize}),
		).Draw(t, "size")
		random := noise(size)
		if rapid.Bool().Draw(t, "random") {
			return random
		}
		b := bytes.Repeat([]byte("some text, and again "), size/21+1)[:size]
		for i := 0; i < size; i += 97 {
			b[i] = random[i]
		}
		return string(b)
	})
}

// Whatever is packed in whatever format is there again when it is unpacked, over whatever was there.
func TestAnyTree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want, before := trees().Draw(t, "tree"), trees().Draw(t, "before")
		format := rapid.SampledFrom([]Format{Zip, ZipZstd, TarZstd}).Draw(t, "format")
		level := rapid.SampledFrom([]Level{Fastest, Fast, Default}).Draw(t, "level")
		from, to := temp(t), temp(t)
		makeTree(t, from, want)
		b := pack(t, format, level, from, all(t, from))
		makeTree(t, to, before)
		root, err := os.OpenRoot(to)
		require.NoError(t, err)
		defer func() { _ = root.Close() }()
		_, err = Unpack(context.Background(), bytes.NewReader(b), int64(len(b)), root, Limits{}, nil)
		require.NoError(t, err)
		got := readTree(t, to)
		for name := range got {
			if _, ok := want[name]; !ok {
				delete(got, name) // it was there before
			}
		}
		require.Equal(t, want, got)
	})
}

func temp(t *rapid.T) string {
	dir, err := os.MkdirTemp("", "archive-*")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}
