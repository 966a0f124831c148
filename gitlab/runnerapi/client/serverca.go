package client

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"sync"
)

// serverCA finds the certificates that a job needs to trust GitLab on a machine that knows only the public CAs. It
// remembers the last answer: a GitLab shows the same certificate for months.
type serverCA struct {
	custom bool // false: the system's roots verified the chain, and a job's machine is taken to have them too

	mu   sync.Mutex
	leaf []byte
	pem  string
}

// of returns the PEM of the verified chain without the leaf (of the leaf itself if it is all there is), or "" without
// TLS or if the system's roots lead to it as well.
func (s *serverCA) of(state *tls.ConnectionState) string {
	if !s.custom || state == nil || len(state.VerifiedChains) == 0 {
		return ""
	}
	chain := state.VerifiedChains[0]
	s.mu.Lock()
	defer s.mu.Unlock()
	if bytes.Equal(s.leaf, chain[0].Raw) {
		return s.pem
	}
	s.leaf, s.pem = chain[0].Raw, ""
	if !systemTrusts(chain, state.PeerCertificates) {
		if len(chain) > 1 {
			chain = chain[1:]
		}
		var out bytes.Buffer
		for _, cert := range chain {
			// A bytes.Buffer takes everything.
			_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})
		}
		s.pem = out.String()
	}
	return s.pem
}

func systemTrusts(chain, peer []*x509.Certificate) bool {
	roots, err := x509.SystemCertPool()
	if err != nil {
		return false
	}
	intermediates := x509.NewCertPool()
	for _, cert := range peer[1:] {
		intermediates.AddCert(cert)
	}
	_, err = chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: intermediates})
	return err == nil
}
