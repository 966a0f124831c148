// Package identity is who an agent is: a key that never leaves its host and the certificate that the fleet gave it.
//
// It lives in four files of the data folder, each written whole: agent.key (PKCS#8, mode 0600) before the first contact,
// so that an answer that was lost can be asked for again with the same key; ca.crt and agent.json (id, name) then;
// agent.crt (the chain) last: where it exists the agent is enrolled and needs no join token. To enrol an agent anew,
// delete agent.crt; it gets a new id.
package identity

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/switchyard-ci/switchyard/internal/durable"
	"github.com/switchyard-ci/switchyard/internal/fleettls"
)

const (
	keyFile  = "agent.key"
	certFile = "agent.crt"
	caFile   = "ca.crt"
	infoFile = "agent.json"

	pemKey         = "PRIVATE KEY"
	pemCertificate = "CERTIFICATE"
)

// ErrNotEnrolled says that the data folder holds no certificate.
var ErrNotEnrolled = errors.New("this agent is not enrolled")

// ExpiredError says that the agent's certificate has run out: the control plane cannot renew it any more.
type ExpiredError struct {
	Name string
	At   time.Time
	Path string // of the certificate
}

func (e *ExpiredError) Error() string {
	return fmt.Sprintf("the certificate of agent %q expired on %s and can no longer be renewed: delete %s and start with "+
		"--token-file and a new join token (`switchyard agents token` prints one); if this host's clock (now %s) is wrong, set it instead",
		e.Name, e.At.Format(time.RFC1123), e.Path, time.Now().Format(time.RFC1123))
}

// Identity is an enrolled agent's. Methods may be called concurrently.
type Identity struct {
	dir string
	key *ecdsa.PrivateKey
	ca  *x509.Certificate
	// ID is the agent's UUID, Name what it was called when it enrolled.
	ID, Name string

	current atomic.Pointer[tls.Certificate]
}

type info struct {
	ID   string `json:"id"`
	Name string `json:"name"`
}

// Load reads the identity in a data folder. ErrNotEnrolled: there is none. An expired certificate is no error here; see
// Certificate.
func Load(dir string) (*Identity, error) {
	path := filepath.Join(dir, certFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotEnrolled
	}
	id, err := load(dir)
	if err != nil {
		return nil, fmt.Errorf("the agent's identity cannot be used: %w (to enrol anew delete %s and start with --token-file)", err, path)
	}
	return id, nil
}

func load(dir string) (*Identity, error) {
	chain, err := readCertificates(filepath.Join(dir, certFile))
	if err != nil {
		return nil, err
	}
	key, err := readKey(filepath.Join(dir, keyFile))
	if err != nil {
		return nil, err
	}
	ca, err := readCertificates(filepath.Join(dir, caFile))
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(dir, infoFile))
	if err != nil {
		return nil, fmt.Errorf("read the agent's name: %w", err)
	}
	var i info
	if err := json.Unmarshal(b, &i); err != nil {
		return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, infoFile), err)
	}
	id := &Identity{dir: dir, key: key, ca: ca[0], ID: i.ID, Name: i.Name}
	certificate, err := id.check(chain)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, certFile), err)
	}
	id.current.Store(certificate)
	return id, nil
}

// check returns a chain (leaf first) as a certificate if it is one for this agent.
func (i *Identity) check(chain []*x509.Certificate) (*tls.Certificate, error) {
	leaf := chain[0]
	if public, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || !public.Equal(i.key.Public()) {
		return nil, errors.New("the certificate is not for this agent's key")
	}
	roots := x509.NewCertPool()
	roots.AddCert(i.ca)
	at := leaf.NotBefore // whether it is expired is for Certificate to say
	if i.ca.NotBefore.After(at) {
		at = i.ca.NotBefore
	}
	if _, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}); err != nil {
		return nil, fmt.Errorf("the certificate is not of this fleet: %w", err)
	}
	agent, err := fleettls.AgentID(leaf)
	if err != nil {
		return nil, err
	}
	if i.ID != "" && i.ID != agent {
		return nil, fmt.Errorf("the certificate is for agent %s, this is %s", agent, i.ID)
	}
	raw := make([][]byte, 0, len(chain))
	for _, c := range chain {
		raw = append(raw, c.Raw)
	}
	return &tls.Certificate{Certificate: raw, PrivateKey: i.key, Leaf: leaf}, nil
}

// Certificate returns the certificate to present, or an *ExpiredError.
func (i *Identity) Certificate() (*tls.Certificate, error) {
	c := i.current.Load()
	if time.Now().After(c.Leaf.NotAfter) {
		return nil, &ExpiredError{Name: i.Name, At: c.Leaf.NotAfter, Path: filepath.Join(i.dir, certFile)}
	}
	return c, nil
}

// TLS is the configuration for connections to the control plane. It always presents the newest certificate.
func (i *Identity) TLS() *tls.Config {
	return fleettls.Client(i.ca, i.Certificate)
}

// Validity returns the certificate's span.
func (i *Identity) Validity() (notBefore, notAfter time.Time) {
	leaf := i.current.Load().Leaf
	return leaf.NotBefore, leaf.NotAfter
}

// loadOrMakeKey returns the folder's key, durable before it is returned.
func loadOrMakeKey(dir string) (*ecdsa.PrivateKey, error) {
	path := filepath.Join(dir, keyFile)
	key, err := readKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("make the agent's key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make the agent's key: %w", err)
	}
	if err := durable.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: der}), 0o600); err != nil {
		return nil, fmt.Errorf("keep the agent's key: %w", err)
	}
	return key, nil
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the agent's key: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != pemKey {
		return nil, fmt.Errorf("read the agent's key: %s has no PEM block %q", path, pemKey)
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read the agent's key %s: %w", path, err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read the agent's key: %s holds a %T, not an ECDSA key", path, key)
	}
	return ec, nil
}

func readCertificates(path string) ([]*x509.Certificate, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	var chain []*x509.Certificate
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != pemCertificate {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("read certificate %s: %w", path, err)
		}
		chain = append(chain, c)
	}
	if len(chain) == 0 {
		return nil, fmt.Errorf("read certificate: %s has no PEM block %q", path, pemCertificate)
	}
	return chain, nil
}

func writeCertificates(path string, chain []*x509.Certificate) error {
	var b []byte
	for _, c := range chain {
		b = append(b, pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: c.Raw})...)
	}
	return durable.WriteFile(path, b, 0o644)
}
