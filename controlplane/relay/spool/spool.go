// Package spool keeps the traces of unreported jobs on disk: one file per job and epoch, of mode 0600 in a folder of mode
// 0700, that holds the trace's bytes and nothing else. What must be known beside them is in the name:
//
//	v2-<job>-<epoch>-<limit>    limit: the output limit in bytes under which the trace was begun
//
// so that a file is whole with its creation. Offsets are positions in the file: a request's body is a section of it.
//
// What a loss of power leaves of a file's end may be anything: zeros, old blocks, a piece of what was written. So the file
// checkpoints holds, for all jobs together, records of a length and the CRC-32 of so many bytes. Commit writes one for
// each file of a group and syncs them along with the files; only then are bytes acknowledged. Take believes what a record
// proves. What is behind the last record is in the kernel's hands if only the process was killed, and whole; if the
// kernel has been started since (another boot id), it is cut off.
//
// Files of version 1, from before there were checkpoints, are read as they are.
package spool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Why no bytes are taken at the moment. Either ends by itself when there is room again.
var (
	// ErrFull: the file system has less free space than is to be kept free, or a write failed for want of space.
	ErrFull = errors.New("the spool's disk is full")
	// ErrQuota: the spool has reached its quota.
	ErrQuota = errors.New("the spool has reached its quota")
)

const (
	version = 2
	// freeCheckEvery is how many bytes are written between two looks at the free space.
	freeCheckEvery = 16 << 20
)

// Key is what a file's name says.
type Key struct {
	Job, Epoch int64
	// Limit is the output limit in bytes under which the trace was begun.
	Limit int64

	old bool // of version 1
}

func (k Key) name() string {
	prefix := "v2-"
	if k.old {
		prefix = "v1-"
	}
	return prefix + strconv.FormatInt(k.Job, 10) + "-" + strconv.FormatInt(k.Epoch, 10) + "-" + strconv.FormatInt(k.Limit, 10)
}

// Spool is the folder. Its methods may be called concurrently, but for one job only one at a time.
type Spool struct {
	dir      string
	maxBytes int64
	minFree  int64
	log      *log

	total    atomic.Int64 // bytes in all files
	unlooked atomic.Int64 // bytes written since the free space was looked at
	refused  atomic.Int64 // the length of the write for which there was no room
	newNames atomic.Bool  // the folder has entries that were not synced
	full     atomic.Pointer[error]

	mu    sync.Mutex
	found map[int64]Key // files that were there at Open and were not taken up since
}

// Open makes the folder if it is missing and looks what is in it. maxBytes is a quota for all files together (0: none),
// minFree the number of bytes that are left free on the file system. A file of a newer version is an error; other names
// that are not the spool's are returned and left alone. The caller closes the spool.
func Open(dir string, maxBytes, minFree int64) (s *Spool, strangers []string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("make the spool's folder: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, nil, fmt.Errorf("close the spool's folder to others: %w", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, nil, fmt.Errorf("read the spool's folder: %w", err)
	}
	s = &Spool{dir: dir, maxBytes: maxBytes, minFree: minFree, found: make(map[int64]Key)}
	// A crash may have come before the names were synced.
	s.newNames.Store(len(entries) > 0)
	for _, e := range entries {
		if e.Name() == logName || e.Name() == newLogName {
			continue
		}
		k, v, ok := parse(e.Name())
		if ok && v > version {
			return nil, nil, fmt.Errorf("%s: written by a newer version (format %d, this one knows %d): start that version, or remove the file and lose the trace",
				filepath.Join(dir, e.Name()), v, version)
		}
		if !ok || !e.Type().IsRegular() {
			strangers = append(strangers, e.Name())
			continue
		}
		if other, twice := s.found[k.Job]; twice {
			// A removal that a loss of power undid; the later epoch counts.
			older := k
			if other.Epoch < k.Epoch {
				older, s.found[k.Job] = other, k
			}
			if err := s.removeFile(older); err != nil {
				return nil, nil, err
			}
			continue
		}
		s.found[k.Job] = k
	}
	for _, k := range s.found {
		size, err := s.size(k)
		if err != nil {
			return nil, nil, err
		}
		s.total.Add(size)
	}
	if s.log, err = openLog(dir, func(c checkpoint) bool { return s.found[c.job].Epoch == c.epoch }); err != nil {
		return nil, nil, err
	}
	return s, strangers, nil
}

// Close closes what belongs to no file. The files are the caller's.
func (s *Spool) Close() error {
	if err := s.log.close(); err != nil {
		return fmt.Errorf("close the spool's checkpoints: %w", err)
	}
	return nil
}

func parse(name string) (k Key, v int, ok bool) {
	rest, ok := strings.CutPrefix(name, "v")
	if !ok {
		return k, 0, false
	}
	parts := strings.Split(rest, "-")
	v, err := strconv.Atoi(parts[0])
	if err != nil || v < 1 {
		return k, 0, false
	}
	if v > version {
		return k, v, true
	}
	if len(parts) != 4 {
		return k, 0, false
	}
	for i, to := range []*int64{&k.Job, &k.Epoch, &k.Limit} {
		if *to, err = strconv.ParseInt(parts[i+1], 10, 64); err != nil || *to < 0 {
			return k, 0, false
		}
	}
	k.old = v == 1
	return k, v, k.name() == name
}

// Find returns what is left of a job's trace from before Open; ok is false if there is nothing.
func (s *Spool) Find(job int64) (k Key, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	k, ok = s.found[job]
	return k, ok
}

// Untaken returns the jobs whose files were there at Open and were neither taken up nor removed since.
func (s *Spool) Untaken() []int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	jobs := make([]int64, 0, len(s.found))
	for job := range s.found {
		jobs = append(jobs, job)
	}
	return jobs
}

// Discard removes a file that Find returns.
func (s *Spool) Discard(job int64) error {
	k, ok := s.Find(job)
	if !ok {
		return nil
	}
	size, err := s.size(k)
	if err != nil {
		return err
	}
	if err := s.removeFile(k); err != nil {
		return err
	}
	s.total.Add(-size)
	s.log.forget(job)
	s.forget(job)
	return nil
}

func (s *Spool) size(k Key) (int64, error) {
	info, err := os.Lstat(filepath.Join(s.dir, k.name()))
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look at a spooled trace: %w", err)
	}
	return info.Size(), nil
}

func (s *Spool) forget(job int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.found, job)
}

func (s *Spool) removeFile(k Key) error {
	if err := os.Remove(filepath.Join(s.dir, k.name())); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove a spooled trace: %w", err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// Bytes returns the length of all files together.
func (s *Spool) Bytes() int64 { return s.total.Load() }

// Err returns why no bytes are taken, or nil.
func (s *Spool) Err() error {
	if e := s.full.Load(); e != nil {
		return *e
	}
	return nil
}

// admit says whether n more bytes may be written.
func (s *Spool) admit(n int64) error {
	if err := s.Err(); err != nil {
		return err
	}
	if s.unlooked.Add(n) < freeCheckEvery && !s.overQuota(n) {
		return nil
	}
	err := s.look(n)
	if err != nil {
		s.refused.Store(n)
	}
	return err
}

// admitUrgent is admit for what may go over the quota and into half of the space that is kept free.
func (s *Spool) admitUrgent(n int64) error {
	if s.Err() == nil && s.unlooked.Add(n) < freeCheckEvery {
		return nil
	}
	return s.free(n, s.minFree/2)
}

func (s *Spool) overQuota(n int64) bool { return s.maxBytes > 0 && s.total.Load()+n > s.maxBytes }

// Look finds out whether there is room for what was refused last, or for any byte, and ends or begins a time without.
// It returns Err.
func (s *Spool) Look() error { return s.look(max(s.refused.Load(), 1)) }

func (s *Spool) look(n int64) error {
	s.unlooked.Store(0)
	err := s.room(n)
	if err != nil {
		s.full.Store(&err)
	} else {
		s.refused.Store(0)
		s.full.Store(nil)
	}
	return err
}

func (s *Spool) room(n int64) error {
	if s.overQuota(n) {
		return fmt.Errorf("%w of %d bytes: it goes on when jobs are reported, or raise the quota", ErrQuota, s.maxBytes)
	}
	return s.free(n, s.minFree)
}

// free returns an error if the file system has less than n bytes beyond keep.
func (s *Spool) free(n, keep int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(s.dir, &st); err != nil {
		return fmt.Errorf("%w: look at the free space of %s: %w", ErrFull, s.dir, err)
	}
	if free := int64(st.Bavail) * int64(st.Bsize); free < keep+n { //nolint:unconvert // the types differ by platform
		return fmt.Errorf("%w: %s has %d bytes left and %d are kept free: make room", ErrFull, s.dir, free, keep)
	}
	return nil
}
