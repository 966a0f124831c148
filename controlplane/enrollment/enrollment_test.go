package enrollment_test

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/switchyard-ci/switchyard/controlplane/enrollment"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/internal/fleettls"
	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

// requireStatus checks code and text of a call's error.
func requireStatus(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	require.Error(t, err)
	require.Equal(t, code.String(), status.Code(err).String(), "%v", err)
	require.ErrorContains(t, err, text)
}

func TestEnrollAndConnect(t *testing.T) {
	f := newFleet(t)
	h := newHost(t)
	answer, err := h.enroll(t, f, f.token(t, 1), "build-1")
	require.NoError(t, err)
	require.Equal(t, "build-1", answer.GetName())
	require.NoError(t, uuid.Validate(answer.GetAgentId()))
	require.Equal(t, h.certificate.Leaf.NotAfter, answer.GetExpiresAt().AsTime())
	require.WithinDuration(t, f.clock.now().Add(enrollment.AgentLife), answer.GetExpiresAt().AsTime(), time.Minute)
	require.Equal(t, f.ca.Certificate().Raw, answer.GetCertificateChain()[1])

	id, err := h.whoAmI(t, f)
	require.NoError(t, err)
	require.Equal(t, answer.GetAgentId(), id)
	agent, ok := f.Agent(id)
	require.True(t, ok)
	require.Equal(t, "build-1", agent.Name)
}

func TestARestartedControlPlaneKnowsItsAgents(t *testing.T) {
	folder, clock := t.TempDir(), newClock()
	h := newHost(t)
	var token jointoken.Token
	t.Run("before", func(t *testing.T) {
		f := startFleet(t, folder, clock)
		token = f.token(t, 2)
		_, err := h.enroll(t, f, token, "build-1")
		require.NoError(t, err)
	})
	f := startFleet(t, folder, clock)
	id, err := h.whoAmI(t, f)
	require.NoError(t, err)
	require.NoError(t, uuid.Validate(id))
	_, err = newHost(t).enroll(t, f, token, "build-2")
	require.NoError(t, err, "the token outlives a restart too")
}

func TestNamesGetASuffix(t *testing.T) {
	f := newFleet(t)
	token := f.token(t, 3)
	for _, want := range []string{"host", "host-2", "host-3"} {
		answer, err := newHost(t).enroll(t, f, token, "host")
		require.NoError(t, err)
		require.Equal(t, want, answer.GetName())
	}
}

func TestJoinTokensThatAreNotGood(t *testing.T) {
	f := newFleet(t)
	used, _, err := f.NewJoinToken(t.Context(), 1, 2*time.Hour)
	require.NoError(t, err)
	_, err = newHost(t).enroll(t, f, used, "first")
	require.NoError(t, err)

	revoked := jointoken.New(f.ca.Certificate())
	digest := revoked.Digest()
	require.NoError(t, f.store.AddJoinToken(t.Context(), store.JoinToken{
		ID: uuid.NewString(), SecretDigest: digest[:], Uses: 1, Revoked: true, CreatedAt: f.clock.now(), ExpiresAt: f.clock.now().Add(time.Hour),
	}))
	expired := f.token(t, 1)
	f.clock.advance(time.Hour)

	for text, token := range map[string]jointoken.Token{
		"the join token is used up":    used,
		"the join token has expired":   expired,
		"the join token was revoked":   revoked,
		"the join token is unknown":    jointoken.New(f.ca.Certificate()),
		"print a new one with `switch": used,
	} {
		_, err := newHost(t).enroll(t, f, token, "second")
		requireStatus(t, err, codes.Unauthenticated, text)
		secret := token.String()[len(token.String())-32:]
		require.NotContains(t, err.Error(), secret)
		require.NotContains(t, f.log.String(), secret)
	}
	require.Contains(t, f.log.String(), "agent enrolled")
	require.NotContains(t, f.log.String(), used.String()[80:])
	agents, err := f.store.Agents(t.Context())
	require.NoError(t, err)
	require.Len(t, agents, 1)
}

func TestATokenOfAnotherFleet(t *testing.T) {
	f, other := newFleet(t), newFleet(t)

	// An honest agent notices before it says anything.
	token := other.token(t, 1)
	_, err := newHost(t).enroll(t, f, token, "build-1")
	requireStatus(t, err, codes.Unavailable, fleettls.ErrWrongCA.Error())

	// One that does not look is refused.
	conn := f.dial(t, fleettls.FirstContact(f.token(t, 1), func(*x509.Certificate) {}))
	_, err = fleetv1.NewEnrollmentServiceClient(conn).Enroll(t.Context(),
		&fleetv1.EnrollRequest{Token: token.String(), Csr: newHost(t).csr(t), Name: "build-1"})
	requireStatus(t, err, codes.Unauthenticated, "the join token is for another fleet; print a new one")
}

func TestEnrollTwice(t *testing.T) {
	f := newFleet(t)
	token := f.token(t, 1)
	h := newHost(t)
	first, err := h.enroll(t, f, token, "build-1")
	require.NoError(t, err)
	f.clock.advance(2 * time.Hour)
	second, err := h.enroll(t, f, token, "build-1")
	require.NoError(t, err, "the answer was lost: the token has expired and is used up, but not by somebody else")
	require.Equal(t, first.GetAgentId(), second.GetAgentId())
	require.Equal(t, first.GetName(), second.GetName())
	id, err := h.whoAmI(t, f)
	require.NoError(t, err)
	require.Equal(t, first.GetAgentId(), id)

	_, err = newHost(t).enroll(t, f, token, "build-1")
	requireStatus(t, err, codes.Unauthenticated, "the join token has expired")
}

func TestRemovedAgent(t *testing.T) {
	f := newFleet(t)
	token := f.token(t, 1)
	h := newHost(t)
	answer, err := h.enroll(t, f, token, "build-1")
	require.NoError(t, err)
	open := h.member(t, f)
	_, err = ask(t, open)
	require.NoError(t, err)

	require.NoError(t, f.Remove(t.Context(), answer.GetAgentId()))
	_, err = ask(t, open)
	requireStatus(t, err, codes.PermissionDenied, "is not in this fleet: it was removed")
	_, err = h.whoAmI(t, f)
	requireStatus(t, err, codes.PermissionDenied, "empty its data folder and give it a new token")
	_, err = fleetv1.NewEnrollmentServiceClient(open).Renew(t.Context(), &fleetv1.RenewRequest{Csr: h.csr(t)})
	requireStatus(t, err, codes.PermissionDenied, "is not in this fleet")
	_, err = h.enroll(t, f, token, "build-1")
	requireStatus(t, err, codes.PermissionDenied, "the agent was removed from the fleet")

	_, err = h.enroll(t, f, f.token(t, 1), "build-1")
	require.NoError(t, err, "a new token makes a new agent")
	id, err := h.whoAmI(t, f)
	require.NoError(t, err)
	require.NotEqual(t, answer.GetAgentId(), id)
}

func TestAnOlderStoreDoesNotKnowTheAgent(t *testing.T) {
	folder, clock := t.TempDir(), newClock()
	h := newHost(t)
	t.Run("before", func(t *testing.T) {
		f := startFleet(t, folder, clock)
		_, err := h.enroll(t, f, f.token(t, 1), "build-1")
		require.NoError(t, err)
	})
	require.NoError(t, os.Remove(filepath.Join(folder, "store.db")))
	f := startFleet(t, folder, clock)
	_, err := h.whoAmI(t, f)
	requireStatus(t, err, codes.PermissionDenied, "the control plane's store is from before it enrolled")
}

func TestRenew(t *testing.T) {
	f := newFleet(t)
	h := newHost(t)
	answer, err := h.enroll(t, f, f.token(t, 1), "build-1")
	require.NoError(t, err)
	before := h.member(t, f)
	_, err = ask(t, before)
	require.NoError(t, err)

	f.clock.advance(enrollment.AgentLife * 2 / 3)
	old := h.certificate.Leaf
	h.key = newHost(t).key
	renewed, err := fleetv1.NewEnrollmentServiceClient(before).Renew(t.Context(), &fleetv1.RenewRequest{Csr: h.csr(t)})
	require.NoError(t, err)
	h.use(t, renewed.GetCertificateChain())
	require.WithinDuration(t, f.clock.now().Add(enrollment.AgentLife), renewed.GetExpiresAt().AsTime(), time.Minute)
	require.True(t, h.certificate.Leaf.NotAfter.After(old.NotAfter))

	f.clock.advance(enrollment.AgentLife / 2) // the old one is over
	id, err := h.whoAmI(t, f)
	require.NoError(t, err)
	require.Equal(t, answer.GetAgentId(), id)

	f.clock.advance(enrollment.AgentLife)
	_, err = h.whoAmI(t, f)
	requireStatus(t, err, codes.Unavailable, "") // TLS 1.3: the alert may be lost with the connection
}

func TestTheServersCertificateIsRenewed(t *testing.T) {
	f := newFleet(t)
	h := newHost(t)
	_, err := h.enroll(t, f, f.token(t, 1), "build-1")
	require.NoError(t, err)
	served := func() *x509.Certificate {
		certificate, err := f.TLSConfig().GetCertificate(&tls.ClientHelloInfo{ServerName: fleettls.ServerName})
		require.NoError(t, err)
		return certificate.Leaf
	}
	first := served()
	f.clock.advance(enrollment.ServerLife*2/3 - time.Minute)
	require.Equal(t, first.SerialNumber, served().SerialNumber)
	f.clock.advance(2 * time.Minute)
	require.NotEqual(t, first.SerialNumber, served().SerialNumber)
	_, err = h.whoAmI(t, f)
	require.NoError(t, err)
}

// The agent's clock is right; the control plane's differs.
func TestClockSkew(t *testing.T) {
	for _, c := range []struct {
		skew time.Duration
		text string // of the error
	}{
		{-30 * time.Minute, ""},
		{30 * time.Minute, ""},
		{3 * time.Hour, "certificate has expired or is not yet valid"},
		{-enrollment.ServerLife - time.Hour, "certificate has expired or is not yet valid"},
	} {
		t.Run(c.skew.String(), func(t *testing.T) {
			clock := newClock()
			clock.advance(c.skew)
			f := startFleet(t, t.TempDir(), clock)
			_, err := newHost(t).enroll(t, f, f.token(t, 1), "build-1")
			if c.text == "" {
				require.NoError(t, err)
			} else {
				requireStatus(t, err, codes.Unavailable, c.text)
			}
		})
	}
}

func TestUnusableRequests(t *testing.T) {
	f := newFleet(t)
	token := f.token(t, 1)
	conn := f.dial(t, fleettls.FirstContact(token, func(*x509.Certificate) {}))
	client := fleetv1.NewEnrollmentServiceClient(conn)
	good := newHost(t).csr(t)

	weak, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	rsaCSR, err := x509.CreateCertificateRequest(rand.Reader, new(x509.CertificateRequest), weak)
	require.NoError(t, err)
	forged := append([]byte(nil), good...)
	forged[len(forged)-1] ^= 1

	for name, c := range map[string]struct {
		request *fleetv1.EnrollRequest
		code    codes.Code
		text    string
	}{
		"no token":        {&fleetv1.EnrollRequest{Csr: good, Name: "a"}, codes.InvalidArgument, "token"},
		"malformed token": {&fleetv1.EnrollRequest{Token: "SWY1-x-y", Csr: good, Name: "a"}, codes.Unauthenticated, "malformed join token"},
		"no CSR":          {&fleetv1.EnrollRequest{Token: token.String(), Name: "a"}, codes.InvalidArgument, "csr"},
		"junk CSR":        {&fleetv1.EnrollRequest{Token: token.String(), Csr: []byte("junk"), Name: "a"}, codes.FailedPrecondition, "unusable"},
		"RSA key":         {&fleetv1.EnrollRequest{Token: token.String(), Csr: rsaCSR, Name: "a"}, codes.FailedPrecondition, "make an ECDSA or Ed25519 key"},
		"forged CSR":      {&fleetv1.EnrollRequest{Token: token.String(), Csr: forged, Name: "a"}, codes.FailedPrecondition, "its signature is not its key's"},
		"bad name":        {&fleetv1.EnrollRequest{Token: token.String(), Csr: good, Name: "../a"}, codes.InvalidArgument, "name"},
	} {
		_, err := client.Enroll(t.Context(), c.request)
		requireStatus(t, err, c.code, c.text)
		t.Log(name, err)
	}
	_, err = client.Renew(t.Context(), &fleetv1.RenewRequest{Csr: good})
	requireStatus(t, err, codes.Unauthenticated, "this call needs the agent's client certificate")

	_, err = client.Enroll(t.Context(), &fleetv1.EnrollRequest{Token: token.String(), Csr: good, Name: "a"})
	require.NoError(t, err, "none of it has used the token up")
}

func TestGuessing(t *testing.T) {
	f := newFleet(t)
	token := f.token(t, 1)
	conn := f.dial(t, fleettls.FirstContact(token, func(*x509.Certificate) {}))
	client := fleetv1.NewEnrollmentServiceClient(conn)
	h := newHost(t)
	guess := func() error {
		_, err := client.Enroll(t.Context(), &fleetv1.EnrollRequest{Token: jointoken.New(f.ca.Certificate()).String(), Csr: h.csr(t), Name: "a"})
		return err
	}
	for range 10 {
		requireStatus(t, guess(), codes.Unauthenticated, "unknown")
	}
	requireStatus(t, guess(), codes.ResourceExhausted, "too many failed attempts to enrol from this address; try again in 6s")
	_, err := h.enroll(t, f, token, "a")
	requireStatus(t, err, codes.ResourceExhausted, "too many failed attempts")

	f.clock.advance(5 * time.Second)
	_, err = h.enroll(t, f, token, "a")
	require.NoError(t, err)
	requireStatus(t, guess(), codes.Unauthenticated, "unknown")
	requireStatus(t, guess(), codes.ResourceExhausted, "too many")
}

// A certificate of another CA, or one of this CA that is not a client's, is no identity.
func TestForeignCertificates(t *testing.T) {
	f, other := newFleet(t), newFleet(t)
	h := newHost(t)
	_, err := h.enroll(t, other, other.token(t, 1), "build-1")
	require.NoError(t, err)
	_, err = h.whoAmI(t, f)
	requireStatus(t, err, codes.Unavailable, "")

	server, err := f.TLSConfig().GetCertificate(&tls.ClientHelloInfo{})
	require.NoError(t, err)
	h.certificate = server
	_, err = h.whoAmI(t, f)
	requireStatus(t, err, codes.Unavailable, "")
}
