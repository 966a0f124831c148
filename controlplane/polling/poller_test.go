package polling

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

func TestJobIsClaimedAndWatchedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBench(t, 10, nil)
		pass(time.Minute)
		s := b.poller.Status()
		require.Equal(t, StateClean, s.State)
		require.True(t, s.Watching)
		require.False(t, s.WaitingForSlot, "a watch holds no slot")
		require.Len(t, b.dispatcher.slots, 10)
		require.Equal(t, 50*time.Second, s.Hold.Round(time.Second))

		pushed := time.Now()
		b.gitlab.push(1)
		pass(time.Second)
		jobs := b.dispatcher.jobs()
		require.Len(t, jobs, 1)
		require.Less(t, b.dispatcher.at[0].Sub(pushed), 10*time.Millisecond)
		require.Equal(t, Claim{
			Payload: []byte(`{"id":1,"token":"job-token"}`), Envelope: runnerapi.Envelope{ID: 1, Token: "job-token"},
			ServerCA: "pem", CorrelationID: "correlation", TwoPhaseOffered: true, ReceivedAt: jobs[0].ReceivedAt,
		}, jobs[0])
		require.Equal(t, 2*time.Millisecond, jobs[0].ReceivedAt.Sub(pushed))
		require.Len(t, b.dispatcher.slots, 9, "the job has its slot, the empty claim after it gave its slot back")

		s = b.poller.Status()
		require.Equal(t, StateClean, s.State)
		require.Equal(t, Counters{Claims: 4, Jobs: 1, Empty: 3, Watches: 3, Verifies: 1}, s.Counters)
		require.WithinDuration(t, pushed, s.LastJob, 10*time.Millisecond)
		require.WithinDuration(t, pushed, s.LastContact, 10*time.Millisecond)
		for _, r := range b.gitlab.requests {
			require.Equal(t, "glrt-secret", r.Token)
			require.Equal(t, "r_abcdefghijkl", r.SystemID)
			require.True(t, r.Info.Features.Masking)
		}
		require.NoError(t, b.end())
		require.Empty(t, b.log.String(), "nothing to tell")
	})
}

func TestManyJobsAreClaimedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBench(t, 1000, func(g *fakeGitLab, o *Options) { o.RequestsPerMinute = -1 })
		pass(time.Minute)
		b.gitlab.push(800)
		pass(time.Second)
		require.Len(t, b.dispatcher.jobs(), 800, "8 at a time, 2 ms each")
		require.NoError(t, b.end())
	})
}

func TestNothingIsSentWithoutSlots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBench(t, 0, nil)
		b.gitlab.push(1)
		pass(2*time.Hour + time.Second)
		requests, verifies := b.gitlab.count()
		require.Zero(t, requests)
		require.InDelta(t, 2*60/20+1, verifies, 1, "one at the start, one in 20 minutes")
		require.True(t, b.gitlab.verifies[3].Info.Features.Masking, "with full info")
		require.True(t, b.poller.Status().WaitingForSlot)

		b.dispatcher.slots <- struct{}{}
		pass(3 * time.Millisecond)
		require.Len(t, b.dispatcher.jobs(), 1)
		require.NoError(t, b.end())
	})
}

// A runner that gets no turn for a day (its group is paused, others come first) shows GitLab a sign of life in time, over an
// outage, too, so that no job is dropped for want of a runner; and it gets them all in the end, in GitLab's order.
func TestARunnerWithoutATurnStaysOnlineAndLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const offline = 2 * time.Hour // GitLab drops what waits for a runner then
		b := startBench(t, 0, nil)
		var down bool // while a verification fails; guarded by the fake's lock
		last := time.Now()
		var longest time.Duration
		b.gitlab.mu.Lock()
		b.gitlab.verify = func() error {
			if down {
				return errors.New("no answer")
			}
			longest, last = max(longest, time.Since(last)), time.Now()
			return nil
		}
		b.gitlab.mu.Unlock()
		outage := func(is bool) {
			b.gitlab.mu.Lock()
			down = is
			b.gitlab.mu.Unlock()
		}
		b.gitlab.push(3)
		pass(12 * time.Hour)
		outage(true)
		pass(time.Hour)
		outage(false)
		pass(11 * time.Hour)
		b.gitlab.mu.Lock()
		require.Less(t, max(longest, time.Since(last)), offline-30*time.Minute)
		require.Less(t, time.Since(last), 23*time.Minute)
		b.gitlab.mu.Unlock()
		requests, _ := b.gitlab.count()
		require.Zero(t, requests, "it asks for nothing")

		b.gitlab.push(1)
		for range 4 {
			b.dispatcher.slots <- struct{}{}
		}
		pass(time.Second)
		var ids []int64
		for _, c := range b.dispatcher.jobs() {
			ids = append(ids, c.Envelope.ID)
		}
		require.Equal(t, []int64{1, 2, 3, 4}, ids)
		require.NoError(t, b.end())
	})
}

func TestIdleRunnerCostsOneWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBench(t, 1, nil)
		pass(time.Hour)
		requests, verifies := b.gitlab.count()
		require.InDelta(t, 3600/50, requests, 3)
		require.InDelta(t, 4, verifies, 1)
		require.NoError(t, b.end())
	})
}

func TestWatchThatBringsAJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var once sync.Once
		b := startBench(t, 0, func(g *fakeGitLab, o *Options) {
			g.onWatch = func() { once.Do(func() { g.push(2) }) } // while the watch is on its way
		})
		b.dispatcher.slots <- struct{}{}
		pass(4 * time.Millisecond) // verified and claimed: nothing there
		<-b.dispatcher.slots
		pass(time.Minute)
		require.Len(t, b.dispatcher.jobs(), 1, "kept although there is no slot")
		require.Equal(t, 1, b.dispatcher.without)
		s := b.poller.Status()
		require.Equal(t, Counters{Claims: 1, Empty: 1, Watches: 1, WatchJobs: 1, Verifies: 1}, s.Counters)
		require.True(t, s.WaitingForSlot, "no second job without a slot")
		b.dispatcher.slots <- struct{}{}
		pass(3 * time.Millisecond)
		require.Len(t, b.dispatcher.jobs(), 2)
		require.Equal(t, 1, b.dispatcher.without)
		require.NoError(t, b.end())
	})
}

func TestShutdownAwaitsClaims(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBench(t, 1, func(g *fakeGitLab, o *Options) {
			g.push(1)
			g.claim = func(ctx context.Context) error {
				select {
				case <-ctx.Done():
					return ctx.Err()
				case <-time.After(30 * time.Second):
					return nil
				}
			}
		})
		pass(time.Second)
		require.Equal(t, 1, b.poller.Status().InFlight)
		require.False(t, b.poller.Status().ClaimingSince.IsZero())
		start := time.Now()
		require.NoError(t, b.end())
		require.InDelta(t, 29, time.Since(start).Seconds(), 0.1)
		require.Len(t, b.dispatcher.jobs(), 1, "its job is kept")
		require.Equal(t, StateStopping, b.poller.Status().State)
	})
}

func TestShutdownGivesUpInTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBench(t, 1, func(g *fakeGitLab, o *Options) {
			g.claim = func(ctx context.Context) error {
				<-ctx.Done()
				return context.Cause(ctx)
			}
		})
		pass(time.Second)
		start := time.Now()
		err := b.end()
		require.ErrorContains(t, err, "runner everything: a claim was not answered, its job may be lost")
		require.Equal(t, ShutdownGrace, time.Since(start))
		require.Len(t, b.dispatcher.slots, 1)
	})
}

func TestAFencedPollerWaitsForNothing(t *testing.T) {
	for name, hang := range map[string]bool{"a claim in flight": true, "a job that cannot be kept": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fenced := make(chan struct{})
				b := startBench(t, 2, func(g *fakeGitLab, o *Options) {
					o.Fenced = fenced
					g.push(1)
					if hang {
						g.claim = func(ctx context.Context) error {
							<-ctx.Done()
							return context.Cause(ctx)
						}
					}
				})
				b.dispatcher.setDisk(func(Claim) error { return errDisk })
				pass(time.Second)
				start := time.Now()
				close(fenced)
				err := <-b.result
				b.ended = true
				require.Regexp(t, "may be lost: .*another control plane has taken over|job 1 is lost", err)
				require.Equal(t, start, time.Now())
				require.Len(t, b.dispatcher.slots, 2, "the slots are given back")
			})
		})
	}
}

func TestShutdownCancelsHeldWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBench(t, 1, nil)
		pass(time.Second)
		require.True(t, b.poller.Status().Watching)
		start := time.Now()
		require.NoError(t, b.end())
		require.InDelta(t, 2, time.Since(start).Seconds(), 0.1, "a watch of a second may still bring a job")
		require.Zero(t, b.gitlab.watching)
	})
}

func TestShutdownWhileWaitingForASlotOrVerifying(t *testing.T) {
	for name, latency := range map[string]time.Duration{"slot": time.Millisecond, "verify": time.Second} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := startBench(t, 0, func(g *fakeGitLab, o *Options) { g.latency = latency })
				pass(100 * time.Millisecond)
				require.NoError(t, b.end())
			})
		})
	}
}

func TestFullDiskLosesNoJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var attempts atomic.Int32
		b := startBench(t, 5, func(g *fakeGitLab, o *Options) { g.push(20) })
		b.dispatcher.setDisk(func(Claim) error { attempts.Add(1); return errDisk })
		pass(10 * time.Minute)
		requests, verifies := b.gitlab.count()
		s := b.poller.Status()
		require.Equal(t, StateError, s.State)
		require.Regexp(t, "^keep job [12] of GitLab: no space left on device$", s.LastError)
		require.NotZero(t, s.Unsaved)
		require.LessOrEqual(t, s.Unsaved, 2, "the claim that was on its way")
		require.Equal(t, s.Unsaved, requests, "no more claims")
		require.Equal(t, 1, verifies)
		require.Greater(t, attempts.Load(), int32(100))
		require.Equal(t, 1, strings.Count(b.log.String(), "a job cannot be kept"))

		b.dispatcher.setDisk(nil)
		pass(maxSaveDelay + time.Second)
		require.Len(t, b.dispatcher.jobs(), 5)
		require.Equal(t, StateDirty, b.poller.Status().State, "no slots, but jobs")
		require.Equal(t, 1, strings.Count(b.log.String(), "works again"))
		require.NoError(t, b.end())
	})
}

func TestJobThatCannotBeKeptAtShutdownIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBench(t, 1, func(g *fakeGitLab, o *Options) { g.push(1) })
		b.dispatcher.setDisk(func(Claim) error { return errDisk })
		pass(time.Second)
		start := time.Now()
		err := b.end()
		require.ErrorContains(t, err, "runner everything: job 1 is lost")
		require.Equal(t, ShutdownGrace, time.Since(start))
		require.Len(t, b.dispatcher.slots, 1, "the slot is given back")
	})
}

func TestUnknownToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		forbidden := &client.StatusError{Method: "POST", URL: "http://gitlab/api/v4/runners/verify", Code: http.StatusForbidden}
		b := startBench(t, 1, func(g *fakeGitLab, o *Options) {
			g.push(1)
			g.verify = func() error { return forbidden }
		})
		started := time.Now()
		pass(time.Hour)
		s := b.poller.Status()
		require.Equal(t, StateError, s.State)
		require.Contains(t, s.LastError, `GitLab does not know the token of runner "everything"; check it, or create the runner`)
		require.NotContains(t, s.LastError+b.log.String(), "glrt-secret")
		require.WithinDuration(t, started, s.ErrorSince, time.Second)
		require.False(t, s.RetryAt.IsZero())
		requests, verifies := b.gitlab.count()
		require.Zero(t, requests)
		require.Less(t, verifies, 40)
		require.Equal(t, 1, strings.Count(b.log.String(), "\n"), "logged once:\n%s", b.log)

		b.gitlab.mu.Lock()
		b.gitlab.verify = nil
		b.gitlab.mu.Unlock()
		pass(maxRefused)
		require.Len(t, b.dispatcher.jobs(), 1)
		require.Equal(t, 2, strings.Count(b.log.String(), "\n"), "and once that it works:\n%s", b.log)
		require.NoError(t, b.end())
	})
}

func TestTroubleIsLoggedWhenItChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var fault atomic.Pointer[error]
		set := func(err error) { fault.Store(&err) }
		b := startBench(t, 1, func(g *fakeGitLab, o *Options) {
			g.verify = func() error { return *fault.Load() }
			set(&client.TransportError{Method: "POST", URL: "http://gitlab/x", Err: errors.New("connection refused")})
		})
		pass(10 * time.Minute)
		set(&client.StatusError{Method: "POST", URL: "http://gitlab/x", Code: 502, HTML: true, Message: "answered with an HTML page"})
		pass(10 * time.Minute)
		set(&client.StatusError{Method: "POST", URL: "http://gitlab/x", Code: 429, RetryAfter: 3 * time.Minute})
		pass(10 * time.Minute)
		lines := strings.Split(strings.TrimSpace(b.log.String()), "\n")
		require.Len(t, lines, 3, b.log)
		require.Contains(t, lines[0], "connection refused")
		require.Contains(t, lines[1], "answered with an HTML page")
		require.Contains(t, lines[2], "GitLab limits the requests")
		s := b.poller.Status()
		require.InDelta(t, 3, s.Counters.Throttled, 1)
		require.InDelta(t, 2*600/22, s.Counters.Errors, 20, "half to all of 30 s each")
		set(nil)
		pass(4 * time.Minute)
		require.Equal(t, StateClean, b.poller.Status().State)
		require.NoError(t, b.end())
	})
}

func TestPausedRunner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBench(t, 1, nil)
		pass(time.Minute)
		b.poller.SetPaused(false)
		b.poller.SetPaused(true)
		pass(10 * time.Second)
		require.Equal(t, StatePaused, b.poller.Status().State)
		require.Zero(t, b.gitlab.watching)
		b.gitlab.push(1)
		before, _ := b.gitlab.count()
		pass(time.Hour)
		after, verifies := b.gitlab.count()
		require.Equal(t, before, after)
		require.InDelta(t, 4, verifies, 1)
		b.poller.SetPaused(false)
		pass(10 * time.Millisecond)
		require.Len(t, b.dispatcher.jobs(), 1)
		require.NoError(t, b.end())
	})
}

// A GitLab that accepts connections and never answers may hold a slot once, not for ever.
func TestDeadGitLabLeavesTheSlotsToOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dead := errors.New("no answer")
		b := startBench(t, 1, nil)
		pass(time.Minute)
		b.gitlab.mu.Lock()
		b.gitlab.claim = func(context.Context) error { <-time.After(2 * time.Minute); return dead }
		b.gitlab.verify = func() error { return dead }
		b.gitlab.mu.Unlock()
		b.gitlab.push(1)
		pass(time.Second)
		require.Empty(t, b.dispatcher.slots)
		pass(2 * time.Minute)
		for range 1000 {
			pass(time.Second)
			require.Len(t, b.dispatcher.slots, 1)
		}
		require.NoError(t, b.end())
	})
}

// A claim that hangs keeps neither its slot nor, in the end, its job from anyone.
func TestAClaimThatHangsGivesItsSlotBack(t *testing.T) {
	for name, lost := range map[string]error{"answered late": nil, "never answered": &client.TransportError{Err: context.DeadlineExceeded}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				answered := make(chan struct{})
				b := startBench(t, 1, func(g *fakeGitLab, _ *Options) {
					g.push(1)
					g.claim = func(context.Context) error {
						<-answered
						return lost
					}
				})
				pass(slotPatience - time.Second)
				require.Empty(t, b.dispatcher.slots)
				pass(2 * time.Second)
				require.Len(t, b.dispatcher.slots, 1)
				pass(time.Minute)
				requests, _ := b.gitlab.count()
				require.Equal(t, 1, requests, "it is still in flight")
				close(answered)
				pass(5 * time.Millisecond)
				if lost != nil {
					require.Empty(t, b.dispatcher.jobs())
					require.Len(t, b.dispatcher.slots, 1)
				} else {
					require.Len(t, b.dispatcher.jobs(), 1)
					require.Equal(t, 1, b.dispatcher.without)
				}
				_ = b.end()
			})
		})
	}
}

func TestGitLabThatDoesNotHoldIsPolledSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := startBench(t, 1, func(g *fakeGitLab, o *Options) { g.hold = 0; o.CheckInterval = 5 * time.Second })
		pass(10 * time.Second)
		before, _ := b.gitlab.count()
		pass(100 * time.Second)
		after, _ := b.gitlab.count()
		require.InDelta(t, 100/4.4, after-before, 5)
		s := b.poller.Status()
		require.True(t, s.HoldsNot)
		require.Len(t, b.dispatcher.slots, 1-s.InFlight)
		b.gitlab.push(3)
		pass(5100 * time.Millisecond)
		require.Len(t, b.dispatcher.jobs(), 1)
		require.NoError(t, b.end())
	})
}

func TestBudgetIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		budget := NewBudget(60)
		var benches []*bench
		for range 2 {
			benches = append(benches, startBench(t, 1000, func(g *fakeGitLab, o *Options) {
				o.Budget, o.RequestsPerMinute = budget, -1
				g.push(100)
			}))
		}
		pass(time.Minute)
		claims := 0
		for _, b := range benches {
			n := int(b.poller.Status().Counters.Claims)
			require.Greater(t, n, 15, "each gets its part")
			claims += n
		}
		require.InDelta(t, 60, claims, 2)
		for _, b := range benches {
			require.NoError(t, b.end())
		}
	})
}

func TestOptionsAreChecked(t *testing.T) {
	good := Options{
		Runner: "r", Token: func() string { return "t" }, Client: newFakeGitLab(), Dispatcher: newFakeDispatcher(0),
		Info: func() runnerapi.Info { return runnerapi.Info{} },
	}
	_, err := New(good)
	require.NoError(t, err)
	for message, spoil := range map[string]func(o *Options){
		"no name":              func(o *Options) { o.Runner = "" },
		"no token":             func(o *Options) { o.Token = func() string { return "" } },
		"has no token":         func(o *Options) { o.Token = nil },
		"needs a client":       func(o *Options) { o.Dispatcher = nil },
		"must not be negative": func(o *Options) { o.CheckInterval = -1 },
	} {
		bad := good
		spoil(&bad)
		_, err := New(bad)
		require.ErrorContains(t, err, message)
	}
}
