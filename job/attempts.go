//go:build unix

package job

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// attempt runs a stage up to the given number of times, until it succeeds. between, unless nil, comes before the second
// attempt; if it fails it takes that attempt's place.
func (j *Job) attempt(ctx context.Context, attempts int, between, run func() error) error {
	var err error
	for n := range attempts {
		if n == 1 && between != nil {
			if err = between(); err != nil {
				continue
			}
		}
		if err = run(); err == nil || ctx.Err() != nil || n == attempts-1 {
			return err
		}
		if !j.settings.backOff {
			continue
		}
		wait := retryDelay(n)
		j.out.info(fmt.Sprintf("Retrying in %v", wait.Round(time.Millisecond)))
		j.out.flush()
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
	return err
}

// retryDelay grows from 5 s by half each time up to 5 min, and is shortened by up to half at random.
func retryDelay(attempt int) time.Duration {
	d := 5 * time.Second
	for range attempt {
		d = min(d*3/2, 5*time.Minute)
	}
	return d - time.Duration(rand.Int64N(int64(d/2))) // #nosec G404 -- no secret depends on it
}
