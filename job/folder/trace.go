//go:build unix

package folder

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
)

// Trace reads a job's whole trace by absolute offset: prefix, then the job's own, then the suffix. It may be opened at any
// time, before the first segment exists too, and grows with the files. Methods may be called concurrently.
type Trace struct {
	mu     sync.Mutex
	folder *Folder // own handle
	prefix segment
	job    segment
	suffix segment
}

// segment is one file of the trace; file is nil until it exists. length is only kept up to date for closed segments.
type segment struct {
	name   string
	file   *os.File
	closed bool
	length int64
}

// OpenTrace opens the trace. The caller closes it.
func (f *Folder) OpenTrace() (*Trace, error) {
	own, err := f.again()
	if err != nil {
		return nil, err
	}
	return &Trace{
		folder: own,
		prefix: segment{name: PrefixFile}, job: segment{name: TraceFile}, suffix: segment{name: SuffixFile},
	}, nil
}

// Close closes the trace's files.
func (t *Trace) Close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	err := t.folder.Close()
	for _, s := range []*segment{&t.prefix, &t.job, &t.suffix} {
		if s.file != nil {
			err = errors.Join(err, s.file.Close())
		}
	}
	return err
}

// Size is the number of bytes that can be read now.
func (t *Trace) Size() (int64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, n, s, err := t.lengths()
	return p + n + s, err
}

// ReadAt reads from the absolute offset off up to what there is. Less than len(b) comes with io.EOF, which only says that
// this is all for now. One call may cross segments.
func (t *Trace) ReadAt(b []byte, off int64) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if off < 0 {
		return 0, fmt.Errorf("read the trace at %d: negative offset", off)
	}
	p, n, s, err := t.lengths()
	if err != nil {
		return 0, err
	}
	total := 0
	start := int64(0)
	for _, part := range []struct {
		*segment
		length int64
	}{{&t.prefix, p}, {&t.job, n}, {&t.suffix, s}} {
		end := start + part.length
		if len(b) > 0 && off < end {
			want := b[:min(int64(len(b)), end-off)]
			k, err := part.file.ReadAt(want, off-start)
			total += k
			off += int64(k)
			b = b[k:]
			if err != nil {
				return total, fmt.Errorf("read %s: %w", part.name, err)
			}
		}
		start = end
	}
	if len(b) > 0 {
		return total, io.EOF
	}
	return total, nil
}

// lengths looks at the files from the last to the first: once a later segment exists the earlier ones are closed, so what
// is read of them then is final.
func (t *Trace) lengths() (prefix, job, suffix int64, err error) {
	hasSuffix, err := t.open(&t.suffix)
	if err != nil {
		return 0, 0, 0, err
	}
	if hasSuffix {
		t.suffix.closed = true // written whole
	}
	hasJob, err := t.open(&t.job)
	if err != nil {
		return 0, 0, 0, err
	}
	if _, err := t.open(&t.prefix); err != nil {
		return 0, 0, 0, err
	}
	if prefix, err = t.prefix.size(hasJob || hasSuffix); err != nil {
		return 0, 0, 0, err
	}
	if job, err = t.job.size(hasSuffix); err != nil {
		return 0, 0, 0, err
	}
	suffix, err = t.suffix.size(true)
	return prefix, job, suffix, err
}

func (t *Trace) open(s *segment) (bool, error) {
	if s.file != nil {
		return true, nil
	}
	if s.closed {
		return false, nil
	}
	file, err := t.folder.openRegular(s.name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	s.file = file
	return true, nil
}

// size is the segment's length; final says that it will not change any more, so it is asked for only once.
func (s *segment) size(final bool) (int64, error) {
	if s.file == nil {
		return 0, nil
	}
	if s.closed && s.length > 0 {
		return s.length, nil
	}
	info, err := s.file.Stat()
	if err != nil {
		return 0, fmt.Errorf("look at %s: %w", s.name, err)
	}
	s.length, s.closed = info.Size(), final
	return s.length, nil
}
