//go:build unix

package archive

import (
	"archive/tar"
	"bytes"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

// findDirectory returns where entry i of a zip's directory begins.
func findDirectory(t *testing.T, b []byte, i int) int {
	t.Helper()
	at := 0
	for ; i >= 0; i-- {
		next := bytes.Index(b[at:], []byte("PK\x01\x02"))
		require.GreaterOrEqual(t, next, 0)
		at += next + 4
	}
	return at - 4
}

func TestZipsThatLie(t *testing.T) {
	good := func() []byte {
		return zipOf(t, made{name: "a", content: noise(1000)}, made{name: "b", content: noise(1000)})
	}
	put32 := func(entry, offset int, v uint32) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint32(b[findDirectory(t, b, entry)+offset:], v) }
	}
	put16 := func(entry, offset int, v uint16) func([]byte) {
		return func(b []byte) { binary.LittleEndian.PutUint16(b[findDirectory(t, b, entry)+offset:], v) }
	}
	const flags, method, sum, packedSize, size, offset = 8, 10, 16, 20, 24, 42
	for _, tt := range []struct {
		name  string
		spoil []func([]byte)
		is    error
		says  string
	}{
		{"contents that overlap", []func([]byte){put32(1, offset, 0)}, ErrHostile, "shares its content"},
		{"two sizes", []func([]byte){put32(1, size, 2000)}, ErrCorrupt, "two sizes"},
		{"a size beyond the end", []func([]byte){put32(1, size, 1<<30), put32(1, packedSize, 1<<30)}, ErrCorrupt, "unexpected EOF"},
		{"an offset beyond the end", []func([]byte){put32(1, offset, 1<<31)}, ErrCorrupt, "b"},
		{"a wrong sum", []func([]byte){put32(1, sum, 7)}, ErrCorrupt, "checksum"},
		{"encryption", []func([]byte){put16(1, flags, 1)}, ErrCorrupt, "encrypted"},
		{"an unknown method", []func([]byte){put16(1, method, 14)}, ErrCorrupt, "method 14"},
		{"not deflate", []func([]byte){put16(1, method, 8)}, ErrCorrupt, "b"},
		{"not zstd", []func([]byte){put16(1, method, 93)}, ErrCorrupt, "b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b := good()
			for _, spoil := range tt.spoil {
				spoil(b)
			}
			p := newPrison(t)
			_, err := p.unpack(t, b, Limits{})
			require.ErrorIs(t, err, tt.is)
			require.ErrorContains(t, err, tt.says)
			require.NotContains(t, readTree(t, p.inside), "b")
		})
	}
}

// A small and a large file, each method, with sizes that are not true.
func TestSizesThatAreNotTrue(t *testing.T) {
	for _, f := range []Format{Zip, ZipZstd} {
		for _, length := range []int{1000, 3 * blockSize} {
			from := tempDir(t)
			makeTree(t, from, map[string]node{"a": {0o644, strings.Repeat("text ", length/5), 0}})
			good := pack(t, f, Default, from, []string{"a"})
			at := findDirectory(t, good, 0) + 24
			size := binary.LittleEndian.Uint32(good[at:])
			for _, lie := range []uint32{size - 1, size + 1, 0, 1} {
				b := bytes.Clone(good)
				binary.LittleEndian.PutUint32(b[at:], lie)
				p := newPrison(t)
				_, err := p.unpack(t, b, Limits{})
				require.ErrorIs(t, err, ErrCorrupt)
				require.Empty(t, readTree(t, p.inside))
			}
		}
	}
}

// Whatever is cut off or changed in an archive: no file has a wrong content without an error, and in zips none at all.
func TestDamageIsNoticed(t *testing.T) {
	from := tempDir(t)
	makeTree(t, from, map[string]node{
		"a": {0o644, strings.Repeat("text ", 2000), 0}, "b": {0o644, noise(3000), 0}, "c": {0o644, "", 0},
	})
	want := readTree(t, from)
	for _, f := range []Format{Zip, ZipZstd, TarZstd} {
		good := pack(t, f, Default, from, []string{"a", "b", "c"})
		for cut := 0; cut < len(good); cut += 1 + len(good)/40 {
			p := newPrison(t)
			_, err := p.unpack(t, good[:cut], Limits{})
			require.ErrorIs(t, err, ErrCorrupt, "%s cut at %d", f, cut)
		}
		for at := 0; at < len(good); at += 1 + len(good)/60 {
			b := bytes.Clone(good)
			b[at] ^= 0x10
			p := newPrison(t)
			_, err := p.unpack(t, b, Limits{})
			for name, n := range readTree(t, p.inside) {
				if err == nil && f == TarZstd { // in a zip, nothing guards the names
					require.Contains(t, want, name, "changed at %d", at)
				}
				if w, ok := want[name]; ok && (err == nil || f != TarZstd) { // zstd's sums come after what they are of
					require.Equal(t, w.content, n.content, "%s changed at %d: %s", f, at, name)
				}
			}
		}
	}
}

func TestBombs(t *testing.T) {
	zeros := strings.Repeat("\x00", 2<<20)
	for _, f := range []Format{Zip, ZipZstd, TarZstd} {
		from := tempDir(t)
		makeTree(t, from, map[string]node{"a": {0o644, zeros, 0}, "b": {0o644, zeros, 0}})
		p := newPrison(t)
		_, err := p.unpack(t, pack(t, f, Default, from, []string{"a", "b"}), Limits{Bytes: 3 << 20})
		require.ErrorIs(t, err, ErrHostile)
		require.ErrorContains(t, err, `"b" makes it more than 3145728 bytes unpacked, which is the limit`)
	}
	t.Run("headers without end", func(t *testing.T) {
		var b bytes.Buffer
		z, err := zstd.NewWriter(&b)
		require.NoError(t, err)
		var one bytes.Buffer
		w := tar.NewWriter(&one)
		require.NoError(t, w.WriteHeader(&tar.Header{
			Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": strings.Repeat("x", 500_000)},
		}))
		require.NoError(t, w.Flush())
		for range 20 {
			_, err = z.Write(one.Bytes())
			require.NoError(t, err)
		}
		require.NoError(t, z.Close())
		_, err = newPrison(t).unpack(t, b.Bytes(), Limits{Entries: 10, Bytes: 1 << 20})
		require.ErrorIs(t, err, ErrHostile)
	})
	t.Run("data after the end", func(t *testing.T) {
		b := tarOf(t, made{name: "a", content: "x"})
		z, err := zstd.NewWriter(nil)
		require.NoError(t, err)
		b = z.EncodeAll(make([]byte, 20<<20), b)
		_, err = newPrison(t).unpack(t, b, Limits{})
		require.ErrorIs(t, err, ErrHostile)
	})
	t.Run("a window of two gigabytes", func(t *testing.T) {
		// A frame header: magic, descriptor (window follows), window of 2^31, then a raw last block with nothing in it.
		b := []byte{0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x01, 0x00, 0x00}
		_, err := newPrison(t).unpack(t, b, Limits{})
		require.ErrorIs(t, err, ErrCorrupt)
	})
}
