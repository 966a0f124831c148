package dispatch

import (
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/switchyard-ci/switchyard/controlplane/registry"
	"github.com/switchyard-ci/switchyard/controlplane/relay"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
	"github.com/switchyard-ci/switchyard/controlplane/store/sqlite"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// gitlabStub is the two calls that dispatch and relay make; the real embedded GitLab is in the fleet's own tests.
type gitlabStub struct {
	mu      sync.Mutex
	traces  map[int64][]byte
	final   map[int64]runnerapi.UpdateRequest
	puts    []string
	answer  func(job int64, state string) client.UpdateResult // nil: 200
	patched int                                               // what PATCHes are answered by instead; 0: as it should be
}

func newGitLab() *gitlabStub {
	return &gitlabStub{traces: map[int64][]byte{}, final: map[int64]runnerapi.UpdateRequest{}}
}

func answerWith(code int, jobStatus string) client.UpdateResult {
	return client.UpdateResult{Report: client.Report{Code: code, JobStatus: jobStatus}}
}

func (g *gitlabStub) UpdateJob(_ context.Context, id int64, u runnerapi.UpdateRequest) (*client.UpdateResult, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.puts = append(g.puts, fmt.Sprintf("%d %s", id, u.State))
	res := answerWith(http.StatusOK, "")
	if g.answer != nil {
		res = g.answer(id, u.State)
	}
	if res.Code == http.StatusOK && (u.State == runnerapi.StateSuccess || u.State == runnerapi.StateFailed) {
		g.final[id] = u
	}
	return &res, nil
}

func (g *gitlabStub) PatchTrace(_ context.Context, id int64, _ string, start int64, body client.TraceBody, _ bool) (*client.PatchResult, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	have := int64(len(g.traces[id]))
	if g.patched != 0 {
		return &client.PatchResult{Report: client.Report{Code: g.patched}}, nil
	}
	code := http.StatusRequestedRangeNotSatisfiable
	if start == have {
		data, err := io.ReadAll(io.NewSectionReader(body, 0, body.Size()))
		if err != nil {
			return nil, err
		}
		g.traces[id] = append(g.traces[id], data...)
		code = http.StatusAccepted
	}
	return &client.PatchResult{Report: client.Report{Code: code}, Range: int64(len(g.traces[id]))}, nil
}

func (g *gitlabStub) result(id int64) (runnerapi.UpdateRequest, string, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	u, ok := g.final[id]
	return u, string(g.traces[id]), ok
}

// fleet is a dispatcher with a real store, a real relay and a real gRPC server, in one synctest bubble.
type fleet struct {
	t        *testing.T
	dir      string
	gitlab   *gitlabStub
	store    *sqlite.Store
	relay    *relay.Relay
	d        *Dispatcher
	server   *grpc.Server
	listener *bufconn.Listener
	served   chan struct{}
	nextJob  int64
}

func start(t *testing.T, dir string, g *gitlabStub, change ...func(*Config)) *fleet {
	t.Helper()
	f := &fleet{t: t, dir: dir, gitlab: g, listener: bufconn.Listen(1 << 20), served: make(chan struct{}), nextJob: 100}
	var err error
	f.store, err = sqlite.Open(t.Context(), filepath.Join(dir, "store.db"), sealing.NewKey([32]byte{1}))
	require.NoError(t, err)
	cfg := Config{
		Store: f.store, Identity: identityFromMetadata, AgentName: func(id string) string { return "agent-" + id },
		Retired: func(j store.Job) (Runner, error) {
			return Runner{Name: j.Runner, URL: j.GitLabURL, OutputLimit: 1 << 20, GitLab: g}, nil
		},
		Runners: []Runner{
			{Name: "any", URL: "http://gitlab", Executor: "shell", OutputLimit: 1 << 20, GitLab: g},
			{Name: "one", URL: "http://gitlab", Executor: "shell", OutputLimit: 1 << 20, GitLab: g, Limit: 1},
			{Name: "gpu", URL: "http://gitlab", Executor: "shell", Selector: registry.Selector{"gpu": "yes"}, OutputLimit: 1 << 20, GitLab: g},
		},
	}
	for _, c := range change {
		c(&cfg)
	}
	f.d, err = New(cfg)
	require.NoError(t, err)
	f.relay, err = relay.New(relay.Options{Dir: filepath.Join(dir, "spool"), Events: f.d, MinFree: 1})
	require.NoError(t, err)
	require.NoError(t, f.d.Start(t.Context(), f.relay))
	f.server = grpc.NewServer()
	fleetv1.RegisterFleetServiceServer(f.server, f.d)
	go func() {
		defer close(f.served)
		_ = f.server.Serve(f.listener)
	}()
	return f
}

func (f *fleet) stop() {
	f.d.Close()
	force := time.AfterFunc(2*time.Second, f.server.Stop)
	f.server.GracefulStop() // the last words are on their way
	force.Stop()
	<-f.served
	f.d.Wait()
	require.NoError(f.t, f.relay.Close(context.Background()))
	require.NoError(f.t, f.store.Close())
}

func identityFromMetadata(ctx context.Context) (id, name string, err error) {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("agent"); len(v) == 1 {
		return v[0], "agent-" + v[0], nil
	}
	return "", "", status.Error(codes.Unauthenticated, "no agent")
}

func (f *fleet) claim(runner string) int64 {
	f.t.Helper()
	r, err := f.d.Reserve(f.t.Context(), runner)
	require.NoError(f.t, err)
	return f.claimed(runner, r)
}

func (f *fleet) claimed(runner string, r *Reservation) int64 {
	f.t.Helper()
	f.nextJob++
	require.NoError(f.t, f.d.Claimed(f.t.Context(), runner, r, Claim{
		Payload: []byte(`{"id":1}`), Envelope: runnerapi.Envelope{ID: f.nextJob, Token: "t"}, At: time.Now(),
	}))
	return f.nextJob
}

// fake is an agent that does what the test says.
type fake struct {
	t      *testing.T
	id     string
	conn   *grpc.ClientConn
	cancel context.CancelFunc
	stream grpc.BidiStreamingClient[fleetv1.SessionRequest, fleetv1.SessionResponse]
	client fleetv1.FleetServiceClient
	ctx    context.Context
}

func hello(boot string, slots uint32) *fleetv1.Hello {
	return &fleetv1.Hello{
		BootId: boot, ProtocolMin: 1, ProtocolMax: 1, Slots: slots, Hostname: "host-" + boot,
		Executors: []*fleetv1.Executor{{Name: "shell", Features: []string{"variables", "refspecs"}, Shell: "bash"}},
	}
}

func (f *fleet) dial(id string) *fake {
	f.t.Helper()
	// A window of fixed size: by itself it grows to 16 MiB where nothing takes time, and an agent that reads nothing is noticed late.
	conn, err := grpc.NewClient("passthrough:///fleet", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithStaticStreamWindowSize(64<<10), grpc.WithStaticConnWindowSize(64<<10),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return f.listener.Dial() }))
	require.NoError(f.t, err)
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), "agent", id))
	a := &fake{t: f.t, id: id, conn: conn, cancel: cancel, ctx: ctx, client: fleetv1.NewFleetServiceClient(conn)}
	a.stream, err = a.client.Session(ctx)
	require.NoError(f.t, err)
	return a
}

func (f *fleet) join(id string, h *fleetv1.Hello) (*fake, *fleetv1.Welcome) {
	f.t.Helper()
	a := f.dial(id)
	a.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Hello{Hello: h}})
	w := a.next().GetWelcome()
	require.NotNil(f.t, w)
	return a, w
}

func (a *fake) leave() {
	a.cancel()
	require.NoError(a.t, a.conn.Close())
	synctest.Wait()
}

func (a *fake) send(m *fleetv1.SessionRequest) {
	a.t.Helper()
	require.NoError(a.t, a.stream.Send(m))
}

// next returns the next message that is no ping.
func (a *fake) next() *fleetv1.SessionResponse {
	a.t.Helper()
	for {
		m, err := a.stream.Recv()
		require.NoError(a.t, err)
		if p := m.GetPing(); p != nil {
			a.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Pong{Pong: &fleetv1.Pong{Seq: p.GetSeq()}}})
			continue
		}
		return m
	}
}

func (a *fake) reply(ref *fleetv1.JobRef, ok bool) {
	a.t.Helper()
	a.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_OfferReply{OfferReply: &fleetv1.OfferReply{Ref: ref, Accepted: ok, Reason: "because"}}})
}

func (a *fake) report(ref *fleetv1.JobRef, s fleetv1.JobState, r *fleetv1.Result) {
	a.t.Helper()
	a.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_JobReport{JobReport: &fleetv1.JobReport{Ref: ref, State: s, Result: r}}})
}

// begin takes an offer and reports the job as started.
func (a *fake) begin() *fleetv1.JobRef {
	a.t.Helper()
	ref := a.next().GetOffer().GetRef()
	require.NotNil(a.t, ref)
	a.reply(ref, true)
	require.Equal(a.t, ref.GetJob(), a.next().GetStart().GetRef().GetJob())
	a.report(ref, fleetv1.JobState_JOB_STATE_STARTED, nil)
	require.Equal(a.t, fleetv1.JobState_JOB_STATE_STARTED, a.next().GetReportAck().GetState())
	return ref
}

// finish sends the trace and the result, and waits until the control plane wants nothing more.
func (a *fake) finish(ref *fleetv1.JobRef, trace string) {
	a.t.Helper()
	tr, err := a.client.Trace(a.ctx)
	require.NoError(a.t, err)
	require.NoError(a.t, tr.Send(&fleetv1.TraceRequest{Ref: ref, Data: []byte(trace)}))
	a.report(ref, fleetv1.JobState_JOB_STATE_FINISHED, &fleetv1.Result{
		State: "success", TraceLength: int64(len(trace)), TraceCrc32: crc32.ChecksumIEEE([]byte(trace)),
	})
	require.Equal(a.t, fleetv1.JobState_JOB_STATE_FINISHED, a.next().GetReportAck().GetState())
	require.Equal(a.t, ref.GetJob(), a.next().GetForget().GetRef().GetJob())
	require.NoError(a.t, tr.CloseSend())
}

func TestAJobGoesThroughTheFleet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGitLab()
		f := start(t, t.TempDir(), g)
		defer f.stop()
		a, _ := f.join("a", hello("1", 1))
		defer a.leave()
		id := f.claim("any")
		ref := a.begin()
		a.finish(ref, "hello\n")
		synctest.Wait()
		u, trace, ok := g.result(id)
		require.True(t, ok)
		require.Equal(t, "success", u.State)
		require.Equal(t, "hello\n", trace)
		require.Equal(t, fmt.Sprintf("crc32:%08x", crc32.ChecksumIEEE([]byte("hello\n"))), u.Output.Checksum)
		require.Empty(t, f.d.Jobs())
		require.Equal(t, 0, f.d.Agents()[0].UsedSlots)
		rows, err := f.store.LoadJobs(t.Context())
		require.NoError(t, err)
		require.Empty(t, rows)

		a.report(ref, fleetv1.JobState_JOB_STATE_FINISHED, &fleetv1.Result{State: "success"})
		require.NotNil(t, a.next().GetReportAck(), "a report that is repeated after the end is answered like the first")
		require.NotNil(t, a.next().GetForget())
	})
}

func TestSlotsAreNeverGivenTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab())
		defer f.stop()
		a, _ := f.join("a", hello("1", 2))
		defer a.leave()
		first, err := f.d.Reserve(t.Context(), "any")
		require.NoError(t, err)
		_, err = f.d.Reserve(t.Context(), "one")
		require.NoError(t, err)

		waiting := make(chan *Reservation, 1)
		go func() {
			r, err := f.d.Reserve(t.Context(), "any")
			if err == nil {
				waiting <- r
			}
		}()
		synctest.Wait()
		require.Empty(t, waiting, "both slots are taken")
		first.Release()
		first.Release()
		synctest.Wait()
		require.Len(t, waiting, 1, "the slot that was given back is the next one's")
		(<-waiting).Release()
		require.Equal(t, 1, f.d.Agents()[0].UsedSlots)

		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err = f.d.Reserve(ctx, "one")
		require.ErrorIs(t, err, context.DeadlineExceeded, "the runner is at its limit although a slot is free")
		_, err = f.d.Reserve(ctx, "gpu")
		require.ErrorIs(t, err, context.DeadlineExceeded, "no agent has the label")
		_, err = f.d.Reserve(t.Context(), "nobody")
		require.ErrorIs(t, err, ErrUnknownRunner)
	})
}

func TestAnOfferMovesOnWhenItsAgentGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab())
		defer f.stop()
		a, _ := f.join("a", hello("1", 1))
		f.claim("any")
		old := a.next().GetOffer().GetRef()
		b, _ := f.join("b", hello("2", 1))
		defer b.leave()
		a.leave()
		ref := b.begin()
		require.Equal(t, old.GetJob(), ref.GetJob())
		require.Greater(t, ref.GetEpoch(), old.GetEpoch())

		back, w := f.join("a", func() *fleetv1.Hello {
			h := hello("3", 1)
			h.Jobs = []*fleetv1.HeldJob{{Ref: old, State: fleetv1.JobState_JOB_STATE_ACCEPTED}}
			return h
		}())
		defer back.leave()
		require.Equal(t, fleetv1.Verdict_VERDICT_KILL, w.GetJobs()[0].GetVerdict(), "the first agent's promise is void")
		b.finish(ref, "x")
	})
}

func TestARunningJobOutlivesControlPlaneAndSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, dir := newGitLab(), t.TempDir()
		f := start(t, dir, g)
		a, _ := f.join("a", hello("1", 1))
		id := f.claim("any")
		ref := a.begin()
		a.leave()
		f.stop()

		f = start(t, dir, g)
		defer f.stop()
		h := hello("1", 1)
		h.Jobs = []*fleetv1.HeldJob{{Ref: ref, State: fleetv1.JobState_JOB_STATE_STARTED}}
		a, w := f.join("a", h)
		defer a.leave()
		require.Equal(t, fleetv1.Verdict_VERDICT_KEEP, w.GetJobs()[0].GetVerdict())
		require.Equal(t, 1, f.d.Agents()[0].UsedSlots, "the job still has its slot")
		a.finish(ref, "all of it")
		synctest.Wait()
		_, trace, ok := g.result(id)
		require.True(t, ok)
		require.Equal(t, "all of it", trace)
	})
}

func TestAnUnstartedJobIsConfirmedAndOfferedAnewAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, dir := newGitLab(), t.TempDir()
		f := start(t, dir, g)
		a, _ := f.join("a", hello("1", 1))
		f.claim("any")
		old := a.next().GetOffer().GetRef()
		f.stop()
		a.leave()

		f = start(t, dir, g)
		defer f.stop()
		a, _ = f.join("a", hello("2", 1))
		defer a.leave()
		ref := a.begin()
		require.Equal(t, old.GetEpoch()+1, ref.GetEpoch())
		require.Equal(t, []string{"101 pending", "101 pending", "101 running"}, g.puts, "asked as the first job, and after the restart")
		a.finish(ref, "")
	})
}

func TestAJobThatGitLabGaveUpIsForgottenAfterARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, dir := newGitLab(), t.TempDir()
		f := start(t, dir, g)
		a, _ := f.join("a", hello("1", 1))
		f.claim("any")
		f.stop()
		a.leave()
		g.answer = func(int64, string) client.UpdateResult { return answerWith(http.StatusForbidden, "canceled") }
		f = start(t, dir, g)
		defer f.stop()
		synctest.Wait()
		require.Empty(t, f.d.Jobs())
	})
}

func TestAnAgentThatStaysAwayLosesItsJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGitLab()
		f := start(t, t.TempDir(), g)
		defer f.stop()
		a, _ := f.join("a", hello("1", 1))
		id := f.claim("any")
		a.begin()
		gone := time.Now()
		a.leave()
		time.Sleep(DefaultLostAfter - time.Second)
		synctest.Wait()
		_, _, ok := g.result(id)
		require.False(t, ok, "within the lease nothing is given up")
		time.Sleep(time.Minute)
		synctest.Wait()
		u, trace, ok := g.result(id)
		require.True(t, ok)
		require.Equal(t, runnerapi.ReasonRunnerSystem, u.FailureReason)
		require.Contains(t, trace, "agent agent-a was lost: nothing was heard of it since "+gone.UTC().Format(time.RFC3339))
		require.Empty(t, f.d.Jobs())
		require.Empty(t, f.d.Agents(), "nothing is kept of an agent that is gone")
	})
}

func TestCancelReachesTheJob(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGitLab()
		f := start(t, t.TempDir(), g)
		defer f.stop()
		a, _ := f.join("a", hello("1", 1))
		defer a.leave()
		f.claim("any")
		ref := a.begin()
		f.d.JobStatus(ref.GetJob(), relay.StatusCanceling)
		require.Equal(t, fleetv1.CancelMode_CANCEL_MODE_GRACEFUL, a.next().GetCancel().GetMode())
		f.d.JobStatus(ref.GetJob(), relay.StatusCanceling)
		f.d.JobStatus(ref.GetJob(), relay.StatusGone)
		require.Equal(t, fleetv1.CancelMode_CANCEL_MODE_KILL, a.next().GetCancel().GetMode())
		a.finish(ref, "")
	})
}

func TestAClonedAgentIsRefusedAndARestartedOneIsNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab())
		defer f.stop()
		h := hello("1", 1)
		h.HostId = "machine-1"
		a, _ := f.join("a", h)
		defer a.leave()

		clone := f.dial("a")
		defer clone.leave()
		h2 := hello("2", 1)
		h2.HostId = "machine-2"
		clone.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Hello{Hello: h2}})
		_, err := clone.stream.Recv()
		require.Equal(t, codes.AlreadyExists, status.Code(err))
		require.ErrorContains(t, err, "host-1")
		require.ErrorContains(t, err, "host-2")

		h3 := hello("3", 1)
		h3.HostId = "machine-1"
		again, _ := f.join("a", h3)
		defer again.leave()
		_, err = a.stream.Recv()
		require.Equal(t, codes.Aborted, status.Code(err), "the same host's new process takes over")
	})
}

func TestASilentAgentIsDisconnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab())
		defer f.stop()
		a, _ := f.join("a", hello("1", 1))
		defer a.leave()
		began := time.Now()
		for {
			if _, err := a.stream.Recv(); err != nil {
				require.Equal(t, codes.DeadlineExceeded, status.Code(err))
				break
			}
		}
		require.LessOrEqual(t, time.Since(began), 2*DefaultPingPeriod+time.Second)
	})
}

func TestAStreamHasToIntroduceItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab())
		defer f.stop()
		a := f.dial("a")
		defer a.leave()
		a.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Ping{Ping: &fleetv1.Ping{Seq: 1}}})
		_, err := a.stream.Recv()
		require.Equal(t, codes.FailedPrecondition, status.Code(err))

		old := f.dial("b")
		defer old.leave()
		h := hello("1", 1)
		h.ProtocolMin, h.ProtocolMax = 7, 9
		old.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Hello{Hello: h}})
		_, err = old.stream.Recv()
		require.ErrorContains(t, err, "protocol 7 to 9")
	})
}

func TestADrainingAgentGetsNothingNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab())
		defer f.stop()
		a, _ := f.join("a", hello("1", 2))
		defer a.leave()
		f.claim("any")
		ref := a.begin()
		a.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_AgentStatus{AgentStatus: &fleetv1.AgentStatus{Draining: true}}})
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := f.d.Reserve(ctx, "any")
		require.ErrorIs(t, err, context.DeadlineExceeded)
		a.finish(ref, "done")
	})
}

func TestPayloadsGoToTheHolderOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab())
		defer f.stop()
		a, _ := f.join("a", hello("1", 1))
		defer a.leave()
		f.claim("any")
		b, _ := f.join("b", hello("2", 1))
		defer b.leave()
		ref := a.next().GetOffer().GetRef()
		_, err := a.client.GetJob(a.ctx, &fleetv1.GetJobRequest{Ref: ref})
		require.NoError(t, err, "the call may overtake the yes")
		a.reply(ref, true)
		a.next()
		got, err := a.client.GetJob(a.ctx, &fleetv1.GetJobRequest{Ref: ref})
		require.NoError(t, err)
		require.Equal(t, `{"id":1}`, string(got.GetPayload()))
		_, err = b.client.GetJob(b.ctx, &fleetv1.GetJobRequest{Ref: ref})
		require.Equal(t, codes.NotFound, status.Code(err))

		tr, err := b.client.Trace(b.ctx)
		require.NoError(t, err)
		require.NoError(t, tr.Send(&fleetv1.TraceRequest{Ref: ref, Data: []byte("not mine")}))
		answer, err := tr.Recv()
		require.NoError(t, err)
		require.Equal(t, fleetv1.TraceOutcome_TRACE_OUTCOME_STOP, answer.GetOutcome())
		require.NoError(t, tr.CloseSend())
		a.finish(ref, "mine")
	})
}

func TestGitLabIsToldWhatAllAgentsCanDo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab())
		defer f.stop()
		first := hello("1", 2)
		first.Executors[0].Gpus = "all"
		a, _ := f.join("a", first)
		synctest.Wait()
		require.Equal(t, "all", f.d.Info("any").Config.GPUs)
		h := hello("2", 3)
		h.Executors[0].Features = []string{"variables"}
		h.Executors[0].Shell = "sh"
		b, _ := f.join("b", h)
		synctest.Wait()
		info := f.d.Info("any")
		require.True(t, info.Features.Variables)
		require.False(t, info.Features.Refspecs, "one agent cannot")
		require.Empty(t, info.Shell)
		require.Empty(t, info.Config.GPUs, "not every job gets them")
		require.Equal(t, 5, f.d.Slots("any"))
		require.Equal(t, 1, f.d.Slots("one"))
		b.leave()
		a.leave()
		require.True(t, f.d.Info("any").Features.Variables, "what was said last stays while no agent is there")
	})
}

func TestAControlPlaneThatStopsSaysWhenToComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := start(t, t.TempDir(), newGitLab())
		a, _ := f.join("a", hello("1", 1))
		defer a.leave()
		go f.stop()
		require.Equal(t, DefaultComeBack, a.next().GetComeBack().GetAfter().AsDuration())
		_, err := a.stream.Recv()
		require.Equal(t, codes.Unavailable, status.Code(err))
		synctest.Wait()
	})
}
