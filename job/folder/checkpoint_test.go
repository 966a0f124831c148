//go:build unix

package folder_test

import (
	"bytes"
	"hash/crc32"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/switchyard-ci/switchyard/job/folder"
	"github.com/switchyard-ci/switchyard/job/trace"
)

// block is how much of a file a loss of power keeps or loses at once, in the tests.
const block = 64

// crash returns what a loss of power leaves of a file that was not synced: a random part of its length, each block as it
// was written, zeros, or what another file had there.
func crash(t *rapid.T, name string, content []byte) []byte {
	left := bytes.Clone(content[:rapid.IntRange(0, len(content)).Draw(t, name+" length")])
	if rapid.Bool().Draw(t, name+" whole") {
		left = bytes.Clone(content)
	}
	for at := 0; at < len(left); at += block {
		piece := left[at:min(at+block, len(left))]
		switch rapid.SampledFrom([]string{"kept", "kept", "kept", "kept", "zeros", "old"}).Draw(t, name+" block") {
		case "zeros":
			clear(piece)
		case "old":
			for i := range piece {
				piece[i] = byte('A' + i%7)
			}
		}
	}
	if rapid.Bool().Draw(t, name+" grown") { // the length was written, the blocks were not
		left = append(left, make([]byte, rapid.IntRange(0, 3*block).Draw(t, name+" zeros"))...)
	}
	return left
}

type ready struct {
	*folder.Folder
	path   string
	spec   folder.Spec
	prefix []byte
}

// makeReady makes the folder of a job that has raised its fence.
func makeReady(t require.TestingT, parent string, prefix []byte, checkpoints bool) ready {
	path := filepath.Join(parent, "job")
	require.NoError(t, os.RemoveAll(path))
	f, err := folder.Make(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(path, folder.PrefixFile), prefix, 0o600))
	require.NoError(t, f.WritePayload([]byte("{}")))
	spec := folder.Spec{Job: 7, Epoch: 3, PrefixLength: int64(len(prefix)), PrefixCRC32: crc32.ChecksumIEEE(prefix)}
	require.NoError(t, f.WriteSpec(spec))
	require.NoError(t, f.WriteStarted(folder.Started{BootID: "then", Checkpoints: checkpoints}))
	return ready{f, path, spec, prefix}
}

func (r ready) read(t require.TestingT, name string) []byte {
	b, err := os.ReadFile(filepath.Join(r.path, name))
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	return b
}

func (r ready) replace(t require.TestingT, name string, content []byte) {
	require.NoError(t, os.WriteFile(filepath.Join(r.path, name), content, 0o600))
}

func TestWhatIsLeftAfterALossOfPowerIsABeginningOfTheTrace(t *testing.T) {
	parent := t.TempDir()
	proved, lost := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		prefix := rapid.SliceOfN(rapid.ByteRange('a', 'z'), 0, 2*block).Draw(t, "prefix")
		r := makeReady(t, parent, prefix, true)
		defer r.Close()
		checkpoints := r.Checkpoints(r.spec)
		defer checkpoints.Close()
		file, err := r.OpenForJob(folder.TraceFile)
		require.NoError(t, err)
		defer file.Close()
		w := trace.NewWriter(file, r.spec.PrefixLength, r.spec.PrefixCRC32, 0, func(int64) {})
		lengths := map[int64]int{} // of what is proven: the number of its record
		for _, n := range rapid.SliceOfN(rapid.IntRange(1, 5*block), 1, 12).Draw(t, "writes") {
			w.Write(rapid.SliceOfN(rapid.Byte(), n, n).Draw(t, "bytes"))
			if rapid.Bool().Draw(t, "checkpoint") {
				require.NoError(t, checkpoints.Append(w.Length(), w.CRC32()))
				lengths[w.Length()] = len(lengths)
			}
		}
		wrote, records := r.read(t, folder.TraceFile), r.read(t, folder.CheckpointsFile)
		left, leftRecords := crash(t, "trace", wrote), crash(t, "records", records)
		r.replace(t, folder.TraceFile, left)
		if len(records) > 0 {
			r.replace(t, folder.CheckpointsFile, leftRecords)
		}
		spoilt := rapid.SampledFrom([]string{"", "", "", "prefix", "spec"}).Draw(t, "spoilt")
		leftPrefix := prefix
		switch spoilt {
		case "prefix":
			leftPrefix = crash(t, "prefix", prefix)
			r.replace(t, folder.PrefixFile, leftPrefix)
		case "spec":
			r.replace(t, folder.SpecFile, nil)
		}

		cut, err := r.CutUnproven()
		require.NoError(t, err)
		p, n := r.read(t, folder.PrefixFile), r.read(t, folder.TraceFile)
		all := append(bytes.Clone(prefix), wrote...)
		require.True(t, bytes.HasPrefix(all, append(bytes.Clone(p), n...)), "%d and %d bytes", len(p), len(n))
		if spoilt == "" {
			require.Equal(t, prefix, p)
			require.EqualValues(t, len(left)-len(n), cut)
		}
		// All that is whole and has a whole record is believed.
		if !bytes.Equal(leftPrefix, prefix) {
			return
		}
		for length, number := range lengths {
			at := number * 32
			if int(length) <= len(left) && bytes.Equal(left[:length], wrote[:length]) &&
				at+32 <= len(leftRecords) && bytes.Equal(leftRecords[at:at+32], records[at:at+32]) {
				require.GreaterOrEqual(t, len(n), int(length))
				proved++
			}
		}
		if cut > 0 {
			lost++
		}
	})
	require.Positive(t, proved)
	require.Positive(t, lost)
}

func TestAnOldJobsTraceLosesItsZeros(t *testing.T) {
	r := makeReady(t, t.TempDir(), []byte("prefix\n"), false)
	defer r.Close()
	r.replace(t, folder.TraceFile, append([]byte("a\x00b\n"), make([]byte, 200_000)...))
	cut, err := r.CutUnproven()
	require.NoError(t, err)
	require.EqualValues(t, 200_000, cut)
	require.Equal(t, "prefix\n", string(r.read(t, folder.PrefixFile)))
	require.Equal(t, "a\x00b\n", string(r.read(t, folder.TraceFile)))

	require.NoError(t, os.Remove(filepath.Join(r.path, folder.SpecFile)))
	r.replace(t, folder.PrefixFile, []byte("pre\x00\x00\x00\x00"))
	cut, err = r.CutUnproven()
	require.NoError(t, err)
	require.EqualValues(t, 8, cut)
	require.Equal(t, "pre", string(r.read(t, folder.PrefixFile)))
	require.Empty(t, r.read(t, folder.TraceFile))
}

func TestAnotherJobsCheckpointsProveNothing(t *testing.T) {
	r := makeReady(t, t.TempDir(), nil, true)
	defer r.Close()
	r.replace(t, folder.TraceFile, []byte("all of it"))
	other := r.spec
	other.Job++
	c := r.Checkpoints(other)
	require.NoError(t, c.Append(9, crc32.ChecksumIEEE([]byte("all of it"))))
	require.NoError(t, c.Close())
	cut, err := r.CutUnproven()
	require.NoError(t, err)
	require.EqualValues(t, 9, cut)
}

func TestOffsetsHoldWhenThePrefixIsLost(t *testing.T) {
	r := makeReady(t, t.TempDir(), []byte("prefix\n"), true)
	defer r.Close()
	r.replace(t, folder.TraceFile, []byte("trace"))
	mended, err := r.MendPrefix()
	require.NoError(t, err)
	require.False(t, mended)
	require.Equal(t, "prefix\n", string(r.read(t, folder.PrefixFile)))
	for _, left := range []string{"", "pre", "\x00\x00\x00\x00\x00\x00\x00", "prefix\n\x00"} {
		r.replace(t, folder.PrefixFile, []byte(left))
		mended, err := r.MendPrefix()
		require.NoError(t, err)
		require.True(t, mended)
		require.Equal(t, "       ", string(r.read(t, folder.PrefixFile)))
	}
	for _, at := range []int64{3, 12} {
		padded, err := r.PadTrace(at)
		require.NoError(t, err)
		require.False(t, padded)
	}
	padded, err := r.PadTrace(15)
	require.NoError(t, err)
	require.True(t, padded)
	require.Equal(t, "trace   ", string(r.read(t, folder.TraceFile)))
	require.NoError(t, r.SyncTrace())
}
