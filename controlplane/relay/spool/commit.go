package spool

import (
	"fmt"
	"sync"
)

// syncsAtOnce is the number of files that are synced at the same time; the file system makes one commit of them.
const syncsAtOnce = 8

// Mark is what there was of a file at one time.
type Mark struct {
	file    *File
	length  int64
	crc     uint32
	rewinds int
}

// Mark is for Commit: the file's first length bytes, whose CRC-32 is crc. Rewind and Restore make it void.
func (f *File) Mark(length int64, crc uint32) Mark {
	f.mu.Lock()
	defer f.mu.Unlock()
	return Mark{file: f, length: length, crc: crc, rewinds: f.rewinds}
}

// Length is the number of bytes.
func (m Mark) Length() int64 { return m.length }

// Commit makes the marked bytes outlive a loss of power; where the error at the mark's index is nil they do. Calls must
// not be concurrent; everything else may be.
//
// The records are written before the bytes that they prove are synced, and synced together with them: one that is there
// without its bytes proves nothing. So a group costs the time of one sync.
func (s *Spool) Commit(marks []Mark) []error {
	errs := make([]error, len(marks))
	if len(marks) == 0 {
		return errs
	}
	list := make([]checkpoint, len(marks))
	for i, m := range marks {
		list[i] = checkpoint{job: m.file.key.Job, epoch: m.file.key.Epoch, length: m.length, crc: m.crc, acked: m.file.Synced()}
	}
	renewed, err := s.log.append(list)
	if renewed {
		s.newNames.Store(true)
	}
	err = s.failed("write the spool's checkpoints", err)
	var logged error
	each(len(marks)+1, syncsAtOnce, func(i int) {
		switch {
		case i < len(marks):
			errs[i] = marks[i].file.sync()
		case err == nil:
			logged = s.log.sync()
		}
	})
	if err == nil {
		err = logged
	}
	if err == nil {
		err = s.syncNames()
	}
	for i, m := range marks {
		if errs[i] == nil {
			errs[i] = err
		}
		if errs[i] == nil {
			m.file.prove(m, list[i])
		}
	}
	return errs
}

// prove says that a mark is on disk.
func (f *File) prove(m Mark, c checkpoint) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rewinds == m.rewinds {
		f.synced = max(f.synced, m.length)
		f.s.log.prove(c)
	}
}

// each calls f for [0, n), at most limit at once.
func each(n, limit int, f func(i int)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, limit)
	for i := range n {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	wg.Wait()
}

// syncNames makes the names of new files durable. The files' own sync does not do that.
func (s *Spool) syncNames() error {
	if !s.newNames.Swap(false) {
		return nil
	}
	err := syncDir(s.dir)
	if err != nil {
		s.newNames.Store(true)
		return fmt.Errorf("sync the spool's folder: %w", err)
	}
	return nil
}
