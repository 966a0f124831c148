package spool

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// File is one job's trace. Append, Rewind, Restore and Remove must not be called concurrently; ReadAt, Length and Sync
// may, at any time.
type File struct {
	s   *Spool
	key Key
	f   *os.File

	next   atomic.Int64 // where the next byte goes
	length int64        // of the file; greater than next after Rewind
	crc    uint32       // of [0, next)
	failed atomic.Bool  // a sync failed: what is on disk is not known any more
}

// Create makes the file of a job that has none.
func (s *Spool) Create(k Key) (*File, error) {
	f, err := os.OpenFile(filepath.Join(s.dir, k.name()), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, s.failed("make a spooled trace", err)
	}
	s.newNames.Store(true)
	return &File{s: s, key: k, f: f}, nil
}

// Take opens the file that Find returned, reads it for its CRC and syncs it: how much of it a loss of power has left
// is known only by looking.
func (s *Spool) Take(job int64) (*File, error) {
	k, ok := s.Find(job)
	if !ok {
		return nil, fmt.Errorf("take up the spooled trace of job %d: %w", job, os.ErrNotExist)
	}
	f, err := os.OpenFile(filepath.Join(s.dir, k.name()), os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("take up a spooled trace: %w", err)
	}
	file := &File{s: s, key: k, f: f}
	if err := file.load(); err != nil {
		_ = f.Close()
		return nil, err
	}
	s.forget(job)
	return file, nil
}

func (f *File) load() error {
	info, err := f.f.Stat()
	if err != nil {
		return fmt.Errorf("look at a spooled trace: %w", err)
	}
	f.length = info.Size()
	if err := f.Restore(); err != nil {
		return err
	}
	return f.Sync()
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

// Rewind makes the next Append begin at 0. The file keeps its bytes until they are written over.
func (f *File) Rewind() {
	f.next.Store(0)
	f.crc = 0
}

// Restore ends what Rewind began: Length is the file's again, and the CRC is read from it.
func (f *File) Restore() error {
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

// Sync writes the file's bytes to the disk. With the spool's SyncNames after it they outlive a loss of power.
func (f *File) Sync() error {
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

// Close leaves the file on disk.
func (f *File) Close() error { return f.f.Close() }

// Remove closes the file and deletes it.
func (f *File) Remove() error {
	_ = f.f.Close()
	f.s.total.Add(-f.length)
	f.length = 0
	return f.s.removeFile(f.key)
}
