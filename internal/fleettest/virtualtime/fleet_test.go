package virtualtime

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/switchyard-ci/switchyard/agent"
	"github.com/switchyard-ci/switchyard/controlplane/dispatch"
	"github.com/switchyard-ci/switchyard/controlplane/enrollment"
	"github.com/switchyard-ci/switchyard/controlplane/grpcserver"
	"github.com/switchyard-ci/switchyard/controlplane/relay"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
	"github.com/switchyard-ci/switchyard/controlplane/store/sqlite"
	"github.com/switchyard-ci/switchyard/executors"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

// gitlab takes everything and notes when it heard of a job's end.
type gitlab struct {
	mu     sync.Mutex
	ends   map[int64][]end
	traces map[int64][]byte
}

type end struct {
	at     time.Time
	update runnerapi.UpdateRequest
}

func (g *gitlab) UpdateJob(_ context.Context, id int64, u runnerapi.UpdateRequest) (*client.UpdateResult, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if u.State == runnerapi.StateSuccess || u.State == runnerapi.StateFailed {
		g.ends[id] = append(g.ends[id], end{time.Now(), u})
	}
	return &client.UpdateResult{Report: client.Report{Code: http.StatusOK}}, nil
}

func (g *gitlab) PatchTrace(_ context.Context, id int64, _ string, start int64, body client.TraceBody, _ bool) (*client.PatchResult, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	code := http.StatusRequestedRangeNotSatisfiable
	if start == int64(len(g.traces[id])) {
		data, err := io.ReadAll(io.NewSectionReader(body, 0, body.Size()))
		if err != nil {
			return nil, err
		}
		g.traces[id] = append(g.traces[id], data...)
		code = http.StatusAccepted
	}
	return &client.PatchResult{Report: client.Report{Code: code}, Range: int64(len(g.traces[id]))}, nil
}

func (g *gitlab) ended(id int64) []end {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ends[id]
}

func (g *gitlab) trace(id int64) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return string(g.traces[id])
}

// lockedLog is a log that is read while it is written.
type lockedLog struct {
	mu    sync.Mutex
	lines []line
}

type line struct {
	at   time.Time
	text string
}

func (l *lockedLog) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line{time.Now(), string(b)})
	return len(b), nil
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	for _, line := range l.lines {
		b.WriteString(line.text)
	}
	return b.String()
}

// after returns when a line with that text was written first since then, and the line.
func (l *lockedLog) after(since time.Time, text string) (time.Time, string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, line := range l.lines {
		if !line.at.Before(since) && strings.Contains(line.text, text) {
			return line.at, line.text
		}
	}
	return time.Time{}, ""
}

// fleet is a control plane without its polling and one agent.
type fleet struct {
	t       *testing.T
	gitlab  *gitlab
	place   *place
	net     *network
	d       *dispatch.Dispatcher
	log     *lockedLog
	nextJob int64

	stops []func()
}

// options of a fleet.
type options struct {
	period  time.Duration
	delay   time.Duration
	runners []dispatch.Runner // GitLab, URL and executor are the fleet's
	// Of the jobs: their kill grace, how long they take to stop, and whether only being killed stops them.
	grace, slow time.Duration
	deaf        bool
}

func start(t *testing.T, o options) *fleet {
	t.Helper()
	dir := t.TempDir()
	f := &fleet{
		t: t, gitlab: &gitlab{ends: map[int64][]end{}, traces: map[int64][]byte{}}, net: newNetwork(o.delay), log: &lockedLog{},
	}
	f.place = &place{grace: o.grace, deaf: o.deaf, slow: o.slow, jobs: map[int64]*process{}}
	log := slog.New(slog.NewTextHandler(f.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	rows, err := sqlite.Open(t.Context(), filepath.Join(dir, "store.db"), sealing.NewKey([32]byte{1}))
	require.NoError(t, err)
	ca, err := enrollment.OpenCA(dir, time.Now)
	require.NoError(t, err)
	authority, err := enrollment.New(t.Context(), ca, rows, log.With("of", "plane"))
	require.NoError(t, err)
	for i := range o.runners {
		r := &o.runners[i]
		r.URL, r.Executor, r.GitLab, r.OutputLimit = "http://gitlab", "shell", f.gitlab, 1<<20
	}
	f.d, err = dispatch.New(dispatch.Config{
		Store: rows, Runners: o.runners, PingPeriod: o.period, Logger: log.With("of", "plane"),
		Identity: func(ctx context.Context) (id, name string, err error) {
			id, err = authority.Identity(ctx)
			return id, "agent-one", err
		},
		AgentName: func(string) string { return "agent-one" },
		Retired:   func(store.Job) (dispatch.Runner, error) { panic("no runner is taken away") },
	})
	require.NoError(t, err)
	spool, err := relay.New(relay.Options{Dir: filepath.Join(dir, "spool"), Events: f.d, MinFree: 1})
	require.NoError(t, err)
	require.NoError(t, f.d.Start(t.Context(), spool))
	server, err := grpcserver.New(grpcserver.Options{TLS: authority.TLSConfig(), Log: log, Unvalidated: []string{dispatch.TraceMethod}})
	require.NoError(t, err)
	fleetv1.RegisterEnrollmentServiceServer(server, authority)
	fleetv1.RegisterFleetServiceServer(server, f.d)
	served := make(chan struct{})
	go func() {
		defer close(served)
		_ = server.Serve(f.net.listener)
	}()

	token, _, err := authority.NewJoinToken(t.Context(), 1, time.Hour)
	require.NoError(t, err)
	a, err := agent.New(agent.Config{
		Server: "plane:1", Dialer: f.net.dial, Data: filepath.Join(dir, "agent"), Name: "agent-one", Slots: 4,
		Token: func() (jointoken.Token, error) { return token, nil }, JobBinary: "/bin/false",
		Executors: []executors.Executor{f.place}, Log: log.With("of", "agent"),
	})
	require.NoError(t, err)
	ctx, leave := context.WithCancel(context.Background())
	left := make(chan error, 1)
	go func() { left <- a.Run(ctx) }()
	f.stops = append(f.stops, func() {
		leave()
		require.NoError(t, <-left)
		f.net.close()
		f.d.Close()
		stop(server)
		<-served
		f.d.Wait()
		require.NoError(t, spool.Close(context.Background()))
		require.NoError(t, rows.Close())
		for _, p := range f.place.jobs {
			p.end()
		}
	})
	f.until(f.online)
	return f
}

func (f *fleet) online() bool {
	agents := f.d.Agents()
	return len(agents) == 1 && agents[0].Online
}

func stop(server *grpc.Server) {
	force := time.AfterFunc(2*time.Second, server.Stop)
	defer force.Stop()
	server.GracefulStop()
}

func (f *fleet) stop() {
	if f.t.Failed() {
		f.t.Log(f.log.String())
	}
	for _, stop := range f.stops {
		stop()
	}
}

// pass lets virtual time pass.
func (f *fleet) pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// until lets as much time pass as something takes, at most some minutes.
func (f *fleet) until(is func() bool) {
	f.t.Helper()
	for range 10_000 {
		if synctest.Wait(); is() {
			return
		}
		<-time.After(50 * time.Millisecond)
	}
	f.t.Fatalf("waited in vain\n%s", f.log)
}

// claim brings a job that runs.
func (f *fleet) claim(runner string) int64 {
	f.t.Helper()
	f.nextJob++
	id := f.nextJob
	slot, err := f.d.Reserve(f.t.Context(), runner)
	require.NoError(f.t, err)
	payload, err := json.Marshal(runnerapi.Job{ID: id, RunnerInfo: runnerapi.RunnerInfo{Timeout: 1_000_000}})
	require.NoError(f.t, err)
	require.NoError(f.t, f.d.Claimed(f.t.Context(), runner, slot, dispatch.Claim{
		Payload: payload, Envelope: runnerapi.Envelope{ID: id, Token: "t"}, At: time.Now(),
	}))
	f.until(func() bool { return f.place.runs(id) })
	return id
}

// untilAt is until with an end.
func (f *fleet) untilAt(end time.Time, is func() bool) {
	f.t.Helper()
	for !is() {
		if time.Now().After(end) {
			f.t.Fatalf("waited in vain until %s\n%s", end, f.log)
		}
		f.pass(time.Second)
	}
}
