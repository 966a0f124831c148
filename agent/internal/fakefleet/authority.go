// Package fakefleet is a control plane for tests of the agent: a real gRPC server with TLS and a CA of its own, whose
// session is played by the test. It knows no rules; what a test does not say does not happen.
package fakefleet

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/internal/fleettls"
)

// Authority is a fleet's CA.
type Authority struct {
	Certificate *x509.Certificate
	key         *ecdsa.PrivateKey
}

// NewAuthority makes one.
func NewAuthority(t testing.TB) *Authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "fleet CA"},
		NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &Authority{cert, key}
}

// Sign makes a certificate of template for a public key; it returns the DER of the leaf and of the CA.
func (a *Authority) Sign(t testing.TB, template *x509.Certificate, public crypto.PublicKey) [][]byte {
	t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	require.NoError(t, err)
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, a.Certificate, public, a.key)
	require.NoError(t, err)
	return [][]byte{der, a.Certificate.Raw}
}

// Server makes the control plane's certificate.
func (a *Authority) Server(t testing.TB, name string, from, until time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	chain := a.Sign(t, &x509.Certificate{
		DNSNames: []string{name}, NotBefore: from, NotAfter: until, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, key.Public())
	return tls.Certificate{Certificate: chain, PrivateKey: key}
}

// Agent makes an agent's certificate for the key of a CSR.
func (a *Authority) Agent(t testing.TB, id string, csr []byte, from, until time.Time) [][]byte {
	t.Helper()
	request, err := x509.ParseCertificateRequest(csr)
	require.NoError(t, err)
	require.NoError(t, request.CheckSignature())
	return a.Sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: id}, NotBefore: from, NotAfter: until, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, request.PublicKey)
}

// tlsConfig is the server's side.
func (a *Authority) tlsConfig(server tls.Certificate) *tls.Config {
	clients := x509.NewCertPool()
	clients.AddCert(a.Certificate)
	return &tls.Config{
		MinVersion: fleettls.MinVersion, Certificates: []tls.Certificate{server},
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: clients,
	}
}
