// Package fleettls holds what both ends of the fleet's TLS connections must agree on. The fleet has a CA of its own;
// the control plane's certificate carries one fixed name, whatever host it runs on, and an agent is the one that its
// client certificate names.
package fleettls

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/google/uuid"

	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

// ServerName is the DNS name in the control plane's certificate and the name that agents ask for (SNI). It says nothing
// about the host: agents may reach the control plane by any address, through any tunnel.
const ServerName = "switchyard"

// MinVersion of TLS on both sides.
const MinVersion = tls.VersionTLS13

// ErrWrongCA says that the server is not the one that the join token was made for.
var ErrWrongCA = errors.New("the server does not belong to the fleet of this join token")

// AgentID returns the identity in an agent's client certificate: a UUID, the subject's common name.
func AgentID(leaf *x509.Certificate) (string, error) {
	id, err := uuid.Parse(leaf.Subject.CommonName)
	if err != nil {
		return "", fmt.Errorf("the certificate's subject %q names no agent: %w", leaf.Subject.CommonName, err)
	}
	return id.String(), nil
}

// FirstContact is the client's configuration before it has a certificate: the server must present a chain that leads to
// a CA with the join token's digest. found is called, once per successful handshake, with that CA.
//
// The handshake's error wraps ErrWrongCA if no such CA is in the chain; otherwise it is the verification's own.
func FirstContact(token jointoken.Token, found func(ca *x509.Certificate)) *tls.Config {
	return &tls.Config{
		MinVersion: MinVersion,
		ServerName: ServerName,
		// The roots are not known beforehand; VerifyConnection does the whole verification.
		InsecureSkipVerify: true, //nolint:gosec // see VerifyConnection
		VerifyConnection: func(state tls.ConnectionState) error {
			ca, err := verifyFirstContact(state.PeerCertificates, token)
			if err != nil {
				return err
			}
			found(ca)
			return nil
		},
	}
}

func verifyFirstContact(chain []*x509.Certificate, token jointoken.Token) (*x509.Certificate, error) {
	if len(chain) == 0 {
		return nil, errors.New("the server presented no certificate")
	}
	roots, intermediates := x509.NewCertPool(), x509.NewCertPool()
	var ca *x509.Certificate
	for _, cert := range chain[1:] {
		if digest := jointoken.CADigest(cert); cert.IsCA && bytes.Equal(digest[:], token.CA[:]) {
			ca = cert
			roots.AddCert(cert)
		} else {
			intermediates.AddCert(cert)
		}
	}
	if ca == nil {
		return nil, ErrWrongCA
	}
	// The digest pins the CA's key, not its certificate: the certificate must be the key's own.
	if err := ca.CheckSignatureFrom(ca); err != nil {
		return nil, fmt.Errorf("%w: its CA certificate is not self-signed: %w", ErrWrongCA, err)
	}
	options := x509.VerifyOptions{Roots: roots, Intermediates: intermediates, DNSName: ServerName}
	if _, err := chain[0].Verify(options); err != nil {
		return nil, fmt.Errorf("verify the server's certificate: %w", err)
	}
	return ca, nil
}

// Client is an enrolled agent's configuration: it trusts the fleet's CA alone and presents what certificate returns at
// each handshake, so that a renewed certificate is used without a new configuration.
func Client(ca *x509.Certificate, certificate func() (*tls.Certificate, error)) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	return &tls.Config{
		MinVersion: MinVersion,
		ServerName: ServerName,
		RootCAs:    roots,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return certificate()
		},
	}
}
