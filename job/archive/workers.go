//go:build unix

package archive

import (
	"context"
	"runtime"
	"sync"
)

// workers is how many goroutines compress or unpack: enough for the processors, but each has buffers of its own.
func workers() int { return min(runtime.GOMAXPROCS(0), 8) }

// task is a file to be written by a worker.
type task struct {
	in   *folder // let go of afterwards
	size int64
	run  func(*scratch) error
	done func() // called afterwards even if it was not run; nil if there is nothing to do
}

// A worker gets files of one folder together: two workers in one folder would wait for each other to make their files, and
// waking a worker for each small file costs as much as the file.
const (
	batchFiles   = 32
	batchBytes   = 1 << 20
	batchesAhead = 4
)

// run reads an archive with read, which gives tasks to the workers, and returns when all is done.
func (u *unpacker) run(ctx context.Context, read func(ctx context.Context) error) error {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var group sync.WaitGroup
	for range workers() {
		group.Go(func() {
			s := &scratch{}
			defer s.close()
			for batch := range u.tasks {
				for _, t := range batch {
					if ctx.Err() == nil {
						if err := t.run(s); err != nil {
							stop(err)
						}
					}
					u.finished(t)
				}
			}
		})
	}
	err := read(ctx)
	if err != nil {
		stop(err)
	}
	_ = u.flush(ctx) // only ctx ends it, and that is looked at below
	close(u.tasks)
	group.Wait()
	u.scratch.close()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if lateErr := u.finishFolders(); err == nil {
		err = lateErr
	}
	u.tree.close()
	return err
}

func (u *unpacker) finished(t task) {
	t.in.release()
	if t.done != nil {
		t.done()
	}
	u.pending.Done()
}

// later has a worker do t.
func (u *unpacker) later(ctx context.Context, t task) error {
	u.pending.Add(1)
	if len(u.batch) > 0 && u.batch[0].in != t.in {
		if err := u.flush(ctx); err != nil {
			u.finished(t)
			return err
		}
	}
	u.batch = append(u.batch, t)
	u.batched += t.size
	if len(u.batch) == batchFiles || u.batched >= batchBytes {
		return u.flush(ctx)
	}
	return nil
}

// flush gives the workers all tasks that they do not have yet.
func (u *unpacker) flush(ctx context.Context) error {
	if len(u.batch) == 0 {
		return nil
	}
	batch := u.batch
	u.batch, u.batched = nil, 0
	select {
	case u.tasks <- batch:
		return nil
	case <-ctx.Done():
		for _, t := range batch {
			u.finished(t)
		}
		return context.Cause(ctx)
	}
}
