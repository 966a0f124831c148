package identity

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/switchyard-ci/switchyard/agent/uplink"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/internal/durable"
	"github.com/switchyard-ci/switchyard/internal/fleettls"
	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

const (
	callTimeout = 30 * time.Second
	// maxChain is how many certificates an answer may have.
	maxChain = 8
)

// RefusedError says that the control plane does not take the join token; repeating the attempt is useless.
type RefusedError struct{ Reason string }

func (e *RefusedError) Error() string {
	return fmt.Sprintf("the control plane refuses the join token: %s (`switchyard agents token` on the control plane's host prints a new one)", e.Reason)
}

// Enroll makes one attempt to join the fleet of token under the wanted name and keeps the result in dir. It is safe to
// repeat: the key is made once. The error is a *RefusedError, an *uplink.Error, or one about the folder.
func Enroll(ctx context.Context, dir string, target uplink.Target, token jointoken.Token, name string) (*Identity, error) {
	key, err := loadOrMakeKey(dir)
	if err != nil {
		return nil, err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate request: %w", err)
	}

	var ca atomic.Pointer[x509.Certificate]
	conn, err := uplink.Dial(target, fleettls.FirstContact(token, ca.Store))
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	answer, err := fleetv1.NewEnrollmentServiceClient(conn).Enroll(ctx, &fleetv1.EnrollRequest{Token: token.String(), Csr: csr, Name: name})
	if err != nil {
		if code := status.Code(err); code == codes.Unauthenticated || code == codes.PermissionDenied {
			return nil, &RefusedError{Reason: status.Convert(err).Message()}
		}
		return nil, fmt.Errorf("enrol: %w", conn.Explain(err))
	}
	id, err := keep(dir, key, ca.Load(), answer)
	if err != nil {
		return nil, fmt.Errorf("enrol: %w", err)
	}
	return id, nil
}

// keep checks the control plane's answer and writes it down.
func keep(dir string, key *ecdsa.PrivateKey, ca *x509.Certificate, answer *fleetv1.EnrollResponse) (*Identity, error) {
	chain, err := parseChain(answer.GetCertificateChain())
	if err != nil {
		return nil, err
	}
	id := &Identity{dir: dir, key: key, ca: ca, ID: answer.GetAgentId(), Name: answer.GetName()}
	certificate, err := id.check(chain)
	if err != nil {
		return nil, err
	}
	id.current.Store(certificate)
	b, err := json.Marshal(info{ID: id.ID, Name: id.Name})
	if err != nil {
		return nil, fmt.Errorf("keep the agent's name: %w", err)
	}
	if err := errors.Join(
		writeCertificates(filepath.Join(dir, caFile), []*x509.Certificate{ca}),
		durable.WriteFile(filepath.Join(dir, infoFile), append(b, '\n'), 0o644),
	); err != nil {
		return nil, err
	}
	return id, writeCertificates(filepath.Join(dir, certFile), chain)
}

func parseChain(raw [][]byte) ([]*x509.Certificate, error) {
	if len(raw) == 0 || len(raw) > maxChain {
		return nil, fmt.Errorf("the control plane's answer has %d certificates, expected 1 to %d", len(raw), maxChain)
	}
	chain := make([]*x509.Certificate, 0, len(raw))
	for n, der := range raw {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the control plane's answer: %w", n, err)
		}
		chain = append(chain, c)
	}
	return chain, nil
}
