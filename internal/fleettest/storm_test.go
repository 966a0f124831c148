package fleettest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/switchyard-ci/switchyard/agent/uplink"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
	"github.com/switchyard-ci/switchyard/controlplane/store/sqlite"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/internal/fleettls"
	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

// storm is a control plane with very many agents, each of which holds one job. The control plane is a process of its own,
// agents are what is needed of them in this one: an identity, a connection with TLS, the session, and the real agent's way
// of trying again.
type storm struct {
	*processes
	agents []*stormAgent

	failed chan error // what should not be: a session that was refused, or that ended by itself
	ctx    context.Context
	stop   context.CancelFunc
	all    sync.WaitGroup
}

type stormAgent struct {
	storm *storm
	id    string
	tls   *tls.Config
	job   int64
	up    atomic.Int64  // sessions that were welcomed
	alive atomic.Uint64 // pings that were answered by it
}

// stormJobs is where the ids of their jobs in GitLab begin; the embedded GitLab knows nothing of them.
const stormJobs = 1_000_000

func startStorm(t testing.TB, agents int) *storm {
	t.Helper()
	s := &storm{processes: startProcesses(t, processOptions{config: "ping_period: 25s\n"}), failed: make(chan error, 1)}
	s.ctx, s.stop = context.WithCancel(context.Background())
	t.Cleanup(func() {
		s.stop()
		s.all.Wait()
	})
	answers := httptest.NewServer(http.HandlerFunc(s.answer))
	t.Cleanup(answers.Close)
	config, err := os.ReadFile(s.config())
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(config), "url: ")
	url, _, _ := strings.Cut(rest, "\n")
	config = []byte(strings.Replace(string(config), url, answers.URL, 1))
	s.enrol(t, agents)
	require.NoError(t, os.WriteFile(s.config(), config, 0o600))
	s.plane.signal(t, syscall.SIGTERM)
	s.beginJobs(t, answers.URL)
	s.startPlane()
	for _, a := range s.agents {
		s.all.Go(a.run)
	}
	s.await(t, "every agent is here", func(a *stormAgent) bool { return a.up.Load() == 1 })
	return s
}

// answer is GitLab: it takes what it is told of the agents' jobs.
func (s *storm) answer(w http.ResponseWriter, r *http.Request) {
	var id int64
	if n, _ := fmt.Sscanf(r.URL.Path, "/api/v4/jobs/%d", &id); n == 1 && id >= stormJobs {
		w.Header().Set("Job-Status", "running")
		w.WriteHeader(http.StatusOK)
		return
	}
	s.gitlab.Handler().ServeHTTP(w, r)
}

// enrol gives every agent its identity.
func (s *storm) enrol(t testing.TB, agents int) {
	t.Helper()
	out, err := exec.Command(filepath.Join(bin, "switchyard"), "agents", "token", "--uses", fmt.Sprint(agents), "-c", s.config()).Output()
	require.NoError(t, err)
	token, err := jointoken.Parse(string(out))
	require.NoError(t, err)
	var ca atomic.Pointer[x509.Certificate]
	conn, err := uplink.Dial(uplink.Target{Address: s.listen}, fleettls.FirstContact(token, ca.Store))
	require.NoError(t, err)
	defer conn.Close()
	client := fleetv1.NewEnrollmentServiceClient(conn)
	s.agents = make([]*stormAgent, agents)
	group, ctx := errgroup.WithContext(t.Context())
	group.SetLimit(32)
	for i := range s.agents {
		group.Go(func() error {
			key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
			if err != nil {
				return err
			}
			csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
			if err != nil {
				return err
			}
			answer, err := client.Enroll(ctx, &fleetv1.EnrollRequest{Token: token.String(), Csr: csr, Name: fmt.Sprintf("agent-%d", i)})
			if err != nil {
				return err
			}
			own := &tls.Certificate{Certificate: answer.GetCertificateChain(), PrivateKey: key}
			s.agents[i] = &stormAgent{
				storm: s, id: answer.GetAgentId(), tls: fleettls.Client(ca.Load(), func() (*tls.Certificate, error) { return own, nil }),
			}
			return nil
		})
	}
	require.NoError(t, group.Wait())
}

// beginJobs writes into the store that each agent has begun a job. The control plane is not there.
func (s *storm) beginJobs(t testing.TB, gitlab string) {
	t.Helper()
	key, err := sealing.LoadKey(filepath.Join(s.dir, "plane", "master.key"))
	require.NoError(t, err)
	rows, err := sqlite.Open(t.Context(), filepath.Join(s.dir, "plane", "switchyard.db"), key)
	require.NoError(t, err)
	group, ctx := errgroup.WithContext(t.Context())
	for i, a := range s.agents {
		group.Go(func() error {
			j, err := rows.InsertJob(ctx, store.NewJob{
				Runner: "runner-0", GitLabURL: gitlab, GitLabJobID: stormJobs + int64(i), Token: "glcbt-token", Payload: []byte(`{"id":1}`), Agent: a.id,
				Envelope: store.Envelope{ProjectID: 1, JobName: "job", StopAfter: time.Hour, LostAfter: 2 * time.Hour}, ClaimedAt: time.Now(),
			})
			if err == nil {
				a.job = j.ID
				err = rows.StartJob(ctx, j.ID, 1, time.Now())
			}
			return err
		})
	}
	require.NoError(t, group.Wait())
	require.NoError(t, rows.Close())
}

// run keeps one session after the other, as an agent does.
func (a *stormAgent) run() {
	backoff := uplink.Backoff{First: 100 * time.Millisecond, Most: 30 * time.Second}
	for a.storm.ctx.Err() == nil {
		before := a.up.Load()
		err := a.session()
		if a.storm.ctx.Err() != nil {
			return
		}
		if status.Code(err) != codes.Unavailable { // that is the killed control plane, and the one that is not there yet
			select {
			case a.storm.failed <- fmt.Errorf("agent %s: %w", a.id, err):
			default:
			}
		}
		if a.up.Load() > before {
			backoff.Reset()
		}
		select {
		case <-time.After(backoff.Next()):
		case <-a.storm.ctx.Done():
		}
	}
}

func (a *stormAgent) session() error {
	conn, err := uplink.Dial(uplink.Target{Address: a.storm.listen, UserAgent: "storm"}, a.tls)
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(a.storm.ctx)
	defer cancel()
	stream, err := fleetv1.NewFleetServiceClient(conn).Session(ctx)
	if err != nil {
		return err
	}
	h := &fleetv1.Hello{
		BootId: a.id, HostId: a.id, ProtocolMin: 1, ProtocolMax: 1, Version: "storm", Os: "linux", Arch: "amd64", Hostname: "storm",
		Slots: 1, Executors: []*fleetv1.Executor{{Name: "shell", Features: []string{"variables"}, Shell: "bash"}},
	}
	h.Jobs = []*fleetv1.HeldJob{{Ref: &fleetv1.JobRef{Job: a.job, Epoch: 1}, State: fleetv1.JobState_JOB_STATE_STARTED, TraceLength: 100}}
	if err := stream.Send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Hello{Hello: h}}); err != nil {
		return reason(stream)
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		switch {
		case m.GetWelcome() != nil:
			if jobs := m.GetWelcome().GetJobs(); len(jobs) != 1 || jobs[0].GetVerdict() != fleetv1.Verdict_VERDICT_KEEP {
				return errors.New("the control plane does not know the job")
			}
			a.up.Add(1)
		case m.GetPing() != nil:
			a.alive.Add(1)
			if err := stream.Send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Pong{Pong: &fleetv1.Pong{Seq: m.GetPing().GetSeq()}}}); err != nil {
				return reason(stream)
			}
		case m.GetComeBack() != nil:
		default:
			return fmt.Errorf("unexpected: %v", m)
		}
	}
}

// reason is why a stream that cannot be written to has ended.
func reason(stream grpc.BidiStreamingClient[fleetv1.SessionRequest, fleetv1.SessionResponse]) error {
	for {
		if _, err := stream.Recv(); err != nil {
			return err
		}
	}
}

// await waits until every agent has come so far, and ends the test at the first error.
func (s *storm) await(t testing.TB, what string, is func(*stormAgent) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for left := s.agents; len(left) > 0; {
		for len(left) > 0 && is(left[0]) {
			left = left[1:]
		}
		select {
		case err := <-s.failed:
			t.Fatalf("%s: %v\n%s", what, err, limit([]byte(s.plane.log.String())))
		case <-ctx.Done():
			t.Fatalf("waited in vain: %s: %d of %d are missing\n%s", what, len(left), len(s.agents), limit([]byte(s.plane.log.String())))
		case <-ticker.C:
		}
	}
}

// recover kills the control plane, starts it again, and returns how long it takes from there until all agents are back with
// their jobs.
func (s *storm) recover(t testing.TB) time.Duration {
	t.Helper()
	s.plane.signal(t, syscall.SIGKILL)
	began := time.Now()
	s.startPlane()
	s.await(t, "every agent is back", func(a *stormAgent) bool { return a.up.Load() == 2 })
	return time.Since(began)
}

const stormAgents = 2000

// Two thousand agents, whose control plane was killed and started again, come back at once: nobody is refused, no session
// breaks, every job is kept.
func TestAReconnectStormIsAbsorbed(t *testing.T) {
	s := startStorm(t, stormAgents)
	took := s.recover(t)
	t.Logf("%d agents are back %s after the control plane's start", stormAgents, took.Round(time.Millisecond))
	seen := make(map[*stormAgent]uint64, len(s.agents))
	for _, a := range s.agents {
		seen[a] = a.alive.Load()
	}
	s.await(t, "every session lives", func(a *stormAgent) bool { return a.alive.Load() > seen[a] })
	for _, a := range s.agents {
		require.EqualValues(t, 2, a.up.Load(), "one session before and one after")
	}
	for _, bad := range []string{"level=ERROR", "level=WARN", " ERR ", " WRN "} {
		require.NotContains(t, s.plane.log.String(), bad)
	}
}

// BenchmarkRecovery: from the start of a killed control plane whose store has 2,000 started jobs until the sessions of their
// 2,000 agents are back, and the memory that it has then. The agents, in another process on the same machine, do half of the
// TLS handshakes' work.
func BenchmarkRecovery(b *testing.B) {
	for b.Loop() {
		s := startStorm(b, stormAgents)
		took := s.recover(b)
		used, _ := processTime(b, s.plane.cmd.Process.Pid)
		anonymous, resident := memory(b, s.plane.cmd.Process.Pid)
		b.ReportMetric(took.Seconds(), "s-until-all-back")
		b.ReportMetric(used.Seconds(), "cpu-s-plane")
		b.ReportMetric(anonymous, "MiB-anonymous-plane")
		b.ReportMetric(resident, "MiB-resident-plane")
		b.ReportMetric(0, "ns/op")
	}
}
