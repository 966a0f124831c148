package dockertest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Certificates makes a CA and two folders with ca.pem, cert.pem and key.pem of it: for an engine at 127.0.0.1 and for a
// client.
func Certificates(t *testing.T) (engine, user string) {
	t.Helper()
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA of a test"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	key := newKey(t)
	der, err := x509.CreateCertificate(rand.Reader, authority, authority, key.Public(), key)
	require.NoError(t, err)
	issue := func(serial int64, usage x509.ExtKeyUsage, addresses ...net.IP) string {
		own := newKey(t)
		template := &x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "a test's"}, NotBefore: authority.NotBefore,
			NotAfter: authority.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage}, IPAddresses: addresses,
		}
		issued, err := x509.CreateCertificate(rand.Reader, template, authority, own.Public(), key)
		require.NoError(t, err)
		private, err := x509.MarshalECPrivateKey(own)
		require.NoError(t, err)
		dir := t.TempDir()
		for name, block := range map[string]*pem.Block{
			"ca.pem": {Type: "CERTIFICATE", Bytes: der}, "cert.pem": {Type: "CERTIFICATE", Bytes: issued},
			"key.pem": {Type: "EC PRIVATE KEY", Bytes: private},
		} {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600))
		}
		return dir
	}
	return issue(2, x509.ExtKeyUsageServerAuth, net.IPv4(127, 0, 0, 1)), issue(3, x509.ExtKeyUsageClientAuth)
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return key
}

// FreePort is a TCP port of 127.0.0.1 that nobody listens on now.
func FreePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}
