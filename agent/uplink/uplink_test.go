package uplink_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"pgregory.net/rapid"

	"github.com/switchyard-ci/switchyard/agent/internal/fakefleet"
	"github.com/switchyard-ci/switchyard/agent/uplink"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/internal/fleettls"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// certificate makes an agent's certificate of a fleet.
func certificate(t *testing.T, a *fakefleet.Authority, from, until time.Time) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	require.NoError(t, err)
	return &tls.Certificate{Certificate: a.Agent(t, uuid.NewString(), csr, from, until), PrivateKey: key}
}

func call(t *testing.T, target uplink.Target, config *tls.Config) error {
	t.Helper()
	conn, err := uplink.Dial(target, config)
	require.NoError(t, err)
	defer conn.Close()
	_, err = fleetv1.NewFleetServiceClient(conn).GetJob(t.Context(), &fleetv1.GetJobRequest{Ref: &fleetv1.JobRef{Job: 1, Epoch: 1}})
	return conn.Explain(err)
}

func TestWhatACertificatesRefusalMeans(t *testing.T) {
	f := fakefleet.Start(t)
	now := time.Now()
	for name, tc := range map[string]struct {
		own  *tls.Certificate
		kind uplink.Kind
		want string
	}{
		"expired":          {certificate(t, f.Authority, now.Add(-2*time.Hour), now.Add(-time.Hour)), uplink.Clock, "this agent's certificate is expired"},
		"of another fleet": {certificate(t, fakefleet.NewAuthority(t), now.Add(-time.Hour), now.Add(time.Hour)), uplink.Removed, "refuses this agent's certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			err := call(t, uplink.Target{Address: f.Address}, fleettls.Client(f.Authority.Certificate, func() (*tls.Certificate, error) { return tc.own, nil }))
			require.ErrorContains(t, err, tc.want)
			require.ErrorContains(t, err, "enrol again")
			require.Equal(t, tc.kind, uplink.KindOf(err))
		})
	}
}

func TestADialerReplacesTCP(t *testing.T) {
	f := fakefleet.Start(t)
	f.SetPayload(1, []byte("{}"))
	own := certificate(t, f.Authority, time.Now().Add(-time.Hour), time.Now().Add(time.Hour))
	config := fleettls.Client(f.Authority.Certificate, func() (*tls.Certificate, error) { return own, nil })
	target := uplink.Target{Address: "nowhere:1", Dialer: func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", f.Address)
	}}
	require.NoError(t, call(t, target, config))
}

func TestCodes(t *testing.T) {
	conn, err := uplink.Dial(uplink.Target{Address: "h:1"}, &tls.Config{MinVersion: tls.VersionTLS13})
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.Explain(nil))
	for code, kind := range map[codes.Code]uplink.Kind{
		codes.Unavailable: uplink.Unavailable, codes.DeadlineExceeded: uplink.Unavailable, codes.Internal: uplink.Unavailable,
		codes.ResourceExhausted: uplink.Unavailable, codes.Canceled: uplink.Unavailable, codes.Unknown: uplink.Unavailable,
		codes.Unauthenticated: uplink.Removed, codes.PermissionDenied: uplink.Removed,
		codes.Aborted: uplink.Cloned, codes.AlreadyExists: uplink.Cloned,
		codes.FailedPrecondition: uplink.Incompatible, codes.Unimplemented: uplink.WrongFleet, codes.InvalidArgument: uplink.Invalid,
	} {
		err := conn.Explain(status.Error(code, "what the server said"))
		require.Equal(t, kind, uplink.KindOf(err), code)
		require.ErrorContains(t, err, "what the server said")
		require.NotContains(t, err.Error(), "rpc error")
		if kind != uplink.Cloned {
			require.ErrorContains(t, err, "h:1")
		}
	}
	require.Equal(t, uplink.Unavailable, uplink.KindOf(context.Canceled))
}

// TestBackoffKeepsToItsWindows: attempt n falls into the n-th window, and the windows follow one another and double.
func TestBackoffKeepsToItsWindows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := time.Duration(rapid.IntRange(1, 1000).Draw(t, "first")) * time.Millisecond
		most := first * time.Duration(rapid.IntRange(1, 100).Draw(t, "most"))
		b := uplink.Backoff{First: first, Most: most}
		for range 2 {
			var at, begin time.Duration
			window := first
			for range 12 {
				at += b.Next()
				if at < begin || at >= begin+window {
					t.Fatalf("an attempt at %v is not in [%v, %v)", at, begin, begin+window)
				}
				begin += window
				window = min(2*window, most)
			}
			b.Reset()
		}
	})
	for range 100 {
		d := uplink.Jitter(time.Second)
		require.GreaterOrEqual(t, d, time.Second/2)
		require.Less(t, d, 3*time.Second/2)
	}
	require.Zero(t, uplink.Jitter(0))
}
