package enrollment

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

// newToken is the way out for a join token that is not good.
const newToken = "; print a new one with `switchyard agents token` where the control plane runs"

// Enroll implements EnrollmentService.
func (a *Authority) Enroll(ctx context.Context, req *fleetv1.EnrollRequest) (*fleetv1.EnrollResponse, error) {
	address := peerAddress(ctx)
	if wait := a.failures.wait(address); wait > 0 {
		return nil, status.Errorf(codes.ResourceExhausted, "too many failed attempts to enrol from this address; try again in %s",
			wait.Round(time.Second)+time.Second)
	}
	agent, key, err := a.enroll(ctx, req)
	if err != nil {
		err = enrollError(ctx, err, a.log)
		switch status.Code(err) {
		case codes.Unauthenticated, codes.FailedPrecondition, codes.PermissionDenied:
			a.failures.add(address)
		}
		return nil, err
	}
	leaf, err := a.ca.agentCertificate(agent.ID, key)
	if err != nil {
		return nil, internal(ctx, a.log, err)
	}
	a.admit(agent)
	a.log.InfoContext(ctx, "agent enrolled", slog.String("agent", agent.ID), slog.String("name", agent.Name), slog.String("join_token", agent.TokenID))
	return &fleetv1.EnrollResponse{
		AgentId: agent.ID, Name: agent.Name,
		CertificateChain: [][]byte{leaf.Raw, a.ca.certificate.Raw},
		ExpiresAt:        timestamppb.New(leaf.NotAfter),
	}, nil
}

var (
	errOtherFleet = errors.New("the join token is for another fleet")
	errRemoved    = errors.New("the agent was removed from the fleet")
	errCSR        = errors.New("the certificate signing request is unusable")
)

func (a *Authority) enroll(ctx context.Context, req *fleetv1.EnrollRequest) (store.Agent, crypto.PublicKey, error) {
	key, keyDigest, err := readCSR(req.GetCsr())
	if err != nil {
		return store.Agent{}, nil, err
	}
	token, err := jointoken.Parse(req.GetToken())
	if err != nil {
		return store.Agent{}, nil, err
	}
	// Public; the secret is compared as a digest, by the store.
	if token.CA != jointoken.CADigest(a.ca.certificate) {
		return store.Agent{}, nil, errOtherFleet
	}
	digest, now := token.Digest(), a.ca.now()
	agent, err := a.agents.EnrollAgent(ctx, digest[:], store.Agent{
		ID: uuid.NewString(), Name: req.GetName(), EnrolledAt: now, KeyDigest: keyDigest,
	}, now)
	if err == nil && agent.Removed {
		err = errRemoved
	}
	return agent, key, err
}

// Renew implements EnrollmentService.
func (a *Authority) Renew(ctx context.Context, req *fleetv1.RenewRequest) (*fleetv1.RenewResponse, error) {
	id, err := a.Identity(ctx)
	if err != nil {
		return nil, err
	}
	key, _, err := readCSR(req.GetCsr())
	if err != nil {
		return nil, enrollError(ctx, err, a.log)
	}
	leaf, err := a.ca.agentCertificate(id, key)
	if err != nil {
		return nil, internal(ctx, a.log, err)
	}
	return &fleetv1.RenewResponse{
		CertificateChain: [][]byte{leaf.Raw, a.ca.certificate.Raw},
		ExpiresAt:        timestamppb.New(leaf.NotAfter),
	}, nil
}

// readCSR returns the public key of a request that was signed with its private key, and the digest of it.
func readCSR(der []byte) (key crypto.PublicKey, digest string, err error) {
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", errCSR, err)
	}
	switch csr.PublicKey.(type) {
	case *ecdsa.PublicKey, ed25519.PublicKey:
	default:
		return nil, "", fmt.Errorf("%w: its key is %s; make an ECDSA or Ed25519 key", errCSR, csr.PublicKeyAlgorithm)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, "", fmt.Errorf("%w: its signature is not its key's: %w", errCSR, err)
	}
	sum := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	return csr.PublicKey, hex.EncodeToString(sum[:]), nil
}

// enrollError makes a status of an error. What is not the caller's fault is logged here, because the caller is told
// less.
func enrollError(ctx context.Context, err error, log *slog.Logger) error {
	switch {
	case errors.Is(err, store.ErrTokenUnknown):
		return status.Error(codes.Unauthenticated, "the join token is unknown"+newToken)
	case errors.Is(err, store.ErrTokenUsed):
		return status.Error(codes.Unauthenticated, "the join token is used up"+newToken)
	case errors.Is(err, store.ErrTokenExpired):
		return status.Error(codes.Unauthenticated, "the join token has expired"+newToken)
	case errors.Is(err, store.ErrTokenRevoked):
		return status.Error(codes.Unauthenticated, "the join token was revoked"+newToken)
	case errors.Is(err, jointoken.ErrMalformed), errors.Is(err, errOtherFleet):
		return status.Error(codes.Unauthenticated, err.Error()+newToken)
	case errors.Is(err, errRemoved):
		return status.Error(codes.PermissionDenied, err.Error()+rejoin)
	case errors.Is(err, errCSR):
		return status.Error(codes.FailedPrecondition, err.Error())
	case ctx.Err() != nil:
		return status.FromContextError(ctx.Err()).Err()
	case errors.Is(err, store.ErrClosed):
		return status.Error(codes.Unavailable, "the control plane stops; try again")
	case errors.Is(err, store.ErrFull):
		log.ErrorContext(ctx, "cannot enrol an agent", slog.Any("error", err))
		return status.Error(codes.Unavailable, "the control plane's disk is full; try again when it has space")
	}
	return internal(ctx, log, err)
}

func internal(ctx context.Context, log *slog.Logger, err error) error {
	log.ErrorContext(ctx, "cannot give an agent its identity", slog.Any("error", err))
	return status.Error(codes.Internal, "the control plane could not do it; its log says why")
}
