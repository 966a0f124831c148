package spool

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// Names of the log.
const (
	logName    = "checkpoints"
	newLogName = "checkpoints.new"
)

const (
	// leastLog is the size of the log at which it is written anew; as much is reserved on the disk, so that a full one
	// does not keep bytes from being acknowledged that are there.
	leastLog = 1 << 20
	// logSlack is by how much the log must be longer than what is needed of it.
	logSlack = 8
)

// log is the file of all jobs' checkpoints. Records are only appended; when most of them are of no use any more the file
// is written anew. There is one for the spool and not one for each job, so that a group of jobs that is synced costs one
// sync more, not twice as many.
type log struct {
	dir  string
	boot boot

	mu     sync.Mutex
	f      *os.File // nil until it is needed
	size   int64
	least  int64 // size below which it is not written anew
	broken bool  // what is on disk is not known: it is written anew
	kept   map[int64]*kept
}

// kept is what the log must say of a job: what is known to be on disk, and what was said last.
type kept struct {
	proven []checkpoint
	last   *checkpoint
}

// openLog reads the log; kept holds what it says of jobs for which wanted returns true.
func openLog(dir string, wanted func(checkpoint) bool) (*log, error) {
	l := &log{dir: dir, boot: currentBoot(), least: leastLog, kept: make(map[int64]*kept)}
	path := filepath.Join(dir, logName)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return l, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the spool's checkpoints: %w", err)
	}
	list, _ := parseCheckpoints(b)
	for _, c := range list {
		if !wanted(c) {
			continue
		}
		if l.kept[c.job] == nil {
			l.kept[c.job] = &kept{}
		}
		l.kept[c.job].proven = append(l.kept[c.job].proven, c)
	}
	if l.f, err = os.OpenFile(path, os.O_RDWR, 0); err != nil {
		return nil, fmt.Errorf("open the spool's checkpoints: %w", err)
	}
	l.size = (int64(len(b)) + recordSize - 1) / recordSize * recordSize // a torn end stays, as a record that is not whole
	return l, nil
}

// of returns what is known of a job, oldest first.
func (l *log) of(job int64) []checkpoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.kept[job]
	switch {
	case k == nil:
		return nil
	case k.last == nil:
		return k.proven
	}
	return append(slices.Clip(k.proven), *k.last)
}

// append writes checkpoints behind the others. renewed: the log is another file now, whose name must be synced.
func (l *log) append(list []checkpoint) (renewed bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range list {
		list[i].boot = l.boot
		k := l.kept[list[i].job]
		if k == nil {
			k = &kept{}
			l.kept[list[i].job] = k
		}
		k.last = &list[i]
	}
	if l.f == nil || l.broken || l.size >= max(l.least, logSlack*l.need()) {
		if err := l.renew(); err != nil {
			return false, err
		}
		return true, nil
	}
	b := make([]byte, 0, recordSize*len(list))
	for _, c := range list {
		b = c.append(b)
	}
	n, err := l.f.WriteAt(b, l.size)
	if err != nil {
		// The next record begins where this one did: what there is of it is not whole.
		return false, err
	}
	l.size += int64(n)
	return false, nil
}

// need is the size of a log without what is of no use; mu must be held.
func (l *log) need() (size int64) {
	for _, k := range l.kept {
		size += int64(len(k.proven)) * recordSize
		if k.last != nil {
			size += recordSize
		}
	}
	return size
}

// renew writes the log anew and syncs it; mu must be held.
func (l *log) renew() error {
	b := make([]byte, 0, l.need())
	for _, k := range l.kept {
		for _, c := range k.proven {
			b = c.append(b)
		}
		if k.last != nil {
			b = k.last.append(b)
		}
	}
	path := filepath.Join(l.dir, newLogName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	reserve(f, max(l.least, logSlack*int64(len(b))))
	if _, err = f.Write(b); err == nil {
		err = datasync(f)
	}
	if err == nil {
		err = os.Rename(path, filepath.Join(l.dir, logName))
	}
	if err != nil {
		return errors.Join(err, f.Close(), os.Remove(path))
	}
	if l.f != nil {
		_ = l.f.Close() // nothing of it is needed any more
	}
	l.f, l.size, l.broken = f, int64(len(b)), false
	return nil
}

// sync makes the log durable. After an error it is written anew: the kernel may have dropped what it could not write.
func (l *log) sync() error {
	l.mu.Lock()
	f := l.f
	l.mu.Unlock()
	if f == nil {
		return nil
	}
	err := datasync(f)
	if err == nil {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != f { // written anew, and synced, meanwhile
		return nil
	}
	l.broken = true
	return fmt.Errorf("sync the spool's checkpoints: %w", err)
}

// prove says that the checkpoint and what it speaks of are on disk.
func (l *log) prove(c checkpoint) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := l.kept[c.job]
	if k == nil || k.last == nil { // removed meanwhile
		return
	}
	if k.last.length == c.length && k.last.crc == c.crc && k.last.epoch == c.epoch {
		k.last = nil
	}
	c.boot, c.acked = l.boot, c.length
	k.proven = []checkpoint{c}
}

// forget drops a job.
func (l *log) forget(job int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.kept, job)
}

// close leaves the log on disk.
func (l *log) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		return nil
	}
	f := l.f
	l.f = nil
	return f.Close()
}
