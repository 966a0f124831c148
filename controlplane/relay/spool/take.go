package spool

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
)

// Loss is what Take did not find of a trace.
type Loss struct {
	// Cut bytes at the file's end are not known to be the trace's.
	Cut int64
	// Acknowledged bytes are missing that had been synced: the disk has not kept what it promised.
	Acknowledged int64
}

// Take opens the file that Find returned and reads it: what is there of the trace is the longest beginning that its
// checkpoints prove, and all that follows if the kernel has not been started since it was written. The rest is cut off.
// What Synced says is known to outlive a loss of power; Commit makes that the whole.
func (s *Spool) Take(job int64) (*File, Loss, error) {
	k, ok := s.Find(job)
	if !ok {
		return nil, Loss{}, fmt.Errorf("take up the spooled trace of job %d: %w", job, os.ErrNotExist)
	}
	f, err := os.OpenFile(filepath.Join(s.dir, k.name()), os.O_RDWR, 0)
	if err != nil {
		return nil, Loss{}, fmt.Errorf("take up a spooled trace: %w", err)
	}
	file := &File{s: s, key: k, f: f}
	loss, err := file.load()
	if err != nil {
		return nil, Loss{}, errors.Join(err, f.Close())
	}
	s.forget(job)
	return file, loss, nil
}

func (f *File) load() (Loss, error) {
	info, err := f.f.Stat()
	if err != nil {
		return Loss{}, fmt.Errorf("look at a spooled trace: %w", err)
	}
	size := info.Size()
	list := f.s.log.of(f.key.Job)
	e, err := examine(f.f, list)
	if err != nil {
		return Loss{}, fmt.Errorf("read a spooled trace: %w", err)
	}
	length, crc := e.length, e.crc
	var promised int64
	if n := len(list); n > 0 {
		last := list[n-1]
		promised = last.acked
		if e.last && last.boot == f.s.log.boot && last.boot != (boot{}) {
			length, crc = e.size, e.sum
		}
	} else if f.key.old {
		length, crc = e.size, e.sum
	}
	f.crc = crc
	f.next.Store(length)
	f.length = length
	f.synced = min(length, promised)
	loss := Loss{Cut: size - length, Acknowledged: max(promised-length, 0)}
	if loss.Cut == 0 && loss.Acknowledged == 0 {
		return loss, nil
	}
	if err := f.f.Truncate(length); err != nil {
		return Loss{}, fmt.Errorf("cut a spooled trace: %w", err)
	}
	f.s.total.Add(length - size)
	f.note()
	return loss, nil
}

// examined is what a file's bytes are.
type examined struct {
	size   int64  // that could be read
	sum    uint32 // CRC of all
	length int64  // of the longest beginning that a checkpoint proves
	crc    uint32 // and its CRC
	last   bool   // the last checkpoint is proven
}

// examine reads a file and holds it against its checkpoints.
func examine(r io.ReaderAt, list []checkpoint) (examined, error) {
	at := slices.Clone(list)
	slices.SortStableFunc(at, func(a, b checkpoint) int { return int(min(max(a.length-b.length, -1), 1)) })
	var e examined
	buffer := make([]byte, 256<<10)
	for {
		for len(at) > 0 && at[0].length == e.size {
			if at[0].crc == e.sum {
				e.length, e.crc = e.size, e.sum
				e.last = e.last || at[0] == list[len(list)-1]
			}
			at = at[1:]
		}
		want := int64(len(buffer))
		if len(at) > 0 {
			want = min(want, at[0].length-e.size)
		}
		n, err := r.ReadAt(buffer[:want], e.size)
		e.sum = crc32.Update(e.sum, crc32.IEEETable, buffer[:n])
		e.size += int64(n)
		if errors.Is(err, io.EOF) && (n == 0 || len(at) == 0 || at[0].length > e.size) {
			return e, nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return e, err
		}
	}
}
