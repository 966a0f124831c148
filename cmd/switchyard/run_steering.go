package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/localfleet"
)

// steering ends a pipeline early: for the user, for the time, or because nobody reads the output any more.
type steering struct {
	signals chan os.Signal
	unread  chan struct{}

	// leave ends the program at once, with everything tidied up: for a user who has asked three times.
	leave func()

	// For after run has returned.
	interrupted, timedOut, deaf bool
}

func newSteering() *steering {
	s := &steering{signals: make(chan os.Signal, 8), unread: make(chan struct{}, 1)}
	// A broken pipe would end the process at once, and leave the jobs behind: the write's error is enough.
	signal.Notify(s.signals, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	return s
}

func (s *steering) stop() { signal.Stop(s.signals) }

// nobodyReads says that the output cannot be written.
func (s *steering) nobodyReads() { s.unread <- struct{}{} }

const (
	sayCanceling = "canceling: jobs that run do their after_script; Ctrl-C again kills them"
	sayKilling   = "killing the jobs"
	sayTimeout   = "the time is over (--timeout): " + sayCanceling
)

// run acts on what happens until ctx ends. Its error ends the pipeline.
func (s *steering) run(ctx context.Context, fleet *localfleet.Fleet, pipeline int64, timeout time.Duration, say func(string)) error {
	var over <-chan time.Time
	if timeout > 0 {
		timer := time.NewTimer(timeout)
		defer timer.Stop()
		over = timer.C
	}
	// What is said may have to wait for a reader. Nothing else does.
	notices := make(chan string, 3)
	said := make(chan struct{})
	go func() {
		defer close(said)
		for n := range notices {
			say(n)
		}
	}()
	defer func() {
		close(notices)
		<-said
	}()
	for level := 0; ; {
		notice := sayCanceling
		select {
		case <-ctx.Done():
			return nil
		case <-fleet.Failed():
			return fleet.Err()
		case sig := <-s.signals:
			if sig == syscall.SIGPIPE {
				continue
			}
			s.interrupted = true
		case <-s.unread:
			s.deaf = true
			if level > 0 {
				continue // a terminal that is closed sends a signal, too
			}
		case <-over:
			s.timedOut, notice = true, sayTimeout
			if level > 0 {
				continue
			}
		}
		switch level++; level {
		case 2:
			notice = sayKilling
		case 3:
			s.leave()
		}
		if err := fleet.Cancel(pipeline, level >= 2); err != nil {
			return err
		}
		select {
		case notices <- notice:
		default: // enough is waiting
		}
	}
}

var errUnread = errors.New("the output cannot be written: its reader has gone")

// verdict is what the command returns for how the pipeline ended.
func (s *steering) verdict(p coordinator.Pipeline) error {
	switch {
	case s.deaf:
		return errUnread
	case p.Status == "success", p.Status == "skipped" && !s.interrupted, p.Status == "manual" && !s.interrupted:
		return nil
	case s.interrupted:
		return &exitError{Code: exitInterrupted}
	case s.timedOut:
		return &exitError{Code: exitFailed, Err: errors.New("the pipeline was canceled: its time (--timeout) was over")}
	}
	return &exitError{Code: exitFailed}
}
