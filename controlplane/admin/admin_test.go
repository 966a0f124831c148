//go:build unix

package admin_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/switchyard-ci/switchyard/controlplane/admin"
	"github.com/switchyard-ci/switchyard/controlplane/dispatch"
	"github.com/switchyard-ci/switchyard/controlplane/enrollment"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
	"github.com/switchyard-ci/switchyard/controlplane/store/sqlite"
	adminv1 "github.com/switchyard-ci/switchyard/gen/switchyard/admin/v1"
	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fleet is a Fleet at one moment.
type fleet struct {
	sharing
	agents []dispatch.AgentStatus
	jobs   []dispatch.JobSnapshot
}

func (f fleet) Agents() []dispatch.AgentStatus { return f.agents }
func (f fleet) Jobs() []dispatch.JobSnapshot   { return f.jobs }

func (f fleet) RemoveAgent(id string) int {
	n := 0
	for _, j := range f.jobs {
		if j.Agent == id {
			n++
		}
	}
	return n
}

// members are a fleet's, without tokens.
type members []store.Agent

func (m members) Agents() []store.Agent { return m }

func (m members) Remove(context.Context, string) error { return nil }

func (members) NewJoinToken(context.Context, int, time.Duration) (jointoken.Token, store.JoinToken, error) {
	return jointoken.Token{}, store.JoinToken{}, store.ErrFull
}

// runners are those of a control plane.
type runners struct {
	policies
	*drains
	list   []admin.RunnerStatus
	rotate func(ctx context.Context, runner string) error
}

func (r runners) Runners() []admin.RunnerStatus { return r.list }

func (r runners) RotateToken(ctx context.Context, runner string) error { return r.rotate(ctx, runner) }

// controlPlane is what serves on a folder.
type controlPlane struct {
	store *sqlite.Store
	ca    *enrollment.CA
	log   *bytes.Buffer // read it after stop
	audit *[]store.AuditEntry
	stop  func()
}

// start starts a control plane with a store and an authority of its own.
func start(t *testing.T, folder string) *controlPlane {
	t.Helper()
	s, err := sqlite.Open(t.Context(), filepath.Join(folder, "store.db"), sealing.NewKey([32]byte{1}))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	ca, err := enrollment.OpenCA(folder, nil)
	require.NoError(t, err)
	authority, err := enrollment.New(t.Context(), ca, s, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	log, audit := new(bytes.Buffer), new([]store.AuditEntry)
	return &controlPlane{store: s, ca: ca, log: log, audit: audit, stop: serve(t, folder, authority, fleet{}, runners{policies: policies{audit}}, slog.New(slog.NewTextHandler(log, nil)))}
}

// serve serves until stop is called or the test ends.
func serve(t *testing.T, folder string, members admin.Members, f admin.Fleet, r admin.Plane, log *slog.Logger) (stop func()) {
	t.Helper()
	server, err := admin.NewServer(members, f, r, log)
	require.NoError(t, err)
	l, err := admin.Listen(t.Context(), folder)
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	stop = sync.OnceFunc(func() {
		server.Stop()
		if err := <-served; !errors.Is(err, grpc.ErrServerStopped) { // it had not begun
			require.NoError(t, err)
		}
	})
	t.Cleanup(stop)
	return stop
}

func dial(t *testing.T, folder string) adminv1.AdminServiceClient {
	t.Helper()
	conn, err := admin.Dial(t.Context(), folder, "switchyard.yaml")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return adminv1.NewAdminServiceClient(conn)
}

func TestJoinTokens(t *testing.T) {
	folder := t.TempDir()
	cp := start(t, folder)
	client := dial(t, folder)

	plain, err := client.CreateJoinToken(t.Context(), &adminv1.CreateJoinTokenRequest{})
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(time.Hour), plain.GetExpiresAt().AsTime(), time.Minute)
	many, err := client.CreateJoinToken(t.Context(), &adminv1.CreateJoinTokenRequest{Uses: 3, Ttl: durationpb.New(24 * time.Hour), Actor: "ada"})
	require.NoError(t, err)
	require.WithinDuration(t, time.Now().Add(24*time.Hour), many.GetExpiresAt().AsTime(), time.Minute)

	for text, uses := range map[string]int{plain.GetToken(): 1, many.GetToken(): 3} {
		token, err := jointoken.Parse(text)
		require.NoError(t, err)
		require.Equal(t, jointoken.CADigest(cp.ca.Certificate()), token.CA)
		digest := token.Digest()
		for n := range uses + 1 {
			_, err := cp.store.EnrollAgent(t.Context(), digest[:], store.Agent{ID: uuid.NewString(), Name: "a", KeyDigest: uuid.NewString()}, time.Now())
			if n < uses {
				require.NoError(t, err)
			} else {
				require.ErrorIs(t, err, store.ErrTokenUsed)
			}
		}
	}

	_, err = client.CreateJoinToken(t.Context(), &adminv1.CreateJoinTokenRequest{Uses: 100001})
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	require.ErrorContains(t, err, "uses: must be less than or equal to 100000")
	_, err = client.CreateJoinToken(t.Context(), &adminv1.CreateJoinTokenRequest{Ttl: durationpb.New(-time.Second)})
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	require.ErrorContains(t, err, "ttl")

	require.Len(t, *cp.audit, 2)
	for i, want := range []struct{ actor, detail string }{{"unknown", "uses: 1, "}, {"ada", "uses: 3, expires: 20"}} {
		e := (*cp.audit)[i]
		require.Equal(t, []string{want.actor, "join_token.make"}, []string{e.Actor, e.Action})
		require.Contains(t, e.Detail, want.detail)
	}

	cp.stop()
	require.Contains(t, cp.log.String(), "join token made")
	written := cp.log.String() + fmt.Sprint(*cp.audit)
	secret := plain.GetToken()[strings.LastIndexByte(plain.GetToken(), '-')+1:]
	require.NotContains(t, written, secret)
	require.NotContains(t, written, secret[:8])
}

func TestLists(t *testing.T) {
	folder := t.TempDir()
	now := time.Now().UTC()
	serve(t, folder,
		members{{ID: "id-of-zoe", Name: "zoe"}, {ID: "id-of-adam", Name: "adam"}},
		fleet{
			agents: []dispatch.AgentStatus{{
				ID: "id-of-zoe", Name: "zoe", Version: "1.2.3", Online: true, Draining: true, LastSeen: now, Slots: 4, UsedSlots: 1,
				Labels: map[string]string{"os": "linux"}, Executors: []string{"shell"},
			}},
			jobs: []dispatch.JobSnapshot{
				{
					Job: 1, Epoch: 2, GitLabJobID: 3, State: "started", Runner: "everything", Agent: "zoe", ProjectPath: "a/b", JobName: "test",
					ClaimedAt: now, StartedAt: now, TraceReceived: 5, TraceReported: 4,
				},
				{Job: 2, Epoch: 1, State: "claimed"},
			},
		}, runners{}, slog.New(slog.DiscardHandler))
	client := dial(t, folder)

	agents, err := client.ListAgents(t.Context(), &adminv1.ListAgentsRequest{})
	require.NoError(t, err)
	requireProto(t, &adminv1.ListAgentsResponse{Agents: []*adminv1.Agent{
		{Id: "id-of-adam", Name: "adam"},
		{
			Id: "id-of-zoe", Name: "zoe", Online: true, LastSeen: timestamppb.New(now), Slots: 4, UsedSlots: 1,
			Labels: map[string]string{"os": "linux"}, Executors: []string{"shell"}, Version: "1.2.3", Draining: true,
		},
	}}, agents)

	_, err = client.CreateJoinToken(t.Context(), &adminv1.CreateJoinTokenRequest{})
	require.ErrorContains(t, err, store.ErrFull.Error(), "the person at the command line is told why")

	jobs, err := client.ListJobs(t.Context(), &adminv1.ListJobsRequest{})
	require.NoError(t, err)
	requireProto(t, &adminv1.ListJobsResponse{Jobs: []*adminv1.Job{
		{
			Job: 1, Epoch: 2, State: "started", Runner: "everything", Agent: "zoe", GitlabJobId: 3, ProjectPath: "a/b", JobName: "test",
			ClaimedAt: timestamppb.New(now), StartedAt: timestamppb.New(now), TraceReceived: 5, TraceReported: 4,
		},
		{Job: 2, Epoch: 1, State: "claimed"},
	}}, jobs)
}

func requireProto(t *testing.T, want, have proto.Message) {
	t.Helper()
	require.True(t, proto.Equal(want, have), "want %v\nhave %v", want, have)
}

func TestSocket(t *testing.T) {
	for name, folder := range map[string]string{
		"short": t.TempDir(),
		"long":  filepath.Join(t.TempDir(), strings.Repeat("long/", 40)),
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.MkdirAll(folder, 0o700))
			path := filepath.Join(folder, "admin.sock")

			cp := start(t, folder)
			info, err := os.Lstat(path)
			require.NoError(t, err)
			require.Equal(t, os.ModeSocket|0o600, info.Mode())
			_, err = dial(t, folder).ListJobs(t.Context(), &adminv1.ListJobsRequest{})
			require.NoError(t, err)

			_, err = admin.Listen(t.Context(), folder)
			require.ErrorContains(t, err, "another control plane answers on "+path+": stop it first")
			cp.stop()
			require.NoFileExists(t, path)

			leaveSocket(t, folder)
			require.FileExists(t, path)
			start(t, folder)
			_, err = dial(t, folder).ListJobs(t.Context(), &adminv1.ListJobsRequest{})
			require.NoError(t, err, "a socket that a killed process left is replaced")
		})
	}
}

// leaveSocket leaves a socket behind on which nobody listens.
func leaveSocket(t *testing.T, folder string) {
	t.Helper()
	t.Chdir(folder)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: "admin.sock"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
}

func TestAFileInTheWay(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "admin.sock")
	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
	_, err := admin.Listen(t.Context(), folder)
	require.ErrorContains(t, err, "it is not a socket; move it away")
	require.FileExists(t, path)
}

func TestNobodyServes(t *testing.T) {
	empty, stale := t.TempDir(), t.TempDir()
	leaveSocket(t, stale)
	for _, folder := range []string{empty, stale, filepath.Join(empty, "missing")} {
		began := time.Now()
		_, err := admin.Dial(t.Context(), folder, "/etc/switchyard.yaml")
		require.Less(t, time.Since(began), time.Second)
		require.EqualError(t, err, "no control plane is running with the data folder "+folder+"; start it with `switchyard serve -c /etc/switchyard.yaml`")
	}
}

// A frozen process still has connections accepted for it.
func TestNobodyAnswers(t *testing.T) {
	folder := t.TempDir()
	l, err := admin.Listen(t.Context(), folder)
	require.NoError(t, err)
	defer l.Close()
	began := time.Now()
	_, err = admin.Dial(t.Context(), folder, "switchyard.yaml")
	require.ErrorContains(t, err, "does not answer")
	require.Less(t, time.Since(began), time.Second)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = admin.Dial(ctx, folder, "switchyard.yaml")
	require.ErrorIs(t, err, context.Canceled)
}
