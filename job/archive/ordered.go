//go:build unix

package archive

import (
	"context"
	"sync"
)

// ordered is a pipeline: give makes items, work is done on several of them at once, take gets them in the order that give
// made them. Of each item that put accepted, exactly one of take and drop is called, by one goroutine, after its work.
type ordered[T any] struct {
	workers int
	ahead   int // items between give and take
	give    func(ctx context.Context, put func(T) error) error
	work    func(ctx context.Context, item T) error
	take    func(item T) error
	drop    func(item T)
}

// run returns when give has returned, all items are taken or dropped and nothing runs any more. The first error ends it.
func (o ordered[T]) run(ctx context.Context) error {
	type slot struct {
		item T
		done chan struct{}
	}
	todo, order := make(chan slot, o.ahead), make(chan slot, o.ahead)
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var group sync.WaitGroup
	group.Go(func() {
		defer close(todo)
		defer close(order)
		err := o.give(ctx, func(item T) error {
			s := slot{item, make(chan struct{})}
			select {
			case <-ctx.Done():
				o.drop(item)
				return context.Cause(ctx)
			case order <- s:
			}
			select {
			case <-ctx.Done():
				close(s.done)
			case todo <- s:
			}
			return nil
		})
		if err != nil {
			stop(err)
		}
	})
	for range o.workers {
		group.Go(func() {
			for s := range todo {
				if ctx.Err() == nil {
					if err := o.work(ctx, s.item); err != nil {
						stop(err)
					}
				}
				close(s.done)
			}
		})
	}
	for s := range order {
		<-s.done
		if ctx.Err() != nil {
			o.drop(s.item)
		} else if err := o.take(s.item); err != nil {
			stop(err)
		}
	}
	group.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return nil
}

// buffers are byte slices of a few sizes that are used again.
type buffers struct{ pools [9]sync.Pool }

const smallestBuffer = 4 << 10

// class returns the size of the buffer for n bytes, and which pool has it.
func (b *buffers) class(n int) (size, pool int) {
	size = smallestBuffer
	for size < n && pool < len(b.pools)-1 {
		size, pool = size*2, pool+1
	}
	return max(size, n), pool
}

// get returns a buffer of n bytes length.
func (b *buffers) get(n int) []byte {
	size, pool := b.class(n)
	if p, ok := b.pools[pool].Get().(*[]byte); ok && cap(*p) >= size {
		return (*p)[:n]
	}
	return make([]byte, n, size)
}

// put takes a buffer back. A nil one is none.
func (b *buffers) put(p []byte) {
	size, pool := b.class(cap(p))
	if cap(p) == size && p != nil {
		b.pools[pool].Put(&p)
	}
}
