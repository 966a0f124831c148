package agent

import (
	"fmt"

	"github.com/switchyard-ci/switchyard/agent/ledger"
)

// Spool limits what jobs' traces may take of the agent's disk. A trace is kept until the control plane has reported its
// job, which may be long after the job has ended.
type Spool struct {
	// MaxSize is the most that all traces together take, in bytes; 0: no limit. Each slot has an equal share of it, at
	// which a job's trace ends; no job is taken for which there is no share left.
	MaxSize int64
	// MinFree is how many bytes must be free on the file system of the data folder for a job to be taken; 0: see
	// datadir.Dir.Room.
	MinFree int64
}

// leastShare is the least of MaxSize that a slot is to have.
const leastShare = 1 << 20

func (s Spool) check(slots int) error {
	switch {
	case s.MaxSize < 0 || s.MinFree < 0:
		return fmt.Errorf("spool: max_size is %d, min_free %d: neither may be negative", s.MaxSize, s.MinFree)
	case s.MaxSize > 0 && s.share(slots) < leastShare:
		return fmt.Errorf("spool.max_size is %d bytes for %d slots: give each at least 1 MiB", s.MaxSize, slots)
	}
	return nil
}

// share is what one job's trace may take; 0: as much as it likes.
func (s Spool) share(slots int) int64 { return s.MaxSize / int64(slots) }

// spoolRoom says why the trace of another job does not fit in.
func (l *loop) spoolRoom() error {
	running, ended := 0, int64(0)
	for ref, job := range l.jobs {
		if l.ledger.Phase(ref) >= ledger.Finished {
			ended += job.TraceLength()
		} else {
			running++
		}
	}
	return l.config.Spool.room(l.config.Slots, running, ended)
}

// room says why there is no share left beside the traces of the jobs that are held: what runs may take all of its share,
// what has ended takes what it has.
func (s Spool) room(slots, running int, ended int64) error {
	if s.MaxSize == 0 {
		return nil
	}
	if reserved := int64(running) * s.share(slots); ended > 0 && ended+reserved+s.share(slots) > s.MaxSize {
		return fmt.Errorf("the spool has no room for another job's trace: %d MiB are taken by jobs that are not reported yet and %d MiB reserved for those that run, of spool.max_size (%d MiB)",
			ended>>20, reserved>>20, s.MaxSize>>20)
	}
	return nil
}
