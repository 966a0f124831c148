package controlplane_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/controlplane"
	"github.com/switchyard-ci/switchyard/controlplane/registry"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clientCertificate writes a self-signed client certificate and its key and returns it.
func clientCertificate(t *testing.T, certFile, keyFile string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "fleet"}, NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600))
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return cert
}

// Two runners of one GitLab that asks for certificates: what one of them lacks is not the other's trouble.
func TestARunnersCertificates(t *testing.T) {
	gitlab, err := coordinator.New(coordinator.Options{Dir: t.TempDir(), RegistrationToken: "register"})
	require.NoError(t, err)
	defer func() { require.NoError(t, gitlab.Close()) }()
	dir := t.TempDir()
	certFile, keyFile, caFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "ca.pem")
	trusted := x509.NewCertPool()
	trusted.AddCert(clientCertificate(t, certFile, keyFile))
	names, labels := make(chan string, 100), make(chan map[string]string, 100)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		names <- r.TLS.PeerCertificates[0].Subject.CommonName
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		var sent runnerapi.VerifyRequest
		_ = json.Unmarshal(body, &sent)
		labels <- sent.Info.Labels
		gitlab.Handler().ServeHTTP(w, r)
	}))
	server.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: trusted, MinVersion: tls.VersionTLS12}
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	require.NoError(t, os.WriteFile(caFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600))

	with := controlplane.Runner{Runner: registry.Runner{Name: "with", URL: server.URL, CAFile: caFile, CertFile: certFile, KeyFile: keyFile, Labels: map[string]string{"zone": "eu-1"}}}
	answer, err := controlplane.Register(t.Context(), with, runnerapi.RegisterRequest{Token: "register", RunUntagged: true})
	require.NoError(t, err)
	require.Equal(t, "fleet", <-names)
	require.Equal(t, map[string]string{"zone": "eu-1"}, <-labels)
	with.Token = answer.Token
	without := with
	without.Name, without.CertFile, without.KeyFile = "without", "", ""
	r, err := controlplane.OpenRegistrations(t.Context(), controlplane.Config{Data: dir, Runners: []controlplane.Runner{with, without}})
	require.NoError(t, err)
	for range 10 {
		_, _, err = r.Verify(t.Context(), without)
		require.ErrorAs(t, err, new(*client.TransportError)) // "certificate required", or a broken pipe if that came too late
		_, rotated, err := r.Verify(t.Context(), with)
		require.NoError(t, err)
		require.False(t, rotated)
	}
	require.NoError(t, r.Close())
	require.NoFileExists(t, filepath.Join(dir, "switchyard.db"), "looking makes nothing")
	require.NoFileExists(t, filepath.Join(dir, "master.key"))
}
