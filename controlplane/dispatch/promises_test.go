package dispatch

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/switchyard-ci/switchyard/controlplane/registry"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// helloWith is a Hello that holds one job.
func helloWith(boot string, slots uint32, ref *fleetv1.JobRef, s fleetv1.JobState) *fleetv1.Hello {
	h := hello(boot, slots)
	h.Jobs = []*fleetv1.HeldJob{{Ref: ref, State: s}}
	return h
}

// The agent said yes and was cut off while GitLab was asked. When it is back its promise is void, so the start must not
// go to it under that promise: it would wait for nothing, and the job with it.
func TestAPromiseOfAnEarlierSessionIsNotStarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGitLab()
		asked, answer := make(chan struct{}), make(chan struct{})
		first := true
		g.answer = func(_ int64, state string) client.UpdateResult {
			if state == runnerapi.StateRunning && first {
				first = false
				close(asked)
				<-answer
			}
			return answerWith(http.StatusOK, "")
		}
		f := start(t, t.TempDir(), g)
		defer f.stop()
		a, _ := f.join("a", hello("1", 1))
		f.claim("any")
		old := a.next().GetOffer().GetRef()
		a.reply(old, true)
		<-asked
		a.leave()
		a, w := f.join("a", helloWith("1", 1, old, fleetv1.JobState_JOB_STATE_ACCEPTED))
		defer a.leave()
		require.Equal(t, fleetv1.Verdict_VERDICT_KILL, w.GetJobs()[0].GetVerdict())
		close(answer)
		ref := a.begin()
		require.Greater(t, ref.GetEpoch(), old.GetEpoch())
		a.finish(ref, "x")
	})
}

func TestAnAgentThatHasLostAnAcceptedJobSaysSoAtItsStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGitLab()
		f := start(t, t.TempDir(), g)
		defer f.stop()
		a, _ := f.join("a", hello("1", 1))
		defer a.leave()
		id := f.claim("any")
		ref := a.next().GetOffer().GetRef()
		a.reply(ref, true)
		require.NotNil(t, a.next().GetStart())
		a.reply(ref, false)
		synctest.Wait()
		u, trace, ok := g.result(id)
		require.True(t, ok)
		require.Equal(t, runnerapi.ReasonRunnerSystem, u.FailureReason)
		require.Contains(t, trace, "agent-a")
	})
}

// An agent that is stuck answers HTTP/2 and reads nothing. It must lose its session, and must not hold up the shutdown.
func TestAnAgentThatReadsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab())
		a, _ := f.join("a", hello("1", 1))
		defer a.leave()
		deaf, _ := f.join("deaf", hello("2", 1))
		defer deaf.leave()
		trace, err := deaf.client.Trace(deaf.ctx)
		require.NoError(t, err)
		go func() { // the answers to these fill the stream's window
			for seq := uint64(1); ; seq++ {
				if deaf.stream.Send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Ping{Ping: &fleetv1.Ping{Seq: 1<<60 + seq}}}) != nil {
					return
				}
			}
		}()
		go func() {
			for job := int64(1); ; job++ {
				if trace.Send(&fleetv1.TraceRequest{Ref: &fleetv1.JobRef{Job: 1<<60 + job, Epoch: 1 << 60}, Data: []byte("x")}) != nil {
					return
				}
			}
		}()
		time.Sleep(3 * DefaultPingPeriod)
		synctest.Wait()
		for _, s := range f.d.Agents() {
			require.False(t, s.ID == "deaf" && s.Online, "an agent that does not read is as good as gone")
		}
		f.stop()
	})
}

// fakeStream is an agent's side of a stream, in the test's hands.
type fakeStream[In, Out any] struct {
	grpc.ServerStream
	ctx  context.Context
	recv func() (*In, error)
	send func(*Out) error
}

func (s *fakeStream[In, Out]) Context() context.Context { return s.ctx }
func (s *fakeStream[In, Out]) Recv() (*In, error)       { return s.recv() }
func (s *fakeStream[In, Out]) Send(m *Out) error        { return s.send(m) }

// RecvMsg is what Recv calls on a real stream.
func (s *fakeStream[In, Out]) RecvMsg(m any) error {
	in, err := s.recv()
	if err != nil {
		return err
	}
	proto.Reset(m.(proto.Message))
	proto.Merge(m.(proto.Message), any(in).(proto.Message))
	return nil
}

func incoming(ctx context.Context, agent string) context.Context {
	return metadata.NewIncomingContext(ctx, metadata.Pairs("agent", agent))
}

func TestAHelloThatComesWhenTheStreamHasEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab())
		defer f.stop()
		ctx, cancel := context.WithCancel(incoming(t.Context(), "a"))
		sent := make(chan *fleetv1.SessionRequest)
		s := &fakeStream[fleetv1.SessionRequest, fleetv1.SessionResponse]{ctx: ctx, recv: func() (*fleetv1.SessionRequest, error) {
			if m, ok := <-sent; ok {
				return m, nil
			}
			return nil, context.Canceled
		}}
		ended := make(chan error, 1)
		go func() { ended <- f.d.Session(s) }()
		synctest.Wait()
		cancel()
		require.Error(t, <-ended)
		sent <- &fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Hello{Hello: hello("1", 1)}}
		close(sent)
		synctest.Wait()
		require.Empty(t, f.d.Agents(), "nobody would ever end this session")
	})
}

func TestSilenceIsMeasuredByTheMonotonicClock(t *testing.T) {
	s := newSession(nil)
	s.hear()
	require.Contains(t, s.lastHeard().String(), " m=", "a step of the wall clock would end all sessions and all leases")
}

func TestAJobWithoutASlotKeepsTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab())
		defer f.stop()
		a, _ := f.join("a", hello("1", 4))
		defer a.leave()
		f.claim("one")
		first := a.begin()
		f.claimed("one", nil) // brought by a watch
		synctest.Wait()
		require.Equal(t, 1, f.d.Agents()[0].UsedSlots, "the runner's limit is one job")
		f.claim("any")
		other := a.begin()
		require.NotEqual(t, first.GetJob(), other.GetJob(), "other runners are not held up")
		a.report(first, fleetv1.JobState_JOB_STATE_FINISHED, &fleetv1.Result{State: "success"})
		for a.next().GetOffer() == nil { // it is the next one's turn
		}
	})
}

func TestAnAgentThatRefusesDoesNotHoldAJobUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab())
		defer f.stop()
		picky, _ := f.join("picky", hello("1", 8)) // the first choice
		defer picky.leave()
		f.claim("any")
		helper, _ := f.join("helper", hello("2", 1))
		defer helper.leave()
		refused := 0
		go func() {
			for {
				m, err := picky.stream.Recv()
				if err != nil {
					return
				}
				if o := m.GetOffer(); o != nil {
					refused++
					picky.reply(o.GetRef(), false)
				}
			}
		}()
		began := time.Now()
		helper.begin()
		require.Less(t, time.Since(began), 5*time.Second)
		require.Equal(t, 1, refused)
	})
}

// While a job goes round among agents that refuse it, GitLab must hear of it or it gives the job to somebody else.
func TestAJobThatIsRefusedAllTheTimeIsKeptAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGitLab()
		f := start(t, t.TempDir(), g)
		defer f.stop()
		a, _ := f.join("a", hello("1", 1))
		defer a.leave()
		f.claim("any")
		began, offers := time.Now(), 0
		for time.Since(began) < 4*time.Minute {
			if o := a.next().GetOffer(); o != nil {
				offers++
				a.reply(o.GetRef(), false)
			}
		}
		g.mu.Lock()
		defer g.mu.Unlock()
		require.GreaterOrEqual(t, len(g.puts), 3)
		require.Equal(t, "101 pending", g.puts[0])
		require.Less(t, offers, 30, "the pauses grow")
	})
}

func TestACanceledJobThatWaitsForAnAgentEndsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGitLab()
		f := start(t, t.TempDir(), g)
		defer f.stop()
		g.answer = func(_ int64, state string) client.UpdateResult {
			if state == runnerapi.StatePending { // GitLab has no two-phase commit
				return answerWith(http.StatusBadRequest, runnerapi.StateCanceling)
			}
			return answerWith(http.StatusOK, "")
		}
		id := f.claimed("any", nil)
		time.Sleep(pendingKeepAlive + time.Second)
		synctest.Wait()
		u, trace, ok := g.result(id)
		require.True(t, ok, "no agent is needed for that")
		require.Equal(t, runnerapi.ReasonCanceled, u.FailureReason)
		require.Contains(t, trace, "ERROR: Job failed: the job was canceled before it started", "the system has not failed")
		require.Empty(t, f.d.Jobs())
	})
}

// What the control plane itself decided about a job is said the same way after a restart, with the agent's name.
func TestALossIsReportedAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, dir := newGitLab(), t.TempDir()
		f := start(t, dir, g)
		a, _ := f.join("a", hello("1", 1))
		id := f.claim("any")
		ref := a.begin()
		a.leave()
		f.stop()

		down := answerWith(http.StatusBadGateway, "")
		g.mu.Lock()
		g.answer = func(int64, string) client.UpdateResult { return down }
		g.patched = http.StatusBadGateway
		g.mu.Unlock()
		f = start(t, dir, g)
		time.Sleep(DefaultLostAfter + time.Second)
		synctest.Wait()
		f.stop()

		g.mu.Lock()
		g.answer, g.patched = nil, 0
		g.mu.Unlock()
		f = start(t, dir, g)
		defer f.stop()
		b, w := f.join("a", helloWith("2", 1, ref, fleetv1.JobState_JOB_STATE_STARTED))
		defer b.leave()
		require.Equal(t, fleetv1.Verdict_VERDICT_KILL, w.GetJobs()[0].GetVerdict(), "the job is given up")
		time.Sleep(time.Minute)
		synctest.Wait()
		u, trace, ok := g.result(id)
		require.True(t, ok)
		require.Equal(t, runnerapi.ReasonRunnerSystem, u.FailureReason)
		require.Contains(t, trace, "ERROR: Job failed (system failure): agent agent-a was lost")
	})
}

// A slot goes to the pool whose runner has the fewest jobs, each time anew.
func TestPoolsThatShareAnAgentTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const each = 4
		f := start(t, t.TempDir(), newGitLab(), func(c *Config) {
			c.Runners = nil
			for i := range each {
				c.Runners = append(c.Runners,
					Runner{Name: fmt.Sprintf("plain-%d", i), Executor: "shell"},
					Runner{Name: fmt.Sprintf("linux-%d", i), Executor: "shell", Selector: registry.Selector{"os": "linux"}})
			}
		})
		defer f.stop()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		granted := make(chan string, 4*each)
		for i := range each {
			for _, pool := range []string{"plain", "linux"} {
				for range 2 {
					go func() {
						name := fmt.Sprintf("%s-%d", pool, i)
						if _, err := f.d.Reserve(ctx, name); err == nil {
							granted <- name
						}
					}()
				}
			}
		}
		synctest.Wait()
		h := hello("1", 2*each)
		h.Labels = map[string]string{"os": "linux"}
		a, _ := f.join("a", h)
		defer a.leave()
		synctest.Wait()
		count := map[string]int{}
		for range len(granted) {
			count[<-granted]++
		}
		require.Len(t, count, 2*each, "every runner has one of the slots: %v", count)
	})
}

// An agent that comes back as another one gets no work by what it was before.
func TestAnAgentThatChangedItsLabelsIsNotServedByTheOldOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab())
		defer f.stop()
		h := hello("1", 1)
		h.Labels = map[string]string{"gpu": "yes"}
		a, _ := f.join("a", h)
		f.claim("gpu")
		a.begin()
		granted := make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go func() {
			if _, err := f.d.Reserve(ctx, "gpu"); err == nil {
				close(granted)
			}
		}()
		synctest.Wait()
		a.leave()
		a, _ = f.join("a", hello("2", 1)) // without the job, without the label
		defer a.leave()
		synctest.Wait()
		select {
		case <-granted:
			t.Fatal("a runner got a slot of an agent that may not serve it")
		default:
		}
	})
}

// A big agent may have more to hear at once than a slow one may be behind.
func TestAnAgentWithThousandsOfJobsComesBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const jobs = 1500
		f := start(t, t.TempDir(), newGitLab())
		defer f.stop()
		a, _ := f.join("a", hello("1", jobs))
		refs := make([]*fleetv1.JobRef, 0, jobs)
		for range jobs {
			f.claim("any")
			ref := a.next().GetOffer().GetRef()
			a.reply(ref, true)
			require.NotNil(t, a.next().GetStart())
			refs = append(refs, ref)
		}
		a.leave()
		h := hello("1", jobs)
		for _, ref := range refs {
			f.d.JobStatus(ref.GetJob(), "canceling")
			h.Jobs = append(h.Jobs, &fleetv1.HeldJob{Ref: ref, State: fleetv1.JobState_JOB_STATE_ACCEPTED})
		}
		a, _ = f.join("a", h)
		defer a.leave()
		starts := 0
		for starts < jobs {
			if a.next().GetStart() != nil {
				starts++
			}
		}
	})
}

func TestWhatIsToldOfAgentsThatLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab())
		defer f.stop()
		a, _ := f.join("a", hello("1", 2))
		f.claim("any")
		a.begin()
		b, _ := f.join("b", hello("2", 3))
		defer b.leave()
		require.Equal(t, 5, f.d.Slots("any"))
		a.leave()
		require.Equal(t, 3, f.d.Slots("any"), "an agent that is away has no slots, whatever it holds")
	})
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
}

func TestAStoreThatIsOlderThanTheSpool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, dir := newGitLab(), t.TempDir()
		f := start(t, dir, g)
		a, _ := f.join("a", hello("1", 1))
		f.claim("any")
		ref := a.begin()
		a.leave()
		f.stop()
		writeFile(t, filepath.Join(dir, "spool", fmt.Sprintf("v2-%d-%d-1048576", ref.GetJob(), ref.GetEpoch()+1)), "of another job")
		f = start(t, dir, g) // a backup was restored: it must be possible to start
		defer f.stop()
		a, _ = f.join("a", helloWith("1", 1, ref, fleetv1.JobState_JOB_STATE_STARTED))
		defer a.leave()
		a.finish(ref, "mine")
	})
}

// An InsertJob whose answer was lost is not an excuse to forget the job.
func TestAJobWhoseInsertWasNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGitLab()
		f := start(t, t.TempDir(), g)
		defer f.stop()
		_, err := f.store.InsertJob(t.Context(), store.NewJob{Runner: "any", GitLabURL: "http://gitlab", GitLabJobID: 101, Token: "t", Payload: []byte("{}"), ClaimedAt: time.Now()})
		require.NoError(t, err)
		a, _ := f.join("a", hello("1", 1))
		defer a.leave()
		id := f.claim("any")
		require.Equal(t, int64(101), id)
		a.finish(a.begin(), "x")
		synctest.Wait()
		_, _, ok := g.result(id)
		require.True(t, ok)
	})
}

func TestTheLossNamesTheAgentAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, dir := newGitLab(), t.TempDir()
		f := start(t, dir, g)
		a, _ := f.join("a", hello("1", 1))
		id := f.claim("any")
		a.begin()
		a.leave()
		f.stop()
		f = start(t, dir, g)
		defer f.stop()
		time.Sleep(DefaultLostAfter + time.Minute)
		synctest.Wait()
		_, trace, ok := g.result(id)
		require.True(t, ok)
		require.Contains(t, trace, "agent agent-a was lost")
		require.Equal(t, 1, strings.Count(trace, "\n"))
	})
}

func TestManyFramesForJobsThatAreNotThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab())
		defer f.stop()
		ctx, cancel := context.WithCancel(incoming(t.Context(), "a"))
		defer cancel()
		job := int64(0)
		err := f.d.Trace(&fakeStream[fleetv1.TraceRequest, fleetv1.TraceResponse]{
			ctx: ctx,
			recv: func() (*fleetv1.TraceRequest, error) {
				job++
				return &fleetv1.TraceRequest{Ref: &fleetv1.JobRef{Job: job, Epoch: 1}, Data: []byte("x")}, nil
			},
			send: func(*fleetv1.TraceResponse) error { // nobody reads
				<-ctx.Done()
				return ctx.Err()
			},
		})
		require.Equal(t, codes.ResourceExhausted, status.Code(err))
		require.Less(t, job, int64(2*maxTold+2))
	})
}

// An idle agent's new process takes over from the old one and is given work.
func TestAnIdleAgentThatIsReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab())
		defer f.stop()
		a, _ := f.join("a", hello("1", 1))
		defer a.leave()
		again, _ := f.join("a", hello("1", 1))
		defer again.leave()
		f.claim("any")
		again.finish(again.begin(), "x")
	})
}

// A runner that is taken out of the configuration leaves its jobs: what runs is taken to its end, what was not begun is
// given back.
func TestJobsOfARunnerThatIsNoLongerConfigured(t *testing.T) {
	for name, change := range map[string]func(c *Config){
		"removed":        func(c *Config) { c.Runners = c.Runners[1:] },
		"another GitLab": func(c *Config) { c.Runners[0].URL = "http://elsewhere" },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g, dir := newGitLab(), t.TempDir()
				f := start(t, dir, g)
				a, _ := f.join("a", hello("1", 3))
				running := f.claim("any")
				ref := a.begin()
				f.claim("any")
				waiting := f.claimed("any", nil)
				a.leave()
				f.stop()

				f = start(t, dir, g, change)
				defer f.stop()
				a, w := f.join("a", helloWith("1", 3, ref, fleetv1.JobState_JOB_STATE_STARTED))
				defer a.leave()
				require.Equal(t, fleetv1.Verdict_VERDICT_KEEP, w.GetJobs()[0].GetVerdict())
				a.finish(ref, "whole")
				synctest.Wait()
				u, trace, ok := g.result(running)
				require.True(t, ok)
				require.Equal(t, "success", u.State)
				require.Equal(t, "whole", trace)
				u, trace, ok = g.result(waiting)
				require.True(t, ok)
				require.Equal(t, runnerapi.ReasonRunnerSystem, u.FailureReason)
				require.Contains(t, trace, `runner "any" is no longer configured`)
				require.Empty(t, f.d.Jobs())
				require.Zero(t, f.d.Agents()[0].UsedSlots)
			})
		})
	}
}
