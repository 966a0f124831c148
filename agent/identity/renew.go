package identity

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	randv2 "math/rand/v2"
	"path/filepath"
	"time"

	"github.com/switchyard-ci/switchyard/agent/uplink"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// RenewAt says when to renew: after two thirds of the certificate's life, spread over the twentieth that follows so that
// agents which enrolled together do not come together.
func (i *Identity) RenewAt() time.Time {
	notBefore, notAfter := i.Validity()
	life := notAfter.Sub(notBefore)
	at := notBefore.Add(2 * life / 3)
	if spread := life / 20; spread > 0 {
		at = at.Add(randv2.N(spread))
	}
	return at
}

// Renew makes one attempt to get a new certificate for the same key over an established connection, and uses and keeps
// it. The old one stays in use after an error.
func (i *Identity) Renew(ctx context.Context, conn *uplink.Conn) error {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, i.key)
	if err != nil {
		return fmt.Errorf("make a certificate request: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := fleetv1.NewEnrollmentServiceClient(conn).Renew(ctx, &fleetv1.RenewRequest{Csr: csr})
	if err != nil {
		return fmt.Errorf("renew the certificate: %w", conn.Explain(err))
	}
	chain, err := parseChain(answer.GetCertificateChain())
	if err != nil {
		return fmt.Errorf("renew the certificate: %w", err)
	}
	certificate, err := i.check(chain)
	if err == nil {
		err = writeCertificates(filepath.Join(i.dir, certFile), chain)
	}
	if err != nil {
		return fmt.Errorf("renew the certificate: %w", err)
	}
	i.current.Store(certificate)
	return nil
}
