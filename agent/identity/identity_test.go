package identity_test

import (
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/switchyard-ci/switchyard/agent/identity"
	"github.com/switchyard-ci/switchyard/agent/internal/fakefleet"
	"github.com/switchyard-ci/switchyard/agent/uplink"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/internal/fleettls"
	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func enroll(t *testing.T, f *fakefleet.Fleet, dir string, token jointoken.Token) (*identity.Identity, error) {
	t.Helper()
	return identity.Enroll(t.Context(), dir, uplink.Target{Address: f.Address}, token, "builder-1")
}

func TestEnrolmentIsKept(t *testing.T) {
	f := fakefleet.Start(t)
	dir := t.TempDir()
	_, err := identity.Load(dir)
	require.ErrorIs(t, err, identity.ErrNotEnrolled)

	id, err := enroll(t, f, dir, f.Token)
	require.NoError(t, err)
	require.Equal(t, "builder-1", id.Name)

	again, err := identity.Load(dir)
	require.NoError(t, err)
	require.Equal(t, id.ID, again.ID)
	require.Equal(t, id.Name, again.Name)
	cert, err := again.Certificate()
	require.NoError(t, err)
	require.Equal(t, id.ID, cert.Leaf.Subject.CommonName)
	info, err := os.Stat(filepath.Join(dir, "agent.key"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	require.Equal(t, 1, f.Enrolled())
}

func TestALostAnswerIsAskedForAgainWithTheSameKey(t *testing.T) {
	f := fakefleet.New(t)
	var csrs [][]byte
	f.OnEnroll = func(r *fleetv1.EnrollRequest) (*fleetv1.EnrollResponse, error) {
		csrs = append(csrs, r.GetCsr())
		if len(csrs) == 1 {
			return nil, status.Error(codes.Unavailable, "the answer is lost")
		}
		return f.Grant(r, time.Now(), time.Now().Add(time.Hour))
	}
	f.Serve(f.Authority.Server(t, fleettls.ServerName, time.Now().Add(-time.Minute), time.Now().Add(time.Hour)))
	dir := t.TempDir()
	_, err := enroll(t, f, dir, f.Token)
	require.Equal(t, uplink.Unavailable, uplink.KindOf(err))
	require.FileExists(t, filepath.Join(dir, "agent.key"))
	_, err = enroll(t, f, dir, f.Token)
	require.NoError(t, err)

	first, second := f.Authority.Agent(t, uuid.Nil.String(), csrs[0], time.Now(), time.Now().Add(time.Hour)), f.Authority.Agent(t, uuid.Nil.String(), csrs[1], time.Now(), time.Now().Add(time.Hour))
	require.Equal(t, publicKey(t, first[0]), publicKey(t, second[0]))
}

func TestNobodyButTheFleetGetsTheSecret(t *testing.T) {
	now := time.Now()
	for name, tc := range map[string]struct {
		serve func(f *fakefleet.Fleet)
		kind  uplink.Kind
		want  string
	}{
		"another fleet": {
			func(f *fakefleet.Fleet) {
				f.Authority = fakefleet.NewAuthority(t)
				f.Serve(f.Authority.Server(t, fleettls.ServerName, now.Add(-time.Minute), now.Add(time.Hour)))
			}, uplink.WrongFleet, "does not belong to the fleet of this join token (check --server",
		},
		"a chain with the CA but a leaf of another": {
			func(f *fakefleet.Fleet) {
				stranger := fakefleet.NewAuthority(t).Server(t, fleettls.ServerName, now.Add(-time.Minute), now.Add(time.Hour))
				stranger.Certificate[1] = f.Authority.Certificate.Raw
				f.Serve(stranger)
			}, uplink.WrongFleet, "is not this fleet's control plane",
		},
		"an agent's certificate": {
			func(f *fakefleet.Fleet) {
				f.Serve(f.Authority.Server(t, "agent", now.Add(-time.Minute), now.Add(time.Hour)))
			}, uplink.WrongFleet, "is not this fleet's control plane",
		},
		"a clock that is behind": {
			func(f *fakefleet.Fleet) {
				f.Serve(f.Authority.Server(t, fleettls.ServerName, now.Add(3*time.Hour), now.Add(9*time.Hour)))
			}, uplink.Clock, "If this host's clock is wrong, set it",
		},
		"a clock that is ahead": {
			func(f *fakefleet.Fleet) {
				f.Serve(f.Authority.Server(t, fleettls.ServerName, now.Add(-9*time.Hour), now.Add(-3*time.Hour)))
			}, uplink.Clock, "is not valid now",
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := fakefleet.New(t)
			tc.serve(f)
			_, err := enroll(t, f, t.TempDir(), f.Token)
			require.ErrorContains(t, err, tc.want)
			require.Equal(t, tc.kind, uplink.KindOf(err))
			require.Zero(t, f.Enrolled(), "the token has left the host")
			require.NotContains(t, err.Error(), f.Token.String())
		})
	}
}

func TestRefusals(t *testing.T) {
	f := fakefleet.Start(t)
	dir := t.TempDir()
	_, err := enroll(t, f, dir, jointoken.New(f.Authority.Certificate))
	var refused *identity.RefusedError
	require.ErrorAs(t, err, &refused)
	require.ErrorContains(t, err, "the join token is not known")
	require.ErrorContains(t, err, "switchyard agents token")
	_, err = identity.Load(dir)
	require.ErrorIs(t, err, identity.ErrNotEnrolled)
}

func TestWhatIsNoControlPlane(t *testing.T) {
	f := fakefleet.New(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
			_ = conn.Close()
		}
	})
	defer serving.Wait()
	defer listener.Close()
	f.Address = listener.Addr().String()
	_, err = enroll(t, f, t.TempDir(), f.Token)
	require.Equal(t, uplink.WrongFleet, uplink.KindOf(err), "%v", err)
	require.ErrorContains(t, err, "does not speak TLS")

	require.NoError(t, listener.Close())
	_, err = enroll(t, f, t.TempDir(), f.Token)
	require.Equal(t, uplink.Unavailable, uplink.KindOf(err))
	require.ErrorContains(t, err, "connection refused")
}

func TestRenewal(t *testing.T) {
	f := fakefleet.New(t)
	f.OnEnroll = func(r *fleetv1.EnrollRequest) (*fleetv1.EnrollResponse, error) {
		return f.Grant(r, time.Now().Add(-time.Hour), time.Now().Add(2*time.Hour))
	}
	f.Serve(f.Authority.Server(t, fleettls.ServerName, time.Now().Add(-time.Minute), time.Now().Add(time.Hour)))
	dir := t.TempDir()
	id, err := enroll(t, f, dir, f.Token)
	require.NoError(t, err)
	from, until := id.Validity()
	require.WithinRange(t, id.RenewAt(), from.Add(until.Sub(from)*2/3), from.Add(until.Sub(from)*3/4))

	conn, err := uplink.Dial(uplink.Target{Address: f.Address}, id.TLS())
	require.NoError(t, err)
	defer conn.Close()

	stranger := fakefleet.NewAuthority(t)
	for name, answer := range map[string]func(*fleetv1.RenewRequest) ([][]byte, error){
		"refused": func(*fleetv1.RenewRequest) ([][]byte, error) {
			return nil, status.Error(codes.PermissionDenied, "removed")
		},
		"another fleet": func(r *fleetv1.RenewRequest) ([][]byte, error) {
			return stranger.Agent(t, id.ID, r.GetCsr(), from, until), nil
		},
		"another agent": func(r *fleetv1.RenewRequest) ([][]byte, error) {
			return f.Authority.Agent(t, uuid.NewString(), r.GetCsr(), from, until), nil
		},
		"empty": func(*fleetv1.RenewRequest) ([][]byte, error) { return nil, nil },
	} {
		t.Run(name, func(t *testing.T) {
			f.OnRenew = func(r *fleetv1.RenewRequest) (*fleetv1.RenewResponse, error) {
				chain, err := answer(r)
				return &fleetv1.RenewResponse{CertificateChain: chain}, err
			}
			require.ErrorContains(t, id.Renew(t.Context(), conn), "renew the certificate")
			kept, err := identity.Load(dir)
			require.NoError(t, err)
			_, end := kept.Validity()
			require.Equal(t, until, end)
		})
	}

	f.OnRenew = func(r *fleetv1.RenewRequest) (*fleetv1.RenewResponse, error) {
		return &fleetv1.RenewResponse{CertificateChain: f.Authority.Agent(t, id.ID, r.GetCsr(), time.Now(), until.Add(time.Hour))}, nil
	}
	require.NoError(t, id.Renew(t.Context(), conn))
	kept, err := identity.Load(dir)
	require.NoError(t, err)
	_, end := kept.Validity()
	require.Equal(t, until.Add(time.Hour), end)
	_, end = id.Validity()
	require.Equal(t, until.Add(time.Hour), end)
}

func TestAnExpiredCertificateSaysTheWayOut(t *testing.T) {
	f := fakefleet.New(t)
	f.OnEnroll = func(r *fleetv1.EnrollRequest) (*fleetv1.EnrollResponse, error) {
		return f.Grant(r, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour))
	}
	f.Serve(f.Authority.Server(t, fleettls.ServerName, time.Now().Add(-time.Minute), time.Now().Add(time.Hour)))
	dir := t.TempDir()
	_, err := enroll(t, f, dir, f.Token)
	require.NoError(t, err)
	id, err := identity.Load(dir)
	require.NoError(t, err)
	_, err = id.Certificate()
	var expired *identity.ExpiredError
	require.ErrorAs(t, err, &expired)
	require.ErrorContains(t, err, "delete "+filepath.Join(dir, "agent.crt"))

	require.NoError(t, os.Remove(filepath.Join(dir, "agent.crt")))
	f.OnEnroll = nil
	_, err = enroll(t, f, dir, f.Token)
	require.NoError(t, err, "the way out works")
}

func TestADamagedFolderIsNamed(t *testing.T) {
	f := fakefleet.Start(t)
	for file, want := range map[string]string{
		"agent.crt":  "no PEM block",
		"agent.key":  "no PEM block",
		"ca.crt":     "no PEM block",
		"agent.json": "agent.json",
	} {
		dir := t.TempDir()
		_, err := enroll(t, f, dir, f.Token)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte("nonsense"), 0o600))
		_, err = identity.Load(dir)
		require.ErrorContains(t, err, want)
		require.ErrorContains(t, err, "to enrol anew delete "+filepath.Join(dir, "agent.crt"))
		require.NotErrorIs(t, err, identity.ErrNotEnrolled)
	}
}

func publicKey(t *testing.T, der []byte) any {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return cert.PublicKey
}
