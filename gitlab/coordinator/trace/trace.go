// Package trace keeps the log of a job: an append-only sequence of bytes with its length and CRC32. A short log stays in
// memory, a long one moves to a file.
package trace

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"
)

// ErrBusy is returned by Append while another Append to the same log is under way.
var ErrBusy = errors.New("the trace is being written by another request")

// OffsetError is returned by Append for data that does not begin at the end of the log.
type OffsetError struct{ Size int64 }

func (e *OffsetError) Error() string { return fmt.Sprintf("the trace has %d bytes", e.Size) }

// ErrClosed is returned by Append after Discard.
var ErrClosed = errors.New("the trace has been discarded")

// Log is the log of one job. All methods may be called concurrently.
type Log struct {
	path  string // of the spill file, made when it is needed
	spill int    // bytes kept in memory at most

	mu      sync.Mutex
	idle    sync.Cond // signalled when writing becomes false
	writing bool      // an Append is under way; it alone changes mem and the file
	mem     []byte
	onDisk  bool
	size    int64
	crc     uint32
	changed chan struct{} // closed and replaced when size or done changes
	done    bool          // nothing will be appended
	gone    bool          // discarded
}

// New makes an empty log that keeps up to spill bytes in memory and then uses the file path.
func New(path string, spill int) *Log {
	l := &Log{path: path, spill: spill, changed: make(chan struct{})}
	l.idle.L = &l.mu
	return l
}

// Size is the length of the log in bytes.
func (l *Log) Size() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size
}

// Sum returns the length of the log in bytes and the CRC32 (IEEE) of all of them.
func (l *Log) Sum() (size int64, crc uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.size, l.crc
}

// Busy says whether an Append is under way.
func (l *Log) Busy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.writing
}

// Append adds data at an offset, which must be the end of the log: otherwise it returns an [OffsetError]. It returns
// the new size. The log keeps no reference to data. A failed write leaves the log as it was.
func (l *Log) Append(offset int64, data []byte) (int64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.writing:
		return l.size, ErrBusy
	case l.gone:
		return l.size, ErrClosed
	case offset != l.size:
		return l.size, &OffsetError{Size: l.size}
	case len(data) == 0:
		return l.size, nil
	}
	l.writing = true
	toDisk := l.onDisk || len(l.mem)+len(data) > l.spill
	crc, size, onDisk := l.crc, l.size, l.onDisk
	l.mu.Unlock()
	crc = crc32.Update(crc, crc32.IEEETable, data)
	var err error
	if toDisk {
		err = l.write(data, size, onDisk)
	}
	l.mu.Lock()
	l.writing = false
	l.idle.Broadcast()
	if err != nil {
		return l.size, fmt.Errorf("write trace: %w", err)
	}
	if toDisk {
		l.onDisk, l.mem = true, nil
	} else {
		l.mem = append(l.mem, data...)
	}
	l.size, l.crc = size+int64(len(data)), crc
	l.wake()
	return l.size, nil
}

// write puts data into the file, which gets what was in memory first if it does not exist.
func (l *Log) write(data []byte, at int64, exists bool) error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if !exists {
		_, err = f.WriteAt(l.mem, 0)
	}
	if err == nil {
		_, err = f.WriteAt(data, at)
	}
	return errors.Join(err, f.Close())
}

// ReadAt reads len(p) bytes from off; less than that, with io.EOF, at the present end.
func (l *Log) ReadAt(p []byte, off int64) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if off < 0 {
		return 0, fmt.Errorf("read trace at %d: negative offset", off)
	}
	if off >= l.size {
		return 0, io.EOF
	}
	short := int64(len(p)) > l.size-off
	if short {
		p = p[:l.size-off]
	}
	n, err := len(p), error(nil)
	if l.onDisk {
		n, err = l.readFile(p, off)
	} else {
		copy(p, l.mem[off:])
	}
	if err == nil && short {
		err = io.EOF
	}
	return n, err
}

// readFile reads what the file has. mu is held, and released while it reads.
func (l *Log) readFile(p []byte, off int64) (int, error) {
	l.mu.Unlock()
	n, err := readAt(l.path, p, off)
	l.mu.Lock()
	switch {
	case err == nil:
		return n, nil
	case off+int64(len(p)) > l.size:
		return 0, io.EOF // the content was dropped meanwhile
	default:
		return n, fmt.Errorf("read trace: %w", err)
	}
}

func readAt(path string, p []byte, off int64) (int, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	return f.ReadAt(p, off)
}

// Wait returns when the log is longer than offset bytes or ends, or with the context's error. It returns the size and
// whether the log has ended.
func (l *Log) Wait(ctx context.Context, offset int64) (size int64, done bool, err error) {
	for {
		l.mu.Lock()
		size, done, changed := l.size, l.done, l.changed
		l.mu.Unlock()
		if size > offset || done {
			return size, done, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return size, false, ctx.Err()
		}
	}
}

// Finish says that nothing more is expected: those who wait for more return. It does no I/O.
func (l *Log) Finish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.done {
		l.done = true
		l.wake()
	}
}

// Lose drops the content, as when a server has lost it: the log is empty again and can be written.
func (l *Log) Lose() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.clear()
}

// Discard drops the content for good: Append fails from now on.
func (l *Log) Discard() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gone, l.done = true, true
	return l.clear()
}

// clear waits for a write that is under way and empties the log. mu is held, and released while the file is removed.
func (l *Log) clear() error {
	for l.writing {
		l.idle.Wait()
	}
	onDisk := l.onDisk
	l.mem, l.onDisk, l.size, l.crc = nil, false, 0, 0
	l.wake()
	if !onDisk {
		return nil
	}
	l.writing = true
	l.mu.Unlock()
	err := os.Remove(l.path)
	l.mu.Lock()
	l.writing = false
	l.idle.Broadcast()
	if err != nil {
		return fmt.Errorf("remove trace: %w", err)
	}
	return nil
}

func (l *Log) wake() {
	close(l.changed)
	l.changed = make(chan struct{})
}
