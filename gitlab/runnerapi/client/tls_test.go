package client

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// authority is a private CA.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t}
	a.cert, a.key = a.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	a.pem = encode(a.cert)
	return a
}

// issue makes a certificate, signed by the authority, or by itself if there is none yet.
func (a *authority) issue(template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	template.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	require.NoError(a.t, err)
	template.NotBefore = time.Now().Add(-time.Hour)
	if template.NotAfter.IsZero() {
		template.NotAfter = time.Now().Add(time.Hour)
	}
	parent, signer := template, key
	if a.cert != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	require.NoError(a.t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(a.t, err)
	return cert, key
}

func (a *authority) server(names ...string) tls.Certificate {
	template := &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	cert, key := a.issue(template)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func encode(cert *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
}

// serveTLS starts a server with the certificate that cert holds at each handshake.
func serveTLS(t *testing.T, cert *atomic.Pointer[tls.Certificate], change func(*tls.Config), handler http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes that are meant to fail
	server.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		config := &tls.Config{Certificates: []tls.Certificate{*cert.Load()}, NextProtos: []string{"h2"}}
		if change != nil {
			change(config)
		}
		return config, nil
	}}
	server.StartTLS()
	t.Cleanup(server.Close)
	return server.URL
}

func newJob(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor != 2 {
		http.Error(w, "not HTTP/2", http.StatusTeapot)
		return
	}
	w.WriteHeader(http.StatusCreated)
	_, _ = io.WriteString(w, `{"id":1,"token":"x"}`)
}

func TestPrivateCA(t *testing.T) {
	ca := newAuthority(t, "private")
	var cert atomic.Pointer[tls.Certificate]
	leaf := ca.server("127.0.0.1")
	cert.Store(&leaf)
	url := serveTLS(t, &cert, nil, newJob)

	file := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(file, ca.pem, 0o600))
	for name, options := range map[string]Options{"file": {URL: url, CAFile: file}, "bytes": {URL: url, CA: ca.pem}} {
		t.Run(name, func(t *testing.T) {
			c, err := New(options)
			require.NoError(t, err)
			defer c.Close()
			for range 2 {
				result, err := c.RequestJob(t.Context(), jobRequest(), LaneClaim)
				require.NoError(t, err)
				require.Equal(t, string(ca.pem), result.ServerCA)
			}
		})
	}
	t.Run("not given", func(t *testing.T) {
		c, err := New(Options{URL: url})
		require.NoError(t, err)
		defer c.Close()
		_, err = c.RequestJob(t.Context(), jobRequest(), LaneClaim)
		require.ErrorContains(t, err, "certificate signed by unknown authority (give the CA that signed GitLab's certificate as the runner's CA file)")
	})
	t.Run("the leaf itself is trusted", func(t *testing.T) {
		own, key := (&authority{t: t}).issue(&x509.Certificate{
			IPAddresses: []net.IP{net.ParseIP("127.0.0.1")}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
			IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		})
		var cert atomic.Pointer[tls.Certificate]
		cert.Store(&tls.Certificate{Certificate: [][]byte{own.Raw}, PrivateKey: key})
		c, err := New(Options{URL: serveTLS(t, &cert, nil, newJob), CA: encode(own)})
		require.NoError(t, err)
		defer c.Close()
		result, err := c.RequestJob(t.Context(), jobRequest(), LaneClaim)
		require.NoError(t, err)
		require.Equal(t, string(encode(own)), result.ServerCA)
	})
}

func TestProtocols(t *testing.T) {
	ca := newAuthority(t, "private")
	leaf := ca.server("127.0.0.1")
	var cert atomic.Pointer[tls.Certificate]
	cert.Store(&leaf)
	var seen atomic.Value
	url := serveTLS(t, &cert, func(config *tls.Config) { config.NextProtos = []string{"h2", "http/1.1"} },
		func(_ http.ResponseWriter, r *http.Request) { seen.Store(r.Proto) })
	c, err := New(Options{URL: url, CA: ca.pem})
	require.NoError(t, err)
	defer c.Close()
	_, err = c.RequestJob(t.Context(), jobRequest(), LaneWatch)
	require.Error(t, err)
	require.Equal(t, "HTTP/2.0", seen.Load())
	_, err = c.UpdateJob(t.Context(), 1, runnerapi.UpdateRequest{Token: jobToken})
	require.NoError(t, err)
	require.Equal(t, "HTTP/1.1", seen.Load())
}

func TestSystemCANeedsNoServerCA(t *testing.T) {
	var none serverCA
	ca := newAuthority(t, "public")
	leaf, _ := ca.issue(&x509.Certificate{DNSNames: []string{"gitlab.example.com"}})
	state := &tls.ConnectionState{
		PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf, ca.cert}},
	}
	require.Empty(t, none.of(state), "without certificates of its own the system's verified the chain")
	custom := serverCA{custom: true}
	require.Equal(t, string(ca.pem), custom.of(state))
	require.Empty(t, custom.of(nil), "no TLS")
}

func TestRenewedCAFileIsReadAfterAFailure(t *testing.T) {
	before, after := newAuthority(t, "before"), newAuthority(t, "after")
	var cert atomic.Pointer[tls.Certificate]
	old, renewed := before.server("127.0.0.1"), after.server("127.0.0.1")
	cert.Store(&old)
	url := serveTLS(t, &cert, nil, newJob)
	file := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(file, before.pem, 0o600))
	c, err := New(Options{URL: url, CAFile: file})
	require.NoError(t, err)
	defer c.Close()
	result, err := c.RequestJob(t.Context(), jobRequest(), LaneClaim)
	require.NoError(t, err)
	require.Equal(t, string(before.pem), result.ServerCA)

	cert.Store(&renewed)
	c.Close() // the next request needs a handshake
	_, err = c.RequestJob(t.Context(), jobRequest(), LaneClaim)
	require.ErrorContains(t, err, "unknown authority")

	require.NoError(t, os.WriteFile(file, append(append([]byte("# both\n"), before.pem...), after.pem...), 0o600))
	_, err = c.RequestJob(t.Context(), jobRequest(), LaneClaim)
	require.ErrorContains(t, err, "unknown authority", "the file is looked at when something fails")
	result, err = c.RequestJob(t.Context(), jobRequest(), LaneClaim)
	require.NoError(t, err)
	require.Equal(t, string(after.pem), result.ServerCA)

	// A file that is broken or gone changes nothing.
	require.NoError(t, os.WriteFile(file, []byte("half a fi"), 0o600))
	c.now = func() time.Time { return time.Now().Add(maxConnectionAge) }
	_, err = c.RequestJob(t.Context(), jobRequest(), LaneClaim)
	require.NoError(t, err)
}

func TestClientCertificate(t *testing.T) {
	ca := newAuthority(t, "private")
	leaf := ca.server("127.0.0.1")
	var cert atomic.Pointer[tls.Certificate]
	cert.Store(&leaf)
	seen := make(chan string, 1)
	url := serveTLS(t, &cert, func(config *tls.Config) {
		config.ClientAuth = tls.RequireAndVerifyClientCert
		config.ClientCAs = x509.NewCertPool()
		config.ClientCAs.AddCert(ca.cert)
	}, func(w http.ResponseWriter, r *http.Request) {
		seen <- r.TLS.PeerCertificates[0].Subject.CommonName
		newJob(w, r)
	})
	dir := t.TempDir()
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	write := func(name string) {
		cert, key := ca.issue(&x509.Certificate{Subject: pkix.Name{CommonName: name}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
		der, err := x509.MarshalECPrivateKey(key)
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(certFile, encode(cert), 0o600))
		require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600))
	}
	write("first")
	c, err := New(Options{URL: url, CA: ca.pem, CertFile: certFile, KeyFile: keyFile})
	require.NoError(t, err)
	defer c.Close()
	request := func() string {
		t.Helper()
		_, err := c.RequestJob(t.Context(), jobRequest(), LaneClaim)
		require.NoError(t, err)
		return <-seen
	}
	require.Equal(t, "first", request())
	write("second, renewed")
	c.Close()
	require.Equal(t, "second, renewed", request())
	require.NoError(t, os.Remove(keyFile)) // between the two writes of a renewal
	c.Close()
	require.Equal(t, "second, renewed", request())
}

func TestBadTLSOptions(t *testing.T) {
	dir := t.TempDir()
	empty, missing := filepath.Join(dir, "empty.pem"), filepath.Join(dir, "missing.pem")
	require.NoError(t, os.WriteFile(empty, nil, 0o600))
	huge := filepath.Join(dir, "huge.pem")
	require.NoError(t, os.WriteFile(huge, bytes.Repeat([]byte("x"), maxPEMFile+1), 0o600))
	for message, o := range map[string]Options{
		"CA file: stat " + missing:                           {CAFile: missing},
		"CA file " + empty + ": it holds no PEM block":       {CAFile: empty},
		"CA file: " + huge + " has 4194305 bytes":            {CAFile: huge},
		"the CA certificates hold no PEM block":              {CA: []byte("?")},
		"only one is given":                                  {CertFile: empty},
		"client certificate: stat " + missing:                {CertFile: missing, KeyFile: empty},
		"client certificate " + empty + " with key " + empty: {CertFile: empty, KeyFile: empty},
	} {
		o.URL = "https://gitlab.example.com"
		_, err := New(o)
		require.ErrorContains(t, err, message)
	}
}

func TestWrongSchemeAndWrongName(t *testing.T) {
	ca := newAuthority(t, "private")
	leaf := ca.server("gitlab.example.com")
	var cert atomic.Pointer[tls.Certificate]
	cert.Store(&leaf)
	url := serveTLS(t, &cert, nil, newJob)
	plain := httptest.NewServer(http.HandlerFunc(newJob))
	defer plain.Close()

	for message, options := range map[string]Options{
		"(use the host name that GitLab's certificate is made for)":        {URL: url, CA: ca.pem},
		"(the server does not speak TLS at this address; is it http://?)":  {URL: "https" + plain.URL[len("http"):]},
		"400 Bad Request: Client sent an HTTP request to an HTTPS server.": {URL: "http" + url[len("https"):]},
	} {
		c, err := New(options)
		require.NoError(t, err)
		_, err = c.RequestJob(t.Context(), jobRequest(), LaneClaim)
		c.Close()
		require.ErrorContains(t, err, message)
	}
}

func TestExpiredCertificate(t *testing.T) {
	ca := newAuthority(t, "private")
	leaf, key := ca.issue(&x509.Certificate{IPAddresses: []net.IP{net.ParseIP("127.0.0.1")}, NotAfter: time.Now().Add(-time.Minute)})
	var cert atomic.Pointer[tls.Certificate]
	cert.Store(&tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key})
	c, err := New(Options{URL: serveTLS(t, &cert, nil, newJob), CA: ca.pem})
	require.NoError(t, err)
	defer c.Close()
	_, err = c.RequestJob(t.Context(), jobRequest(), LaneClaim)
	require.ErrorContains(t, err, "(the certificate has expired or this machine's clock is wrong)")
}
