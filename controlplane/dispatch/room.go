package dispatch

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

const (
	// roomCheck is how often a full disk is looked at: nobody tells when it has room again.
	roomCheck = 2 * time.Second
	// storeCheck is how long nothing is claimed after the store's disk was full, unless a write has succeeded since. What
	// could not be written is tried again all the time, at least each retryMost; where nothing is left to be tried the next
	// claim finds out.
	storeCheck = time.Minute
)

// room remembers that the store's disk is full.
type room struct {
	mu   sync.Mutex
	err  error
	till time.Time
}

// stored takes in how a write to the store ended. It returns err.
func (d *Dispatcher) stored(err error) error {
	full := errors.Is(err, store.ErrFull)
	if err != nil && !full {
		return err
	}
	r := &d.room
	r.mu.Lock()
	was := r.err
	r.err, r.till = err, time.Time{}
	if full {
		r.till = time.Now().Add(storeCheck)
	}
	r.mu.Unlock()
	switch {
	case full && was == nil:
		d.log.Error("claiming nothing until the store's disk has room; jobs that run go on and are reported", "error", err)
	case !full && was != nil:
		d.log.Info("the store's disk has room again: claiming")
	}
	return err
}

// Full returns why nothing is claimed because jobs could not be kept - for want of room on a disk, or because the store is
// away: what is claimed then is lost if another control plane takes over - or nil.
func (d *Dispatcher) Full() error {
	if d.cfg.StoreAway != nil {
		if err := d.cfg.StoreAway(); err != nil {
			return err
		}
	}
	if err := d.relay.Err(); err != nil {
		return err
	}
	d.room.mu.Lock()
	defer d.room.mu.Unlock()
	if d.room.err != nil && time.Now().Before(d.room.till) {
		return d.room.err
	}
	return nil
}

// awaitRoom returns when there is room for another job, or with the context's error.
func (d *Dispatcher) awaitRoom(ctx context.Context) error {
	for d.Full() != nil {
		select {
		case <-time.After(roomCheck/2 + rand.N(roomCheck)):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
