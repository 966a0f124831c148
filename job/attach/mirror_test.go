//go:build unix

package attach_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/attach"
	"github.com/switchyard-ci/switchyard/job/folder"
)

const prefix = "preparing\n"

// mirrorFolder makes the agent's folder of a job that runs elsewhere.
func mirrorFolder(t testing.TB, limit int64) *folder.Folder {
	t.Helper()
	f, err := folder.Make(filepath.Join(t.TempDir(), "job"))
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	p, err := f.OpenPrefix()
	require.NoError(t, err)
	_, err = io.WriteString(p, prefix)
	require.NoError(t, errors.Join(err, p.Close()))
	require.NoError(t, f.WritePayload([]byte("{}")))
	require.NoError(t, f.WriteSpec(folder.Spec{
		Job: 7, Epoch: 2, OutputLimit: limit, PrefixLength: int64(len(prefix)), PrefixCRC32: crc32.ChecksumIEEE([]byte(prefix)),
	}))
	return f
}

func openMirror(t testing.TB, f *folder.Folder) *attach.Mirror {
	t.Helper()
	m, err := attach.OpenMirror(f)
	require.NoError(t, err)
	t.Cleanup(func() { _ = m.Close() })
	return m
}

// feed applies a stream to a mirror.
func feed(m *attach.Mirror, r io.Reader) error {
	frames := attach.NewReader(r, m.Offset())
	for {
		f, err := frames.Next()
		if err == nil {
			err = m.Apply(f)
		}
		if err != nil {
			return err
		}
	}
}

func whole(t testing.TB, f *folder.Folder) string {
	t.Helper()
	trace, err := f.OpenTrace()
	require.NoError(t, err)
	defer trace.Close()
	size, err := trace.Size()
	require.NoError(t, err)
	b := make([]byte, size)
	_, err = trace.ReadAt(b, 0)
	require.NoError(t, err)
	return string(b)
}

// elsewhere makes the folder in the environment of a job that has ended with a result.
func elsewhere(t testing.TB, text string) *folder.Folder {
	t.Helper()
	path := filepath.Join(t.TempDir(), "elsewhere")
	f, err := folder.Make(path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = f.Close() })
	require.NoError(t, f.WritePayload([]byte("{}")))
	require.NoError(t, f.WriteSpec(folder.Spec{Job: 7, Epoch: 2, PrefixLength: int64(len(prefix)), PrefixElsewhere: true}))
	require.NoError(t, f.WriteStarted(folder.Started{PID: 1, At: time.Unix(1e9, 0)}))
	require.NoError(t, os.WriteFile(filepath.Join(path, folder.TraceFile), []byte(text), 0o600))
	require.NoError(t, f.WriteResult(folder.Result{
		State: runnerapi.StateSuccess, TraceLength: int64(len(text)), TraceCRC32: crc32.ChecksumIEEE([]byte(prefix + text)),
	}))
	return f
}

func TestAFolderIsMirrored(t *testing.T) {
	f := mirrorFolder(t, 1<<20)
	m := openMirror(t, f)
	require.False(t, m.Begun())
	require.EqualValues(t, len(prefix), m.Offset())
	var out bytes.Buffer
	_, err := attach.Serve(context.Background(), elsewhere(t, "hello\n"), m.Offset(), 0, silence(t), &out)
	require.NoError(t, err)
	require.ErrorIs(t, feed(m, &out), io.EOF)
	require.True(t, m.Begun())
	require.Equal(t, prefix+"hello\n", whole(t, f))
	s, err := f.Started()
	require.NoError(t, err)
	require.Equal(t, int64(1_000_000_000), s.At.Unix())
	require.Zero(t, s.PID)
	r, err := f.Result()
	require.NoError(t, err)
	require.Equal(t, runnerapi.StateSuccess, r.State)

	var before bytes.Buffer
	_, err = attach.Serve(context.Background(), elsewhere(t, ""), int64(len(prefix))-1, 0, silence(t), &before)
	require.ErrorContains(t, err, "kept here from byte 10 on")
}

// However a stream is cut, and however often the agent comes anew: the mirror is a prefix of the truth and ends whole.
func TestStreamsThatAreCut(t *testing.T) {
	text := strings.Repeat("0123456789abcdef", 20<<10) // two frames
	there := elsewhere(t, text)
	rapid.Check(t, func(rt *rapid.T) {
		f := mirrorFolder(t, 2<<20)
		m := openMirror(t, f)
		for cuts := 0; ; cuts++ {
			var out bytes.Buffer
			_, err := attach.Serve(context.Background(), there, m.Offset(), 0, silence(t), &out)
			require.NoError(rt, err)
			stream := out.Bytes()
			if cuts < 8 {
				stream = stream[:rapid.IntRange(0, len(stream)).Draw(rt, "cut")]
			}
			if cuts == 8 && rapid.IntRange(0, 7).Draw(rt, "end") > 0 {
				return // to sync a result takes its time
			}
			err = feed(m, bytes.NewReader(stream))
			require.True(rt, strings.HasPrefix(prefix+text, whole(t, f)))
			require.Len(rt, whole(t, f), int(m.Offset()))
			if errors.Is(err, io.EOF) {
				break
			}
			require.ErrorIs(rt, err, attach.ErrEnded)
			if rapid.Bool().Draw(rt, "another process") {
				m = openMirror(t, f)
			}
			if rapid.IntRange(0, 5).Draw(rt, "power") == 0 { // what was not synced is zeros
				require.NoError(rt, os.WriteFile(filepath.Join(f.Path(), folder.TraceFile), make([]byte, 1000), 0o600))
				anew, err := f.MirrorTrace(true)
				require.NoError(rt, err)
				require.NoError(rt, anew.Close())
				m = openMirror(t, f)
				require.EqualValues(rt, len(prefix), m.Offset())
			}
		}
		require.Equal(rt, prefix+text, whole(t, f))
		_, err := f.Result()
		require.NoError(rt, err)
	})
}

func TestWhatCannotBeTrue(t *testing.T) {
	at := int64(len(prefix))
	h := frame(attach.Hello, fmt.Sprintf(`{"version":1,"job":7,"epoch":2,"offset":%d}`, at))
	result := func(length int, crc uint32) string {
		return frame(attach.Result, fmt.Sprintf(`{"version":1,"state":"success","trace_length":%d,"trace_crc32":%d}`, length, crc))
	}
	for name, c := range map[string]struct{ stream, message string }{
		"another job":     {frame(attach.Hello, fmt.Sprintf(`{"version":1,"job":8,"epoch":2,"offset":%d}`, at)), "runs job 8, epoch 2, not job 7, epoch 2"},
		"another epoch":   {frame(attach.Hello, fmt.Sprintf(`{"version":1,"job":7,"epoch":1,"offset":%d}`, at)), "epoch 1, not"},
		"too long a log":  {h + data(at, strings.Repeat("x", 10_000)), "longer than its limit of 1000 bytes"},
		"a piece is lost": {h + data(at, "x") + result(2, 0), "has 1 bytes, but its result says 2"},
		"a bit is lost":   {h + data(at, "x") + result(1, 4), "its checksum is"},
	} {
		t.Run(name, func(t *testing.T) {
			f := mirrorFolder(t, 1000)
			err := feed(openMirror(t, f), strings.NewReader(c.stream))
			require.ErrorContains(t, err, c.message)
			var invalid *attach.InvalidError
			require.ErrorAs(t, err, &invalid)
			_, err = f.Result()
			require.ErrorIs(t, err, folder.ErrNoResult)
		})
	}
	f := mirrorFolder(t, 1000)
	text := strings.Repeat("y", 1000) + "\nthe limit is reached"
	stream := h + data(at, text) + result(len(text), crc32.ChecksumIEEE([]byte(prefix+text)))
	require.ErrorIs(t, feed(openMirror(t, f), strings.NewReader(stream)), io.EOF, "a notice has room")
}

func TestAHeader(t *testing.T) {
	var b bytes.Buffer
	payload := bytes.Repeat([]byte("p"), 1<<20)
	require.NoError(t, attach.WriteHeader(&b, folder.Spec{Job: 7, Epoch: 2, ServerCA: "ca"}, payload))
	b.WriteString("lease 1\n")
	spec, got, err := attach.ReadHeader(&b)
	require.NoError(t, err)
	require.Equal(t, folder.Spec{Version: 1, Job: 7, Epoch: 2, ServerCA: "ca"}, spec)
	require.Equal(t, payload, got)
	require.Equal(t, "lease 1\n", b.String())

	require.ErrorContains(t, attach.WriteHeader(io.Discard, folder.Spec{}, make([]byte, folder.MaxPayload+1)), "more than the limit")
	huge := binary.BigEndian.AppendUint32([]byte("P"), folder.MaxPayload+1)
	good := frame('J', `{"version":1,"job":7,"epoch":2}`)
	for stream, message := range map[string]string{
		"":                           "EOF",
		"cancel kill\n":              `part 'c' instead of 'J'`,
		good[:9]:                     "unexpected EOF",
		good:                         "EOF",
		good + string(huge):          "more than the limit of 33554432",
		frame('J', `{"version":99}`): "format 99",
		frame('J', `nonsense`):       "read spec.json",
	} {
		_, _, err := attach.ReadHeader(strings.NewReader(stream))
		require.ErrorContains(t, err, message, "%q", stream)
	}
}
