package relay

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// agent sends one job's trace as agents do: below the limit, from where it is told, and everything once more when it has
// lost its stream.
type agent struct {
	job      int64
	trace    []byte
	grown    int // bytes that exist so far
	sent     int64
	limit    int64
	stopped  bool
	finished bool
}

func (a *agent) hear(p Progress) {
	switch p.Verdict {
	case Stop:
		a.stopped = true
	case Resend:
		a.sent, a.limit = p.Received, p.Received+firstWindow
	}
	a.limit = max(a.limit, p.Limit)
}

// reconnect begins a new stream.
func (a *agent) reconnect(p Progress) {
	a.sent, a.limit = p.Received, p.Received+firstWindow
	a.hear(p)
}

func (a *agent) send(b *bench, rng *rand.Rand) {
	n := min(int64(1+rng.IntN(60<<10)), int64(a.grown)-a.sent, a.limit-a.sent)
	if a.stopped || n <= 0 {
		return
	}
	p := b.r.Append(a.job, 1, a.sent, a.trace[a.sent:a.sent+n])
	if rng.IntN(20) != 0 { // else the frame comes twice
		a.sent += n
	}
	if p.Tell {
		a.hear(p)
	}
}

// Whatever happens to agents, control plane and GitLab: every trace arrives whole and once.
func TestEveryTraceArrivesWholeWhateverHappens(t *testing.T) {
	for seed := range uint64(12) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { chaos(t, rand.New(rand.NewPCG(seed, 1))) })
		})
	}
}

func chaos(t *testing.T, rng *rand.Rand) {
	b := newBench(t, func(o *Options) {
		o.Window = 100 << 10
		o.Concurrency = 1 + rng.IntN(3)
		if rng.IntN(2) == 0 {
			o.MaxBytes = 700 << 10
		}
	})
	faults := rand.New(rand.NewPCG(rng.Uint64(), 2))
	trouble := true
	b.gitlab.fault = func(ctx context.Context, c call) *answer {
		b.gitlab.mu.Lock()
		roll, down, on := faults.IntN(30), 500+faults.IntN(5), trouble
		pause := time.Duration(faults.IntN(3000)) * time.Millisecond
		if j := b.gitlab.job(c.job); on && roll == 0 && c.state == "" && j.result == nil {
			j.trace = nil // GitLab has lost it
		}
		if on && roll == 9 {
			b.gitlab.interval = time.Duration(1+faults.IntN(60)) * time.Second
		}
		b.gitlab.mu.Unlock()
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
		if !on {
			return nil
		}
		switch roll {
		case 1, 2, 3:
			return &answer{err: errNoAnswer, drop: true}
		case 4:
			return &answer{err: errNoAnswer}
		case 5:
			return code(down, "")
		case 6:
			return &answer{PatchResult: client.PatchResult{Report: client.Report{Code: 429, RetryAfter: 5 * time.Second}, Range: -1}}
		case 7:
			return code(409, "")
		case 8:
			return code(404, "")
		}
		return nil
	}

	heard := make(chan func(), 10_000)
	agents := make([]*agent, 6)
	b.events.on = func(job int64, p Progress) { heard <- func() { agents[job-1].hear(p) } }
	for i := range agents {
		agents[i] = &agent{job: int64(i + 1), trace: pattern(rng.IntN(600 << 10)), limit: firstWindow}
		b.open(agents[i].job)
	}
	forgotten := make(map[int64]bool)
	for step := 0; len(forgotten) < len(agents); step++ {
		require.Less(t, step, 100_000, "it must end; at its end are %v", forgotten)
		if step > 3000 {
			b.gitlab.set(func() { trouble = false })
		}
		for len(heard) > 0 {
			(<-heard)()
		}
		a := agents[rng.IntN(len(agents))]
		switch roll := rng.IntN(100); {
		case roll < 60:
			a.grown = min(a.grown+rng.IntN(50<<10), len(a.trace))
			a.send(b, rng)
		case roll < 65 && a.grown == len(a.trace) && !a.finished:
			a.finished = true
			b.finish(a.job, a.trace)
		case roll < 68:
			a.reconnect(b.r.Progress(a.job, 1))
		case roll < 98:
			pass(time.Duration(rng.IntN(500)) * time.Millisecond)
		case roll == 98 && trouble:
			b.restart()
			for _, a := range agents {
				if forgotten[a.job] {
					continue
				}
				a.reconnect(b.open(a.job))
				if a.finished {
					b.finish(a.job, a.trace)
				}
			}
		}
		for _, a := range agents {
			if !forgotten[a.job] && b.events.ended(a.job) {
				forgotten[a.job], a.stopped = true, true
				b.r.Forget(a.job)
			}
		}
	}
	for _, a := range agents {
		require.Equal(t, OutcomeAccepted, b.events.outcome(t, a.job))
		b.gitlab.requireTrace(t, a.job, a.trace)
	}
	require.Empty(t, b.files())
	require.Zero(t, b.r.Bytes())
	require.Empty(t, b.events.status(1))
	require.Equal(t, runnerapi.StateSuccess, b.gitlab.job(1).status)
}
