//go:build unix

package folder

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
)

// A checkpoint says what the first bytes of a job's trace are. It proves itself: by a checksum of its own, and by the CRC-32 of
// the bytes that it speaks of. Trace and checkpoints are not synced while the job runs, so after a loss of power either may
// have lost bytes or have others; what a record proves was written by the job all the same.
type checkpoint struct {
	job, epoch int64
	length     int64  // of the trace file
	crc        uint32 // CRC-32 (IEEE) of prefix and trace file up to there
}

// recordSize is a checkpoint's size on disk. It divides the sector of a disk, the unit in which a loss of power tears.
const recordSize = 32

var (
	recordMagic = [4]byte{'S', 'W', 'j', '1'}
	castagnoli  = crc32.MakeTable(crc32.Castagnoli)
)

// append adds the record:
//
//	0 magic, 4 crc, 8 length, 16 job, 24 epoch's low half, 28 CRC-32C of the bytes before
//
// in little-endian order. Job and epoch are there for blocks that another job's file had on the disk before.
func (c checkpoint) append(b []byte) []byte {
	begin := len(b)
	b = append(b, recordMagic[:]...)
	b = binary.LittleEndian.AppendUint32(b, c.crc)
	b = binary.LittleEndian.AppendUint64(b, uint64(c.length)) //nolint:gosec // a length
	b = binary.LittleEndian.AppendUint64(b, uint64(c.job))    //nolint:gosec // compared only
	b = binary.LittleEndian.AppendUint32(b, uint32(c.epoch))  //nolint:gosec // compared only
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b[begin:], castagnoli))
}

// Checkpoints writes the checkpoints of a job's trace. It is for one goroutine at a time.
type Checkpoints struct {
	folder     *Folder
	job, epoch int64
	file       *os.File
	err        error
}

// Checkpoints returns the writer of the checkpoints of the job of spec. The file is made with the first one: short jobs
// need none. The caller closes it.
func (f *Folder) Checkpoints(spec Spec) *Checkpoints {
	return &Checkpoints{folder: f, job: spec.Job, epoch: spec.Epoch}
}

// Append notes that the trace file's first length bytes make, with the prefix, this CRC-32. They must have been written; nothing
// is synced. After an error it does nothing and returns that error: less of the trace can be proven then.
func (c *Checkpoints) Append(length int64, crc uint32) error {
	if c.err != nil {
		return c.err
	}
	if c.file == nil {
		if c.file, c.err = c.folder.OpenForJob(CheckpointsFile); c.err != nil {
			return c.err
		}
	}
	record := checkpoint{job: c.job, epoch: c.epoch, length: length, crc: crc}.append(nil)
	if _, err := c.file.Write(record); err != nil { // a part of a record would spoil those behind it
		c.err = fmt.Errorf("write %s: %w", CheckpointsFile, err)
	}
	return c.err
}

// Close closes the file, if there is one.
func (c *Checkpoints) Close() error {
	if c.file == nil {
		return nil
	}
	return c.file.Close()
}

// CutUnproven is for a folder whose host was restarted while its job ran or was prepared, and which has no result and no suffix: it cuts
// the trace to the longest beginning that checkpoints prove to be what the job wrote, and returns by how many bytes. The
// prefix is proven by spec.json; if it cannot be, nothing is kept. If the job wrote no checkpoints, because its
// switchyard-job did not know them yet, only zeros at the end are cut off. What is left is not synced.
func (f *Folder) CutUnproven() (cut int64, err error) {
	prefix, trace, err := f.openSegments()
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, prefix.close(), trace.close()) }()
	started, err := f.Started()
	if err != nil && !errors.Is(err, ErrNotStarted) {
		return 0, err
	}
	p, n, err := f.proven(prefix, trace, started.Checkpoints)
	if err != nil {
		return 0, err
	}
	for _, s := range []struct {
		*piece
		keep int64
	}{{prefix, p}, {trace, n}} {
		if s.keep < s.length {
			if err := s.file.Truncate(s.keep); err != nil {
				return cut, fmt.Errorf("cut the trace: %w", err)
			}
			cut += s.length - s.keep
		}
	}
	return cut, nil
}

// proven returns how many bytes of prefix and trace are to be believed.
func (f *Folder) proven(prefix, trace *piece, checkpoints bool) (p, n int64, err error) {
	// A damaged spec.json leaves it to the checkpoints to prove the prefix: their CRC is of both.
	spec, specErr := f.Spec()
	sum, err := prefix.sum()
	if err != nil {
		return 0, 0, err
	}
	whole := specErr == nil && spec.PrefixLength == prefix.length && spec.PrefixCRC32 == sum
	if specErr == nil && !whole {
		return 0, 0, nil
	}
	file, err := f.openRegular(CheckpointsFile)
	switch {
	case errors.Is(err, fs.ErrNotExist) && checkpoints:
		if whole {
			return prefix.length, 0, nil
		}
		return 0, 0, nil
	case errors.Is(err, fs.ErrNotExist):
		p = prefix.length
		if !whole {
			if p, err = prefix.withoutZeros(); err != nil || p < prefix.length {
				return p, 0, err
			}
		}
		n, err = trace.withoutZeros()
		return p, n, err
	case err != nil:
		return 0, 0, err
	}
	defer func() { _ = file.Close() }()
	n, found, err := trace.prove(bufio.NewReader(file), spec, specErr == nil, sum)
	if err != nil || !found && !whole {
		return 0, 0, err
	}
	return prefix.length, n, nil
}

// prove returns the greatest length that a record proves; found is false if none does. sum is the prefix's.
func (s *piece) prove(records io.Reader, spec Spec, known bool, sum uint32) (length int64, found bool, err error) {
	var at int64
	buffer := make([]byte, 64<<10)
	var record [recordSize]byte
	for {
		if _, err := io.ReadFull(records, record[:]); err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return length, found, nil
			}
			return 0, false, fmt.Errorf("read %s: %w", CheckpointsFile, err)
		}
		c, ok := parseCheckpoint(record[:])
		if !ok || known && (c.job != spec.Job || uint32(c.epoch) != uint32(spec.Epoch)) || //nolint:gosec // as it was written
			c.length < at || c.length > s.length {
			continue
		}
		for at < c.length {
			k, err := s.file.ReadAt(buffer[:min(int64(len(buffer)), c.length-at)], at)
			sum = crc32.Update(sum, crc32.IEEETable, buffer[:k])
			at += int64(k)
			if err != nil && at < c.length {
				return 0, false, fmt.Errorf("read %s: %w", TraceFile, err)
			}
		}
		if sum == c.crc {
			length, found = c.length, true
		}
	}
}

// parseCheckpoint reads a record of recordSize bytes; ok is false if it is not whole.
func parseCheckpoint(b []byte) (c checkpoint, ok bool) {
	end := recordSize - 4
	if !bytes.Equal(b[:4], recordMagic[:]) || binary.LittleEndian.Uint32(b[end:]) != crc32.Checksum(b[:end], castagnoli) {
		return c, false
	}
	c.crc = binary.LittleEndian.Uint32(b[4:])
	c.length = int64(binary.LittleEndian.Uint64(b[8:])) //nolint:gosec // checked below
	c.job = int64(binary.LittleEndian.Uint64(b[16:]))   //nolint:gosec // compared only
	c.epoch = int64(binary.LittleEndian.Uint32(b[24:]))
	return c, c.length >= 0
}

// MendPrefix is for a folder whose host was restarted and whose trace goes on behind the prefix all the same, because its job
// runs elsewhere or its result is there: a prefix that is not the one of spec.json is written over with as many spaces, so
// that the offsets behind it hold. The control plane has it in all likelihood. It says whether that was necessary.
func (f *Folder) MendPrefix() (mended bool, err error) {
	spec, err := f.Spec()
	if err != nil {
		return false, err
	}
	file, err := f.openWritable(PrefixFile)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	prefix, err := asPiece(file)
	if err != nil {
		return false, err
	}
	if sum, err := prefix.sum(); err != nil || prefix.length == spec.PrefixLength && sum == spec.PrefixCRC32 {
		return false, err
	}
	if err := file.Truncate(0); err != nil {
		return false, fmt.Errorf("mend %s: %w", PrefixFile, err)
	}
	return true, fill(file, 0, spec.PrefixLength)
}

// PadTrace makes prefix and trace at least length bytes long, with spaces, synced: where the suffix begins must not be below
// what the control plane has. It says whether that was necessary.
func (f *Folder) PadTrace(length int64) (padded bool, err error) {
	trace, err := f.OpenForJob(TraceFile)
	if err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, trace.Close()) }()
	info, err := trace.Stat()
	if err != nil {
		return false, fmt.Errorf("look at %s: %w", TraceFile, err)
	}
	var before int64
	if prefix, err := f.root.Lstat(PrefixFile); err == nil {
		before = prefix.Size()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("look at %s: %w", PrefixFile, err)
	}
	if before+info.Size() >= length {
		return false, nil
	}
	return true, fill(trace, info.Size(), length-before)
}

// SyncTrace brings prefix and trace to the disk, for a suffix that is to follow them.
func (f *Folder) SyncTrace() error {
	prefix, trace, err := f.openSegments()
	if err != nil {
		return err
	}
	for _, s := range []*piece{prefix, trace} {
		if s.file != nil {
			err = errors.Join(err, s.file.Sync())
		}
		err = errors.Join(err, s.close())
	}
	if err != nil {
		return fmt.Errorf("sync the trace: %w", err)
	}
	return nil
}

// fill writes spaces into [from, to) of a file that ends at from, and syncs it.
func fill(file *os.File, from, to int64) error {
	spaces := bytes.Repeat([]byte{' '}, int(min(64<<10, to-from)))
	for from < to {
		n, err := file.Write(spaces[:min(int64(len(spaces)), to-from)])
		if err != nil {
			return fmt.Errorf("fill the trace up: %w", err)
		}
		from += int64(n)
	}
	if err := file.Sync(); err != nil {
		return fmt.Errorf("fill the trace up: %w", err)
	}
	return nil
}

// piece is a file of the trace that can be cut; file is nil if there is none.
type piece struct {
	file   *os.File
	length int64
}

func asPiece(file *os.File) (*piece, error) {
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("look at the trace: %w", err)
	}
	return &piece{file, info.Size()}, nil
}

func (f *Folder) openSegments() (prefix, trace *piece, err error) {
	var both [2]*piece
	for i, name := range []string{PrefixFile, TraceFile} {
		both[i] = &piece{}
		there, err := f.openRegular(name) // not a device
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			_ = there.Close()
			if there, err = f.openWritable(name); err == nil {
				both[i], err = asPiece(there)
			}
		}
		if err != nil {
			return nil, nil, err
		}
	}
	return both[0], both[1], nil
}

// openWritable opens the agent's end of a trace for reading and appending, and makes it if needed.
func (f *Folder) openWritable(name string) (*os.File, error) {
	file, err := f.root.OpenFile(name, os.O_RDWR|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return file, nil
}

func (s *piece) close() error {
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}

// sum is the CRC-32 of all of it.
func (s *piece) sum() (uint32, error) {
	if s.file == nil {
		return 0, nil
	}
	sum := crc32.NewIEEE()
	if _, err := io.Copy(sum, io.NewSectionReader(s.file, 0, s.length)); err != nil {
		return 0, fmt.Errorf("read the trace: %w", err)
	}
	return sum.Sum32(), nil
}

// withoutZeros is the length without the zeros at the end.
func (s *piece) withoutZeros() (int64, error) {
	buffer := make([]byte, 64<<10)
	for end := s.length; end > 0; {
		part := buffer[:min(int64(len(buffer)), end)]
		if _, err := s.file.ReadAt(part, end-int64(len(part))); err != nil {
			return 0, fmt.Errorf("read the trace: %w", err)
		}
		rest := len(bytes.TrimRight(part, "\x00"))
		end -= int64(len(part) - rest)
		if rest > 0 {
			return end, nil
		}
	}
	return 0, nil
}
