package artifacts

import (
	"archive/zip"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
)

func requireEmpty(t *testing.T, s *Store) {
	t.Helper()
	entries, err := os.ReadDir(s.Dir())
	require.NoError(t, err)
	require.Empty(t, entries)
}

func TestAnUploadIsKeptAsItIs(t *testing.T) {
	s := NewStore(t.TempDir())
	for _, size := range []int{0, 1, bufferSize - 1, bufferSize, bufferSize + 1, 3 * bufferSize} {
		text := bytes.Repeat([]byte("0123456789"), size/10+1)[:size]
		for name, r := range map[string]io.Reader{
			"at once": bytes.NewReader(text), "by halves": iotest.HalfReader(bytes.NewReader(text)),
			"with the end": iotest.DataErrReader(bytes.NewReader(text)),
		} {
			u, err := s.Receive(r, int64(size))
			require.NoError(t, err, "%d %s", size, name)
			sum := sha256.Sum256(text)
			require.Equal(t, hex.EncodeToString(sum[:]), u.SHA256)
			require.EqualValues(t, size, u.Size)
			f, err := s.Open(&Artifact{Path: u.Path})
			require.NoError(t, err)
			got, err := io.ReadAll(f)
			require.NoError(t, err)
			require.NoError(t, f.Close())
			require.True(t, bytes.Equal(text, got))
			info, err := os.Stat(u.Path)
			require.NoError(t, err)
			require.Equal(t, fs.FileMode(0o600), info.Mode().Perm())
			require.NoError(t, u.Discard())
			require.NoError(t, u.Discard(), "again")
			_, err = s.Open(&Artifact{Path: u.Path})
			require.ErrorIs(t, err, ErrGone)
		}
	}
	requireEmpty(t, s)
}

// A reader that goes on for ever is given up at the limit; one that breaks off leaves nothing.
func TestUploadsThatFail(t *testing.T) {
	s := NewStore(t.TempDir())
	endless := &counter{}
	_, err := s.Receive(endless, 5*bufferSize)
	require.ErrorIs(t, err, ErrTooLarge)
	require.LessOrEqual(t, endless.n, 7*bufferSize)
	failure := errors.New("broken off")
	_, err = s.Receive(io.MultiReader(strings.NewReader("x"), iotest.ErrReader(failure)), 10)
	require.ErrorIs(t, err, failure)
	_, err = s.Receive(io.MultiReader(strings.NewReader("x"), iotest.ErrReader(io.ErrUnexpectedEOF)), 10)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
	requireEmpty(t, s)
	s.Close()
	_, err = s.Receive(strings.NewReader("x"), 10)
	require.ErrorIs(t, err, errClosed)
	requireEmpty(t, s)
}

type counter struct{ n int }

func (c *counter) Read(p []byte) (int, error) {
	c.n += len(p)
	return len(p), nil
}

func TestEntries(t *testing.T) {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	at := time.Date(2026, 1, 2, 3, 4, 6, 0, time.UTC)
	head := &zip.FileHeader{Name: "dir/run.sh", Method: zip.Deflate, Modified: at}
	head.SetMode(0o755)
	f, err := w.CreateHeader(head)
	require.NoError(t, err)
	_, err = f.Write(bytes.Repeat([]byte("a"), 1000))
	require.NoError(t, err)
	_, err = w.Create("dir/")
	require.NoError(t, err)
	require.NoError(t, w.Close())
	entries, err := Entries(bytes.NewReader(b.Bytes()), int64(b.Len()))
	require.NoError(t, err)
	require.Len(t, entries, 2)
	require.Equal(t, "dir/run.sh", entries[0].Name)
	require.EqualValues(t, 1000, entries[0].Size)
	require.Less(t, entries[0].Packed, int64(100))
	require.Equal(t, fs.FileMode(0o755), entries[0].Mode)
	require.True(t, at.Equal(entries[0].Modified))
	require.True(t, entries[1].Mode.IsDir())
	_, err = Entries(strings.NewReader("no zip"), 6)
	require.ErrorContains(t, err, "list the archive: ")
}

// Every report that a configuration can ask for has a format and a name, as GitLab sends them to runners.
func TestEveryReportOfAConfigurationIsKnown(t *testing.T) {
	for _, report := range ciconfig.ReportTypes() {
		require.True(t, KnownType(report), report)
		require.NotEmpty(t, ReportName(report), report)
		require.True(t, KnownFormat(FormatOf(report)), report)
	}
	require.Equal(t, Zip, FormatOf(Archive))
	require.Empty(t, ReportName(Archive))
	require.False(t, KnownType("nonsense"))
	require.Empty(t, FormatOf("nonsense"))
	require.False(t, KnownFormat("zipzstd"), "GitLab has no such uploads")
}

func TestNames(t *testing.T) {
	for name, want := range map[string]string{
		"artifacts.zip": "artifacts.zip", "../../etc/passwd": "passwd", `C:\a\b.zip`: "b.zip", "a b&c.zip": "a_b_c.zip",
		"über.zip": "über.zip", "": "_.", "..": "_..", "/": "_", "a\x00\n\"'b": "a____b", "x/": "x",
	} {
		require.Equal(t, want, CleanName(name), "%q", name)
	}
	rapid.Check(t, func(t *rapid.T) {
		name := CleanName(rapid.OneOf(rapid.String(), rapid.StringOf(rapid.RuneFrom([]rune(`./\"_a`)))).Draw(t, "name"))
		if name == "" || name == "." || name == ".." || len(name) > 255 || strings.ContainsAny(name, "/\\\"\x00\r\n") || CleanName(name) != name {
			t.Fatalf("%q", name)
		}
	})
}

func TestExpiry(t *testing.T) {
	now := time.Now()
	require.False(t, (&Artifact{}).Expired(now))
	require.False(t, (&Artifact{ExpiresAt: now.Add(1)}).Expired(now))
	require.True(t, (&Artifact{ExpiresAt: now}).Expired(now))
}
