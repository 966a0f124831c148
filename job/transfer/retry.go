package transfer

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"
)

// Patience says how often, and after which pauses, what failed is tried again.
type Patience struct {
	// Tries is how many tries there are altogether, unless the error says otherwise; at least one.
	Tries int
	// Least and Most bound the pause: it begins with Least and doubles up to Most; of each, up to half is left out at random.
	Least, Most time.Duration
	// Wait pauses; it returns context.Cause(ctx) if ctx ends meanwhile. nil is Wait.
	Wait func(ctx context.Context, d time.Duration) error
}

// Do calls try with 0, 1, … until it returns anything but a *Transient error, or no try is left. again, if not nil, is told
// each error that is followed by another try. If ctx ends, its cause is returned.
func (p Patience) Do(ctx context.Context, again func(error), try func(n int) error) error {
	for n := 0; ; n++ {
		err := try(n)
		if err != nil && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		t, ok := errors.AsType[*Transient](err)
		if !ok {
			return err
		}
		if n+1 >= p.tries(t) {
			return err
		}
		if again != nil {
			again(err)
		}
		if err := p.pause(ctx, n, t.After); err != nil {
			return err
		}
	}
}

// tries is how many tries an error is worth altogether.
func (p Patience) tries(t *Transient) int {
	if t.Tries > 0 {
		return t.Tries
	}
	return p.Tries
}

// pause waits after try n.
func (p Patience) pause(ctx context.Context, n int, after time.Duration) error {
	d := p.Least
	for range n {
		d = min(2*d, p.Most)
	}
	if d > 1 {
		d -= time.Duration(rand.Int64N(int64(d / 2))) // #nosec G404 -- no secret depends on it
	}
	wait := p.Wait
	if wait == nil {
		wait = Wait
	}
	return wait(ctx, max(d, after))
}

// Wait waits for d, or returns context.Cause(ctx) when ctx ends.
func Wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
