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
