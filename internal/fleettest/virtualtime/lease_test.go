package virtualtime

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/dispatch"
)

// plan is one course of events, drawn from a seed.
type plan struct {
	period, delay time.Duration
	phase         time.Duration // from the job's start to the cut
	cut           direction
	short, long   time.Duration // S of two runners
	drift         float64       // by which the agent's clock is slow
	grace, slow   time.Duration
	deaf          bool
	heals         bool // before the leases are over
}

func draw(seed uint64) plan {
	d := rand.New(rand.NewPCG(seed, 1))
	between := func(least, most time.Duration) time.Duration {
		return least + time.Duration(d.Int64N(int64(most-least)))
	}
	p := plan{
		period: between(time.Second, 25*time.Second), delay: between(0, 300*time.Millisecond),
		cut: []direction{up, down, both}[d.IntN(3)], drift: (2*d.Float64() - 1) / 1000,
		short: between(3*time.Minute, 10*time.Minute), grace: between(time.Second, 30*time.Second), deaf: d.IntN(3) == 0, heals: d.IntN(4) == 0,
	}
	p.phase = between(0, 5*p.period)
	p.long = p.short + between(2*time.Minute, time.Hour)
	p.slow = between(0, p.grace)
	return p
}

// lostAfter is the shortest that a runner's lease may have; see package config.
func lostAfter(stopAfter time.Duration) time.Duration {
	return stopAfter + 50*time.Second + stopAfter/1000
}

// An agent that is cut off, in one direction or both and at any moment, stops each of its jobs at the end of the job's own
// lease, counted from the sending of the last ping that was answered; the control plane reports a job only when it does
// not run any more, also if the job has to be killed and the agent's clock is slow; and an agent that is back in time
// has stopped nothing.
func TestAJobStopsBeforeItsLossIsReported(t *testing.T) {
	courses := 40
	if testing.Short() {
		courses = 20
	}
	for seed := range uint64(courses) {
		p := draw(seed)
		t.Run(fmt.Sprintf("%d", seed), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { course(t, p) })
		})
	}
}

func course(t *testing.T, p plan) {
	t.Helper()
	// A slow clock counts a second more than a thousand: what the agent takes for S is longer.
	slow := func(s time.Duration) time.Duration { return s + time.Duration(float64(s)*p.drift) }
	f := start(t, options{
		period: p.period, delay: p.delay, grace: p.grace, slow: p.slow, deaf: p.deaf,
		runners: []dispatch.Runner{
			{Name: "short", StopAfter: slow(p.short), LostAfter: lostAfter(p.short)},
			{Name: "long", StopAfter: slow(p.long), LostAfter: lostAfter(p.long)},
		},
	})
	defer f.stop()
	jobs := []struct {
		id        int64
		stopAfter time.Duration
		lostAfter time.Duration
	}{
		{f.claim("short"), slow(p.short), lostAfter(p.short)},
		{f.claim("long"), slow(p.long), lostAfter(p.long)},
	}
	f.pass(p.phase)
	cutAt := time.Now()
	f.net.set(p.cut)
	if p.heals {
		f.pass(p.short - 2*time.Minute) // dialling takes up to a minute by itself
		f.net.set(0)
		f.pass(p.long + time.Hour)
		for _, j := range jobs {
			told, _ := f.place.times(j.id)
			require.Zero(t, told, "%+v: an agent that is back in time stops nothing", p)
			require.Empty(t, f.gitlab.ended(j.id))
		}
		return
	}
	trip := 8 * p.delay // what a ping and its answer take at most, each in several pieces
	for _, j := range jobs {
		f.untilAt(cutAt.Add(j.lostAfter+p.period+trip+time.Minute), func() bool { return len(f.gitlab.ended(j.id)) > 0 })
		told, stopped := f.place.times(j.id)
		end := f.gitlab.ended(j.id)[0]
		require.False(t, stopped.IsZero(), "%+v: job %d runs when GitLab hears of its end", p, j.id)
		require.True(t, stopped.Before(end.at), "%+v: stopped at %s, reported at %s", p, stopped, end.at)
		require.WithinRange(t, told, cutAt.Add(j.stopAfter-p.period-trip), cutAt.Add(j.stopAfter), "%+v", p)
		// The control plane counts from the last word that it heard: with only its own words lost it hears pings for two
		// periods more.
		require.WithinRange(t, end.at, cutAt.Add(j.lostAfter-p.period-trip), cutAt.Add(j.lostAfter+2*p.period+trip+time.Second), "%+v", p)
		require.EqualValues(t, "runner_system_failure", end.update.FailureReason)
		require.Contains(t, f.gitlab.trace(j.id), "agent agent-one was lost: nothing was heard of it since 2000-01-01T")
	}
	f.net.set(0)
	f.until(f.online)
	f.pass(10 * time.Minute)
	for _, j := range jobs {
		require.Len(t, f.gitlab.ended(j.id), 1, "a job ends once")
	}
}
