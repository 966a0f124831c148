package enrollment_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/switchyard-ci/switchyard/controlplane/enrollment"
	"github.com/switchyard-ci/switchyard/controlplane/grpcserver"
	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
	"github.com/switchyard-ci/switchyard/controlplane/store/sqlite"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/internal/fleettls"
	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// journal is a log that may be written and read at once.
type journal struct {
	mu   sync.Mutex
	text strings.Builder
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// clock is a time that tests move.
type clock struct{ nanos atomic.Int64 }

func newClock() *clock {
	c := new(clock)
	c.nanos.Store(time.Now().UnixNano())
	return c
}

func (c *clock) now() time.Time          { return time.Unix(0, c.nanos.Load()) }
func (c *clock) advance(d time.Duration) { c.nanos.Add(int64(d)) }

// fleet is a control plane that serves enrolment over TCP and TLS, and a call that needs an identity.
type fleet struct {
	*enrollment.Authority
	ca      *enrollment.CA
	store   *sqlite.Store
	log     *journal
	clock   *clock
	address string
}

// startFleet starts a control plane with what is in folder.
func startFleet(t *testing.T, folder string, clock *clock) *fleet {
	t.Helper()
	s, err := sqlite.Open(t.Context(), filepath.Join(folder, "store.db"), sealing.NewKey([32]byte{1}))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	ca, err := enrollment.OpenCA(folder, clock.now)
	require.NoError(t, err)
	log := new(journal)
	logger := slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	authority, err := enrollment.New(t.Context(), ca, s, logger)
	require.NoError(t, err)

	server, err := grpcserver.New(grpcserver.Options{TLS: authority.TLSConfig(), Log: logger})
	require.NoError(t, err)
	fleetv1.RegisterEnrollmentServiceServer(server, authority)
	fleetv1.RegisterFleetServiceServer(server, whoAmI{authority: authority})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; !errors.Is(err, grpc.ErrServerStopped) { // it had not begun
			require.NoError(t, err)
		}
	})
	return &fleet{Authority: authority, ca: ca, store: s, clock: clock, log: log, address: listener.Addr().String()}
}

func newFleet(t *testing.T) *fleet {
	t.Helper()
	return startFleet(t, t.TempDir(), newClock())
}

// whoAmI answers GetJob with the caller's identity.
type whoAmI struct {
	fleetv1.UnimplementedFleetServiceServer
	authority *enrollment.Authority
}

func (w whoAmI) GetJob(ctx context.Context, _ *fleetv1.GetJobRequest) (*fleetv1.GetJobResponse, error) {
	id, err := w.authority.Identity(ctx)
	return &fleetv1.GetJobResponse{Payload: []byte(id)}, err
}

// token makes a join token for one agent.
func (f *fleet) token(t *testing.T, uses int) jointoken.Token {
	t.Helper()
	token, _, err := f.NewJoinToken(t.Context(), uses, time.Hour)
	require.NoError(t, err)
	return token
}

// dial connects to the fleet; the connection is made by the first call.
func (f *fleet) dial(t *testing.T, config *tls.Config) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(f.address, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, conn.Close()) })
	return conn
}

// host is an agent's side.
type host struct {
	key         *ecdsa.PrivateKey
	certificate *tls.Certificate
}

func newHost(t *testing.T) *host {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return &host{key: key}
}

func (h *host) csr(t *testing.T) []byte {
	t.Helper()
	csr, err := x509.CreateCertificateRequest(rand.Reader, new(x509.CertificateRequest), h.key)
	require.NoError(t, err)
	return csr
}

// enroll joins the fleet with the token's text.
func (h *host) enroll(t *testing.T, f *fleet, token jointoken.Token, name string) (*fleetv1.EnrollResponse, error) {
	t.Helper()
	conn := f.dial(t, fleettls.FirstContact(token, func(*x509.Certificate) {}))
	answer, err := fleetv1.NewEnrollmentServiceClient(conn).Enroll(t.Context(),
		&fleetv1.EnrollRequest{Token: token.String(), Csr: h.csr(t), Name: name})
	if err == nil {
		h.use(t, answer.GetCertificateChain())
	}
	return answer, err
}

func (h *host) use(t *testing.T, chain [][]byte) {
	t.Helper()
	leaf, err := x509.ParseCertificate(chain[0])
	require.NoError(t, err)
	h.certificate = &tls.Certificate{Certificate: chain, PrivateKey: h.key, Leaf: leaf}
}

// member connects as the enrolled agent.
func (h *host) member(t *testing.T, f *fleet) *grpc.ClientConn {
	t.Helper()
	config := fleettls.Client(f.ca.Certificate(), func() (*tls.Certificate, error) { return h.certificate, nil })
	config.Time = f.clock.now
	return f.dial(t, config)
}

// whoAmI asks the control plane who calls.
func (h *host) whoAmI(t *testing.T, f *fleet) (string, error) {
	t.Helper()
	return ask(t, h.member(t, f))
}

func ask(t *testing.T, conn *grpc.ClientConn) (string, error) {
	t.Helper()
	answer, err := fleetv1.NewFleetServiceClient(conn).GetJob(t.Context(), &fleetv1.GetJobRequest{Ref: &fleetv1.JobRef{Job: 1, Epoch: 1}})
	return string(answer.GetPayload()), err
}
