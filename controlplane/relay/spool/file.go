package spool

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// File is one job's trace. Append, Rewind, Restore and Remove must not be called concurrently; ReadAt, Length, Mark and
// Synced may, at any time.
type File struct {
	s   *Spool
	key Key
	f   *os.File

	next   atomic.Int64 // where the next byte goes
	length int64        // of the file; greater than next after Rewind
	crc    uint32       // of [0, next)
	failed atomic.Bool  // a sync failed: what is on disk is not known any more

	mu      sync.Mutex
	synced  int64 // so much outlives a loss of power
	rewinds int   // how often that lost its meaning
}

// Create makes the file of a job that has none.
func (s *Spool) Create(k Key) (*File, error) {
	k.old = false
	f, err := os.OpenFile(filepath.Join(s.dir, k.name()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, s.failed("make a spooled trace", err)
	}
	s.newNames.Store(true)
	file := &File{s: s, key: k, f: f}
	file.note()
	return file, nil
}

// note writes down what is there at a turn of the file's life, for a process that takes it up after this one. It is not
// synced, and what cannot be written is no error: without it less of the file is believed.
func (f *File) note() {
	renewed, _ := f.s.log.append([]checkpoint{{
		job: f.key.Job, epoch: f.key.Epoch, length: f.next.Load(), crc: f.crc, acked: f.Synced(),
	}})
	if renewed {
		f.s.newNames.Store(true)
	}
}

// Key is what the file's name says.
func (f *File) Key() Key { return f.key }

// Length is the number of bytes that were appended since the last Rewind.
func (f *File) Length() int64 { return f.next.Load() }

// CRC is the CRC-32 (IEEE) of these bytes.
func (f *File) CRC() uint32 { return f.crc }

// Append writes data at Length. An error says that nothing was appended, or less than all of it: Length tells. After
// ErrFull and ErrQuota the spool takes no bytes until Look finds room; another error concerns this file.
func (f *File) Append(data []byte) error {
	if err := f.s.admit(f.growth(data)); err != nil {
		return err
	}
	return f.write(data)
}

// AppendUrgent is Append for the bytes that let a job be reported and its file be removed: they may go over the quota
// and into half of the space that is kept free, also while the spool takes no others.
func (f *File) AppendUrgent(data []byte) error {
	if err := f.s.admitUrgent(f.growth(data)); err != nil {
		return err
	}
	return f.write(data)
}

// growth is by how much the file gets longer.
func (f *File) growth(data []byte) int64 { return max(f.next.Load()+int64(len(data))-f.length, 0) }

func (f *File) write(data []byte) error {
	next := f.next.Load()
	n, err := f.f.WriteAt(data, next)
	f.crc = crc32.Update(f.crc, crc32.IEEETable, data[:n])
	next += int64(n)
	if next > f.length {
		f.s.total.Add(next - f.length)
		f.length = next
	}
	f.next.Store(next)
	return f.s.failed("write a spooled trace", err)
}

// failed looks at the error of a write: one for want of space is why the spool takes no bytes until Look.
func (s *Spool) failed(doing string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		err = fmt.Errorf("%w: %s: %w", ErrFull, doing, err)
		s.full.Store(&err)
		return err
	default:
		return fmt.Errorf("%s: %w", doing, err)
	}
}

// Rewind makes the next Append begin at 0. The file keeps its bytes until they are written over. Nothing of it counts as
// synced any more.
func (f *File) Rewind() {
	f.next.Store(0)
	f.crc = 0
	f.unsync()
	f.note()
}

// Restore ends what Rewind began: Length is the file's again, and the CRC is read from it.
func (f *File) Restore() error {
	f.unsync()
	sum := crc32.NewIEEE()
	n, err := io.CopyBuffer(onlyWriter{sum}, io.NewSectionReader(f.f, 0, f.length), make([]byte, 256<<10))
	if err != nil {
		return fmt.Errorf("read a spooled trace: %w", err)
	}
	f.length = n
	f.next.Store(n)
	f.crc = sum.Sum32()
	return nil
}

func (f *File) unsync() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.synced = 0
	f.rewinds++
}

// onlyWriter hides other methods, so that io.CopyBuffer uses its buffer.
type onlyWriter struct{ io.Writer }

// EndsWith says whether the appended bytes end with tail.
func (f *File) EndsWith(tail []byte) (bool, error) {
	at := f.Length() - int64(len(tail))
	if at < 0 {
		return false, nil
	}
	have := make([]byte, len(tail))
	if _, err := f.f.ReadAt(have, at); err != nil {
		return false, fmt.Errorf("read a spooled trace: %w", err)
	}
	return string(have) == string(tail), nil
}

// ReadAt reads bytes of the trace; after Remove and Close it fails with os.ErrClosed.
func (f *File) ReadAt(p []byte, off int64) (int, error) { return f.f.ReadAt(p, off) }

// ErrSync says that an earlier sync of the file failed. The kernel may have dropped the bytes that it could not write and
// would not say so again, so the file is never taken for synced any more.
var ErrSync = errors.New("the spooled trace may have lost bytes on its way to the disk")

// sync writes the file's bytes to the disk.
func (f *File) sync() error {
	if f.failed.Load() {
		return ErrSync
	}
	if err := datasync(f.f); err != nil {
		if !errors.Is(err, os.ErrClosed) {
			f.failed.Store(true)
		}
		return fmt.Errorf("sync a spooled trace: %w", err)
	}
	return nil
}

// Synced is how many of the file's bytes outlive a loss of power.
func (f *File) Synced() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.synced
}

// Close leaves the file on disk.
func (f *File) Close() error {
	f.note()
	return f.f.Close()
}

// Remove closes the file and deletes it.
func (f *File) Remove() error {
	_ = f.f.Close()
	f.s.total.Add(-f.length)
	f.length = 0
	f.s.log.forget(f.key.Job)
	return f.s.removeFile(f.key)
}
