package enrollment

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/switchyard-ci/switchyard/internal/durable"
	"github.com/switchyard-ci/switchyard/internal/fleettls"
)

// Lives of certificates. An agent renews its own after two thirds of its life, so one that is switched off for a month
// comes back without help. The life of a certificate is no means of keeping an agent out: removed ones are known by name
// (Authority.Identity).
const (
	CALife     = 10 * 365 * 24 * time.Hour
	ServerLife = 90 * 24 * time.Hour
	AgentLife  = 90 * 24 * time.Hour

	// backdating is by how much a peer's clock may be behind.
	backdating = time.Hour
	// caRenewal is how long before its end the CA gets a new certificate, at a start of the control plane. Agents receive
	// it with their own renewals.
	caRenewal = 365 * 24 * time.Hour
)

const (
	caKeyFile         = "ca.key"
	caCertificateFile = "ca.crt"
)

// CA signs the fleet's certificates. It may be used concurrently.
type CA struct {
	key         *ecdsa.PrivateKey
	certificate *x509.Certificate
	now         func() time.Time
}

// OpenCA reads ca.key and ca.crt from a folder or, in a folder with neither, makes them (ECDSA P-256, the key with mode
// 0600). The caller owns the folder: two processes must not make a CA at once. now is nil for the real clock.
func OpenCA(folder string, now func() time.Time) (*CA, error) {
	if now == nil {
		now = time.Now
	}
	ca := &CA{now: now}
	keyPath, certificatePath := filepath.Join(folder, caKeyFile), filepath.Join(folder, caCertificateFile)

	der, err := readPEM(certificatePath, "CERTIFICATE")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the fleet's CA certificate: %w", err)
	}
	if ca.key, err = loadKey(keyPath, der == nil); err != nil {
		return nil, err
	}
	if der != nil {
		if ca.certificate, err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("read the fleet's CA certificate %s: %w", certificatePath, err)
		}
		if !ca.key.PublicKey.Equal(ca.certificate.PublicKey) {
			return nil, fmt.Errorf("the fleet's CA certificate %s is not that of the key %s: restore both from one backup", certificatePath, keyPath)
		}
		if now().Before(ca.certificate.NotAfter.Add(-caRenewal)) {
			return ca, nil
		}
	}
	return ca, ca.selfSign(certificatePath)
}

// loadKey reads the CA's key and makes one if there is none and create is set.
func loadKey(path string, create bool) (*ecdsa.PrivateKey, error) {
	der, err := readPEM(path, "PRIVATE KEY")
	switch {
	case errors.Is(err, fs.ErrNotExist) && create:
		return makeKey(path)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s is missing beside %s: restore it from a backup, or move %[2]s away to begin a new fleet, "+
			"in which every agent must enrol again", path, caCertificateFile)
	case err != nil:
		return nil, fmt.Errorf("read the fleet's CA key: %w", err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("read the fleet's CA key %s: %w", path, err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read the fleet's CA key %s: it is %T instead of an ECDSA key", path, parsed)
	}
	return key, nil
}

func makeKey(path string) (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the fleet's CA key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make the fleet's CA key: %w", err)
	}
	if err := durable.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return nil, fmt.Errorf("make the fleet's CA key: %w", err)
	}
	return key, nil
}

// selfSign gives the CA a certificate, its first or another one for the same key: join tokens and the certificates of
// agents stay good.
func (ca *CA) selfSign(path string) error {
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Switchyard fleet CA"},
		NotBefore:             ca.now().Add(-backdating),
		NotAfter:              ca.now().Add(CALife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, ca.key.Public(), ca.key)
	if err != nil {
		return fmt.Errorf("sign the fleet's CA certificate: %w", err)
	}
	if ca.certificate, err = x509.ParseCertificate(der); err != nil {
		return fmt.Errorf("sign the fleet's CA certificate: %w", err)
	}
	return durable.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

// readPEM returns the one block of a file.
func readPEM(path, kind string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(data)
	if block == nil || block.Type != kind || len(bytes.TrimSpace(rest)) > 0 {
		return nil, fmt.Errorf("%s is damaged: it must hold one PEM block %q and nothing else; restore it from a backup", path, kind)
	}
	return block.Bytes, nil
}

// Certificate returns the CA's certificate.
func (ca *CA) Certificate() *x509.Certificate { return ca.certificate }

// agentCertificate names an agent.
func (ca *CA) agentCertificate(agentID string, key crypto.PublicKey) (*x509.Certificate, error) {
	return ca.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: agentID},
		NotAfter:    ca.now().Add(AgentLife),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, key)
}

// serverCertificate is the control plane's, with a key of its own. It is sent with the CA's, so that a newcomer can
// compare that with its join token.
func (ca *CA) serverCertificate() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make the server's key: %w", err)
	}
	leaf, err := ca.sign(&x509.Certificate{
		Subject:     pkix.Name{CommonName: fleettls.ServerName},
		DNSNames:    []string{fleettls.ServerName},
		NotAfter:    ca.now().Add(ServerLife),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, key.Public())
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw, ca.certificate.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

func (ca *CA) sign(template *x509.Certificate, key crypto.PublicKey) (*x509.Certificate, error) {
	template.NotBefore = ca.now().Add(-backdating)
	if template.NotAfter.After(ca.certificate.NotAfter) {
		template.NotAfter = ca.certificate.NotAfter
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, ca.certificate, key, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign the certificate of %s: %w", template.Subject.CommonName, err)
	}
	return x509.ParseCertificate(der)
}
