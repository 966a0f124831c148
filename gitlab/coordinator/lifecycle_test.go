package coordinator

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

func statuses(p Pipeline) string {
	var list []string
	for _, j := range p.Jobs {
		list = append(list, j.Name+":"+j.Status)
	}
	return p.Status + " " + strings.Join(list, " ")
}

func (s *server) pipeline(id int64) Pipeline {
	s.t.Helper()
	p, err := s.Pipeline(id)
	require.NoError(s.t, err)
	return p
}

func needing(names ...string) []ciconfig.Need {
	var list []ciconfig.Need
	for _, n := range names {
		list = append(list, ciconfig.Need{Job: n})
	}
	return list
}

func TestStagesNeedsAndAllowedFailures(t *testing.T) {
	s := newServer(t, Options{})
	p, r := s.project("g/p"), s.runner()
	run := s.run(p,
		ciconfig.Job{Name: "a", Stage: "build"},
		ciconfig.Job{Name: "lint", Stage: "build", AllowFailure: true},
		ciconfig.Job{Name: "b", Stage: "test", NeedsDeclared: true, Needs: needing("a")},
		ciconfig.Job{Name: "c", Stage: "test"},
		ciconfig.Job{Name: "alarm", Stage: "after", When: ciconfig.OnFailure},
	)
	require.Equal(t, "pending a:pending lint:pending b:created c:created alarm:created", statuses(run))
	a, lint := s.claim(r), s.claim(r)
	require.Equal(t, "running a:running lint:running b:created c:created alarm:created", statuses(s.pipeline(run.ID)))
	s.finish(a, "success")
	require.Equal(t, "running a:success lint:running b:pending c:created alarm:created", statuses(s.pipeline(run.ID)))
	s.finish(lint, "failed")
	require.Equal(t, "running a:success lint:failed b:pending c:pending alarm:created", statuses(s.pipeline(run.ID)))
	s.finish(s.claim(r), "success")
	s.finish(s.claim(r), "failed")
	s.finish(s.claim(r), "success")
	require.Equal(t, "failed a:success lint:failed b:success c:failed alarm:success", statuses(s.pipeline(run.ID)))
}

func TestManualJobs(t *testing.T) {
	s := newServer(t, Options{})
	p, r := s.project("g/p"), s.runner()
	run := s.run(p,
		ciconfig.Job{Name: "gate", Stage: "build", When: ciconfig.Manual},
		ciconfig.Job{Name: "b", Stage: "test"},
	)
	blocked, err := s.Wait(t.Context(), run.ID)
	require.NoError(t, err)
	require.True(t, blocked.Blocked())
	require.False(t, blocked.Finished())
	require.Equal(t, 204, s.request(r, nil).Code)
	_, err = s.Play(run.Jobs[1].ID)
	require.EqualError(t, err, `job "b" cannot be played: its status is created, not manual or scheduled`)
	_, err = s.Play(run.Jobs[0].ID)
	require.NoError(t, err)
	s.finish(s.claim(r), "success")
	s.finish(s.claim(r), "success")
	end, err := s.Wait(t.Context(), run.ID)
	require.NoError(t, err)
	require.True(t, end.Finished())
	require.Equal(t, "success gate:success b:success", statuses(end))
	_, err = s.Play(99)
	require.ErrorIs(t, err, ErrNotFound)
}

func TestDelayedJobs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newServer(t, Options{})
		p, r := s.project("g/p"), s.runner()
		value := s.request(r, nil).Header().Get(lastUpdate)
		run := s.run(p,
			ciconfig.Job{Name: "late", When: ciconfig.Delayed, StartIn: 30 * time.Minute},
			ciconfig.Job{Name: "later", When: ciconfig.Delayed, StartIn: time.Hour},
		)
		require.Equal(t, time.Now().Add(30*time.Minute), s.job(run.Jobs[0].ID).ScheduledAt)
		_, err := s.Play(run.Jobs[1].ID)
		require.NoError(t, err)
		s.finish(s.claim(r), "success")
		pass(30*time.Minute - 1)
		synctest.Wait()
		require.Equal(t, "scheduled late:scheduled later:success", statuses(s.pipeline(run.ID)))
		pass(1)
		synctest.Wait()
		require.Equal(t, "running late:pending later:success", statuses(s.pipeline(run.ID)))
		require.Zero(t, s.job(run.Jobs[0].ID).ScheduledAt)
		require.NotEqual(t, 204, s.request(r, obj{"last_update": value}).Code)
		pass(2 * time.Hour)
		synctest.Wait()
		require.Equal(t, "success", s.job(run.Jobs[1].ID).Status, "the timer of a job that was played does nothing")
	})
}

func TestRetry(t *testing.T) {
	s := newServer(t, Options{})
	p, r := s.project("g/p"), s.runner()
	run := s.run(p,
		ciconfig.Job{Name: "a", Stage: "build", Tags: []string{}},
		ciconfig.Job{Name: "b", Stage: "test"},
	)
	first := s.claim(r)
	require.Equal(t, 202, s.patch(first, "0-2", "one").Code)
	s.finish(first, "failed")
	require.Equal(t, "failed a:failed b:skipped", statuses(s.pipeline(run.ID)))
	again, err := s.Retry(first.ID)
	require.NoError(t, err)
	require.Equal(t, "pending", again.Status)
	require.Equal(t, 2, again.Attempt)
	require.Greater(t, again.ID, first.ID)
	require.True(t, s.job(first.ID).Retried)
	require.Equal(t, "running a:pending b:created", statuses(s.pipeline(run.ID)))
	_, err = s.Retry(first.ID)
	require.EqualError(t, err, fmt.Sprintf("job %d has been retried: its present attempt is job %d", first.ID, again.ID))
	_, err = s.Retry(again.ID)
	require.ErrorContains(t, err, "cannot be retried")
	second := s.claim(r)
	require.Equal(t, again.ID, second.ID)
	require.NotEqual(t, first.Token, second.Token)
	require.Equal(t, 202, s.patch(second, "0-2", "two").Code)
	s.finish(second, "success")
	s.finish(s.claim(r), "success")
	end := s.pipeline(run.ID)
	require.Equal(t, "success a:success b:success", statuses(end))
	require.Len(t, end.Retried, 1)
	require.Equal(t, "one", s.trace(first))
	require.Equal(t, "two", s.trace(second))
	_, err = s.Retry(99)
	require.ErrorIs(t, err, ErrNotFound)
}

func TestRetryOfAPipeline(t *testing.T) {
	s := newServer(t, Options{})
	p, r := s.project("g/p"), s.runner()
	run := s.run(p,
		ciconfig.Job{Name: "a", Stage: "build"},
		ciconfig.Job{Name: "m", Stage: "test", When: ciconfig.Manual, AllowFailure: true},
		ciconfig.Job{Name: "b", Stage: "test"},
	)
	s.finish(s.claim(r), "success")
	_, err := s.Play(run.Jobs[1].ID)
	require.NoError(t, err)
	s.finish(s.claim(r), "failed")
	s.finish(s.claim(r), "failed")
	require.Equal(t, "failed a:success m:failed b:failed", statuses(s.pipeline(run.ID)))
	again, err := s.RetryPipeline(run.ID)
	require.NoError(t, err)
	require.Equal(t, "running a:success m:manual b:pending", statuses(again))
	require.Len(t, again.Retried, 2)
	s.finish(s.claim(r), "success")
	require.Equal(t, "success", s.pipeline(run.ID).Status)
	_, err = s.RetryPipeline(99)
	require.ErrorIs(t, err, ErrNotFound)
}

func TestCancelOfAPipeline(t *testing.T) {
	s := newServer(t, Options{})
	p, r := s.project("g/p"), s.runner()
	run := s.run(p,
		ciconfig.Job{Name: "a", Stage: "build"},
		ciconfig.Job{Name: "b", Stage: "build"},
		ciconfig.Job{Name: "m", Stage: "build", When: ciconfig.Manual, AllowFailure: true},
		ciconfig.Job{Name: "c", Stage: "test", When: ciconfig.Always},
	)
	a := s.claim(r)
	got, err := s.CancelPipeline(run.ID)
	require.NoError(t, err)
	require.Equal(t, "canceling a:canceling b:canceled m:manual c:canceled", statuses(got))
	require.Equal(t, 204, s.request(r, nil).Code)
	s.finish(a, "failed")
	end, err := s.Wait(t.Context(), run.ID)
	require.NoError(t, err)
	require.Equal(t, "canceled a:canceled b:canceled m:manual c:canceled", statuses(end))
	_, err = s.CancelPipeline(99)
	require.ErrorIs(t, err, ErrNotFound)
	_, err = s.Pipeline(99)
	require.ErrorIs(t, err, ErrNotFound)
	_, err = s.Wait(t.Context(), 99)
	require.ErrorIs(t, err, ErrNotFound)
}

func TestAJobsFailureCancelsTheRestOnRequest(t *testing.T) {
	s := newServer(t, Options{})
	p, r := s.project("g/p"), s.runner()
	def := config(
		ciconfig.Job{Name: "ok", Stage: "build", AllowFailure: true}, ciconfig.Job{Name: "a", Stage: "build"},
		ciconfig.Job{Name: "b", Stage: "build"}, ciconfig.Job{Name: "c", Stage: "build"},
		ciconfig.Job{Name: "last", Stage: "test", When: ciconfig.Always},
	)
	def.AutoCancel.OnJobFailure = "all"
	run := s.runWith(p, PipelineOptions{Config: def})
	s.finish(s.claim(r), "failed")
	require.Equal(t, "running ok:failed a:pending b:pending c:pending last:created", statuses(s.pipeline(run.ID)))
	a := s.claim(r)
	b := s.claim(r)
	s.finish(a, "failed")
	require.Equal(t, "canceling ok:failed a:failed b:canceling c:canceled last:canceled", statuses(s.pipeline(run.ID)))
	s.finish(b, "success")
	require.Equal(t, "failed", s.pipeline(run.ID).Status)
}

func TestANewerPipelineCancelsOlderOnes(t *testing.T) {
	sha := func(c string) string { return strings.Repeat(c, 40) }
	for _, c := range []struct {
		name      string
		configure func(*ciconfig.Pipeline)
		started   int // jobs of the old pipeline that run
		newSHA    string
		project   ProjectOptions
		want      string
	}{
		{"nothing has begun", nil, 0, sha("b"), ProjectOptions{}, "canceled x:canceled y:canceled"},
		{"only what may be interrupted has begun", nil, 1, sha("b"), ProjectOptions{}, "canceling x:canceling y:canceled"},
		{"something that may not has begun", nil, 2, sha("b"), ProjectOptions{}, "running x:running y:running"},
		{"the same commit", nil, 0, sha("a"), ProjectOptions{}, "pending x:pending y:pending"},
		{"switched off", nil, 0, sha("b"), ProjectOptions{NoAutoCancel: true}, "pending x:pending y:pending"},
		{"none", func(p *ciconfig.Pipeline) { p.AutoCancel.OnNewCommit = "none" }, 0, sha("b"), ProjectOptions{}, "pending x:pending y:pending"},
		{"interruptible", func(p *ciconfig.Pipeline) { p.AutoCancel.OnNewCommit = "interruptible" }, 2, sha("b"), ProjectOptions{}, "running x:canceling y:running"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newServer(t, Options{})
			c.project.Path = "g/p"
			p, r := s.projectWith(c.project), s.runner()
			def := config(ciconfig.Job{Name: "x", Interruptible: true}, ciconfig.Job{Name: "y"})
			if c.configure != nil {
				c.configure(def)
			}
			other := s.runWith(p, PipelineOptions{Config: def, SHA: sha("a"), Ref: "other"})
			old := s.runWith(p, PipelineOptions{Config: def, SHA: sha("a")})
			s.claim(r)
			s.claim(r) // those of the other branch
			for range c.started {
				s.claim(r)
			}
			newer := s.runWith(p, PipelineOptions{Config: def, SHA: c.newSHA})
			require.Equal(t, c.want, statuses(s.pipeline(old.ID)))
			require.Equal(t, "running x:running y:running", statuses(s.pipeline(other.ID)))
			require.Equal(t, "pending x:pending y:pending", statuses(s.pipeline(newer.ID)))
		})
	}
}

func TestErase(t *testing.T) {
	s := newServer(t, Options{TraceMemory: 1})
	j := running(t, s)
	require.Equal(t, 202, s.patch(j, "0-4", "hello").Code)
	require.EqualError(t, s.Erase(j.ID), `job "job1" cannot be erased: its status is running`)
	s.finish(j, "success")
	require.NoError(t, s.Erase(j.ID))
	require.Empty(t, s.trace(j))
	require.ErrorIs(t, s.Erase(99), ErrNotFound)
	require.ErrorIs(t, s.LoseTrace(99), ErrNotFound)
	_, err := s.Trace(99, 0)
	require.ErrorIs(t, err, ErrNotFound)
}

func TestFollowATrace(t *testing.T) {
	s := newServer(t, Options{})
	j := running(t, s)
	type answer struct {
		size  int64
		ended bool
	}
	answers := make(chan answer, 2)
	wait := func(offset int64) {
		size, ended, err := s.WaitTrace(t.Context(), j.ID, offset)
		require.NoError(t, err)
		answers <- answer{size, ended}
	}
	go wait(0)
	require.Equal(t, 202, s.patch(j, "0-4", "hello").Code)
	require.Equal(t, answer{5, false}, <-answers)
	tail, err := s.Trace(j.ID, 3)
	require.NoError(t, err)
	require.EqualValues(t, 2, tail.Size())
	go wait(5)
	s.finish(j, "success")
	require.Equal(t, answer{5, true}, <-answers)
	_, _, err = s.WaitTrace(t.Context(), 99, 0)
	require.ErrorIs(t, err, ErrNotFound)
}

func TestEvents(t *testing.T) {
	s := newServer(t, Options{})
	p, r := s.project("g/p"), s.runner()
	ctx, cancel := context.WithCancel(t.Context())
	events := s.Subscribe(ctx)
	slow := s.Subscribe(t.Context()) // nobody reads it
	run := s.run(p, ciconfig.Job{})
	seen := map[Event]bool{}
	until := func(kind EventKind) {
		for e := range events {
			seen[e] = true
			if e.Kind == kind {
				return
			}
		}
	}
	id := run.Jobs[0].ID
	until(PipelineChanged)
	require.True(t, seen[Event{JobChanged, p.ID, run.ID, id}] || seen[Event{PipelineChanged, p.ID, run.ID, 0}])
	j := s.claim(r)
	for i := range 1000 {
		require.Equal(t, 202, s.patch(j, fmt.Sprintf("%d-", i), "x").Code)
	}
	until(TraceChanged)
	require.True(t, seen[Event{TraceChanged, p.ID, run.ID, id}])
	s.finish(j, "success")
	cancel()
	for range events { // closed
	}
	s.mu.Lock()
	require.Len(t, s.subscribers, 1)
	for sub := range s.subscribers {
		sub.mu.Lock()
		require.LessOrEqual(t, len(sub.order), 3, "at most one event of a kind per thing waits")
		sub.mu.Unlock()
	}
	s.mu.Unlock()
	require.NoError(t, s.Close())
	for range slow { // closed, too
	}
}

func TestWaitEndsWithItsContextAndWithTheServer(t *testing.T) {
	s := newServer(t, Options{})
	p := s.project("g/p")
	run := s.run(p, ciconfig.Job{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Wait(ctx, run.ID)
	require.ErrorIs(t, err, context.Canceled)
	done := make(chan error)
	go func() {
		_, err := s.Wait(t.Context(), run.ID)
		done <- err
	}()
	require.NoError(t, s.Close())
	require.ErrorIs(t, <-done, ErrClosed)
	require.NoDirExists(t, s.dir)
	_, err = s.CreatePipeline(t.Context(), p.ID, PipelineOptions{Config: config(ciconfig.Job{})})
	require.ErrorIs(t, err, ErrClosed)
}

// TestManyRunners lets them work through wide and deep pipelines at once: each job runs once, and everything ends.
func TestManyRunners(t *testing.T) {
	s := newServer(t, Options{Hold: DefaultHold, TraceMemory: 64})
	var runs []Pipeline
	total := 0
	for i := range 6 {
		p := s.project(fmt.Sprintf("g%d/p", i))
		var jobs []ciconfig.Job
		for k := range 60 {
			j := ciconfig.Job{Name: fmt.Sprint("j", k), Stage: fmt.Sprint("s", k/20), AllowFailure: k%7 == 0}
			if k >= 20 && k%3 == 0 {
				j.NeedsDeclared, j.Needs = true, needing(fmt.Sprint("j", k-20))
			}
			jobs = append(jobs, j)
		}
		total += len(jobs)
		runs = append(runs, s.run(p, jobs...))
	}
	var work sync.WaitGroup
	ctx, stop := context.WithCancel(t.Context())
	var mu sync.Mutex
	claimed := map[int64]int{}
	for i := range 12 {
		r := s.runner()
		work.Go(func() {
			last := ""
			for ctx.Err() == nil {
				fields := obj{"last_update": last}
				if i%2 == 0 {
					fields["info"] = twoPhase()
				}
				w := s.requestContext(ctx, r, fields)
				if v := w.Header().Get(lastUpdate); v != "" {
					last = v
				}
				if w.Code != 201 {
					continue
				}
				j := s.decode(w)
				mu.Lock()
				claimed[j.ID]++
				mu.Unlock()
				s.put(j, obj{"state": "running"})
				text := strings.Repeat(j.JobInfo.Name, int(j.ID%40))
				s.patch(j, "0-", text)
				state := "success"
				if j.ID%7 == 1 && s.job(j.ID).AllowFailure {
					state = "failed"
				}
				s.put(j, obj{"state": state, "output": obj{"checksum": checksum(text), "bytesize": len(text)}})
			}
		})
	}
	for _, run := range runs {
		end, err := s.Wait(t.Context(), run.ID)
		require.NoError(t, err)
		require.Equal(t, "success", end.Status)
	}
	stop()
	work.Wait()
	require.Len(t, claimed, total)
	for id, n := range claimed {
		require.Equal(t, 1, n, "job %d", id)
		if j := s.job(id); j.TraceSize > 0 {
			require.True(t, j.Report.ChecksumOK && j.Report.SizeOK, "job %d: %+v", id, j.Report)
		}
	}
	stats := s.Stats()
	require.Equal(t, []int64{int64(total), int64(total), int64(total), 0, 0, 0}, []int64{
		stats.Claims, stats.Started, stats.Finished, stats.BadChecksums, stats.BadSizes, stats.LateRequests,
	})
	require.Zero(t, s.queue.Len())
	for id := range s.projects {
		require.Zero(t, s.queue.Running(id))
	}
}

// A job that fails as its `retry` says runs again, with nothing of the attempt before; others wait for the last one.
func TestJobsAreRetriedAsTheySay(t *testing.T) {
	s := newServer(t, Options{})
	r := s.runner()
	run := s.run(s.project("g/p"),
		ciconfig.Job{Stage: "build", Retry: &ciconfig.Retry{Max: 2, When: []string{"runner_system_failure"}, ExitCodes: []int{3}}},
		ciconfig.Job{})
	fail := func(fields obj) runnerapi.Job {
		j := s.claimed(r)
		s.uploaded(j, []byte("x"))
		fields["state"] = "failed"
		require.Equal(t, 200, s.put(j, fields).Code)
		return j
	}
	first := fail(obj{"failure_reason": "runner_system_failure"})
	second := fail(obj{"failure_reason": "script_failure", "exit_code": 3})
	require.NotEqual(t, first.ID, second.ID)
	p, err := s.Pipeline(run.ID)
	require.NoError(t, err)
	require.Len(t, p.Retried, 2)
	require.Equal(t, 3, p.Jobs[0].Attempt)
	require.Equal(t, "created", p.Jobs[1].Status)
	require.Empty(t, s.list(runnerapi.Job{ID: p.Jobs[0].ID}))
	require.Len(t, s.list(first), 1)
	s.finish(s.claimed(r), "success")
	next := s.claimed(r)
	require.Len(t, next.Dependencies, 1)
	require.Empty(t, next.Dependencies[0].ArtifactsFile.Filename, "the last attempt has uploaded nothing")
	s.finish(next, "success")

	run = s.run(s.project("g/q"), ciconfig.Job{Retry: &ciconfig.Retry{Max: 2, ExitCodes: []int{3}}})
	fail(obj{"failure_reason": "script_failure", "exit_code": 1})
	p, err = s.Pipeline(run.ID)
	require.NoError(t, err)
	require.Equal(t, "failed", p.Status)
	require.Empty(t, p.Retried)
}
