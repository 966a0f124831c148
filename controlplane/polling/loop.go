package polling

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// loop is a poller at work. Its fields belong to the goroutine of Run; the requests run in goroutines of their own, which
// report by events.
type loop struct {
	poller *Poller
	o      *Options
	m      *machine

	running     context.Context // ends with Run's
	work        context.Context // ends when the shutdown's grace is over
	dropReserve context.CancelFunc
	cancelWatch context.CancelCauseFunc
	events      chan func(now time.Time)
	wg          sync.WaitGroup

	problem     *problem
	lastError   string
	lastErrorAt time.Time
	lastContact time.Time
	lastJob     time.Time
	lastEmpty   time.Time
	claiming    []time.Time // when the claims in flight were sent, oldest first
	counters    Counters
	lost        []error
}

// act carries the machine's plan out and returns when to ask it again; zero: after the next event.
func (l *loop) act(now time.Time) time.Time {
	slots := l.o.Slots()
	p := l.m.plan(now, slots)
	if p.dropReserve {
		l.dropReserve()
	}
	if p.cancelWatch {
		l.cancelWatch(errWatchDropped)
	}
	if p.verify {
		l.m.verifySent()
		l.counters.Verifies++
		l.wg.Go(l.verify)
	}
	if p.reserve {
		var ctx context.Context
		ctx, l.dropReserve = context.WithCancel(l.work)
		l.m.reserveStarted()
		l.wg.Go(func() { l.reserve(ctx) })
	}
	if p.watch {
		cursor, limit := l.m.watchSent(now)
		var ctx context.Context
		ctx, l.cancelWatch = context.WithCancelCause(l.work)
		l.counters.Watches++
		l.wg.Go(func() { l.watch(ctx, cursor, limit) })
	}
	return p.wake
}

var (
	errWatchDropped = errors.New("the watch is of no use any more")
	errWatchTooLong = errors.New("the watch lasted too long")
)

// reserve waits for a slot and sends a claim with it.
func (l *loop) reserve(ctx context.Context) {
	r, err := l.slot(ctx)
	l.events <- func(now time.Time) {
		dropped := ctx.Err() != nil
		l.dropReserve()
		switch {
		case err == nil:
			if !l.m.reserveEnded(now, l.o.Slots(), !dropped) {
				l.wg.Go(r.Release)
				return
			}
			cursor := l.m.claimSent(now)
			l.counters.Claims++
			l.claiming = append(l.claiming, now)
			l.wg.Go(func() { l.claim(r, cursor, now) })
		case dropped:
			l.m.reserveEnded(now, l.o.Slots(), false)
		default:
			l.m.reserveFailed(now)
			l.failed(now, answer{kind: failed}, fmt.Errorf("wait for a slot: %w", err))
		}
	}
}

func (l *loop) slot(ctx context.Context) (Reservation, error) {
	if b := l.o.Budget; b != nil {
		if err := b.limiter.Wait(ctx); err != nil {
			return nil, fmt.Errorf("wait for the budget of this GitLab: %w", err)
		}
	}
	return l.o.Dispatcher.Reserve(ctx, l.o.Runner)
}

func (l *loop) request(cursor string) runnerapi.JobRequest {
	return runnerapi.JobRequest{Info: l.o.Info(), Token: l.o.Token(), SystemID: l.o.SystemID, LastUpdate: cursor}
}

// unlessSuperseded takes a refusal of a token that the runner no longer has for an answer that says nothing.
func (l *loop) unlessSuperseded(ctx context.Context, a answer, err error, token string) (answer, error) {
	if a.kind != refused || !l.o.Superseded(ctx, token) {
		return a, err
	}
	return answer{kind: abandoned, sent: a.sent, held: a.held}, nil
}

// slotPatience is how long a claim keeps its slot without an answer. GitLab answers claims at once; one that hangs is no
// reason to keep the runners of another GitLab waiting.
const slotPatience = 15 * time.Second

// claim asks for a job that has a slot. Nothing but the end of the shutdown's grace cancels it. A job that comes so late
// that its slot was given back is kept like one that a watch brought.
func (l *loop) claim(r Reservation, cursor string, sent time.Time) {
	request := l.request(cursor)
	start := time.Now()
	late := time.AfterFunc(slotPatience, r.Release)
	result, err := l.o.Client.RequestJob(l.work, request, client.LaneClaim)
	a := answerOf(result, err, cursor, time.Since(start))
	if !late.Stop() {
		r = nil
	}
	if a.kind != job && r != nil {
		r.Release() // before the event: whoever waits for the slot may have it
	}
	a, err = l.unlessSuperseded(l.work, a, err, request.Token)
	l.events <- func(now time.Time) {
		a.old = request.Token != l.o.Token()
		i := slices.Index(l.claiming, sent)
		l.claiming = slices.Delete(l.claiming, i, i+1)
		l.m.claimAnswered(now, a)
		switch a.kind {
		case job:
			l.counters.Jobs++
			l.lastJob = now
		case none:
			l.counters.Empty++
			l.lastEmpty = now
		}
		l.answered(now, a, err)
		if err != nil && l.work.Err() != nil {
			l.lost = append(l.lost, fmt.Errorf("runner %s: a claim was not answered, its job may be lost: %w", l.o.Runner, err))
		}
	}
	if a.kind == job {
		l.save(r, claimOf(request, result))
	}
}

// watch waits for a change.
func (l *loop) watch(ctx context.Context, cursor string, limit time.Duration) {
	timed, cancel := context.WithTimeoutCause(ctx, limit, errWatchTooLong)
	defer cancel()
	request := l.request(cursor)
	start := time.Now()
	result, err := l.o.Client.RequestJob(timed, request, client.LaneWatch)
	a := answerOf(result, err, cursor, time.Since(start))
	if err != nil && timed.Err() != nil {
		a, err = answer{kind: abandoned, sent: cursor, held: a.held}, nil
	}
	a, err = l.unlessSuperseded(l.work, a, err, request.Token)
	l.events <- func(now time.Time) {
		l.cancelWatch(nil)
		a.old = request.Token != l.o.Token()
		l.m.watchAnswered(now, a)
		switch a.kind {
		case job:
			l.counters.WatchJobs++
			l.lastJob = now
		case none:
			l.lastEmpty = now
		}
		l.answered(now, a, watchError(err, a.held))
	}
	if a.kind == job {
		l.save(nil, claimOf(request, result))
	}
}

// verify is the first request of all, and the sign of life of a runner that has nothing else to say.
func (l *loop) verify() {
	token := l.o.Token()
	_, err := l.o.Client.Verify(l.running, runnerapi.VerifyRequest{Info: l.o.Info(), Token: token, SystemID: l.o.SystemID})
	a, err := l.unlessSuperseded(l.running, answerOfVerify(err), err, token)
	switch {
	case a.kind == none, a.kind == abandoned:
		err = nil
	case l.running.Err() != nil:
		a, err = answer{kind: abandoned}, nil
	}
	l.events <- func(now time.Time) {
		l.m.verifyAnswered(now, a)
		l.answered(now, a, err)
	}
}

// Pauses between attempts to persist a job.
const (
	saveDelay    = 100 * time.Millisecond
	maxSaveDelay = 5 * time.Second
)

// save hands a job to the dispatcher and does not give up before the shutdown's grace is over: GitLab has given the job
// away, this is the only place that knows of it.
func (l *loop) save(r Reservation, c Claim) {
	failures := 0
	for {
		err := l.o.Dispatcher.Claimed(l.work, l.o.Runner, r, c)
		if err == nil {
			break
		}
		err = fmt.Errorf("keep job %d of GitLab: %w", c.Envelope.ID, err)
		failures++
		first := failures == 1
		if l.work.Err() != nil {
			if r != nil {
				r.Release()
			}
			l.events <- func(time.Time) {
				l.m.saved(!first)
				l.lost = append(l.lost, fmt.Errorf("runner %s: job %d is lost: %w", l.o.Runner, c.Envelope.ID, err))
			}
			return
		}
		l.events <- func(now time.Time) {
			if first {
				l.m.saveFailed()
			}
			l.notSaved(now, err)
		}
		pause := time.NewTimer(spread(doubled(saveDelay, failures, maxSaveDelay), 0.5, l.m.dice))
		select {
		case <-pause.C:
		case <-l.work.Done():
			pause.Stop()
		}
	}
	l.events <- func(now time.Time) {
		l.m.saved(failures > 0)
		l.savedAgain(now)
	}
}

func claimOf(request runnerapi.JobRequest, result *client.RequestResult) Claim {
	return Claim{
		Payload:         result.Payload,
		Envelope:        result.Envelope,
		ServerCA:        result.ServerCA,
		TwoPhaseOffered: request.Info.Features.TwoPhaseJobCommit,
		CorrelationID:   result.CorrelationID,
		ReceivedAt:      time.Now(),
	}
}
