package uplink

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/switchyard-ci/switchyard/internal/fleettls"
)

// Kind says what a failed call means for the agent.
type Kind int

// The kinds. Only Unavailable heals by itself; for the others a person has to do something, so an agent that holds jobs
// retries them slowly.
const (
	// Unavailable: nobody answers, the way there is cut, or the control plane stops.
	Unavailable Kind = iota
	// WrongFleet: something answers, but not this fleet's control plane.
	WrongFleet
	// Clock: a certificate is expired or not yet valid.
	Clock
	// Removed: the control plane does not accept this agent (any more).
	Removed
	// Cloned: another agent process has the same identity.
	Cloned
	// Incompatible: no protocol version in common.
	Incompatible
	// Invalid: the control plane refused what was said.
	Invalid
)

// Error is a failed call with what it means and what to do.
type Error struct {
	Kind Kind
	// Text says what happened and the way out; Err is the cause.
	Text string
	Err  error
}

func (e *Error) Error() string { return e.Text }

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the Kind in err's chain; errors of any other kind are Unavailable.
func KindOf(err error) Kind {
	if e := (*Error)(nil); errors.As(err, &e) {
		return e.Kind
	}
	return Unavailable
}

// explain makes sense of err, a call's error, with what TLS said on that connection (nil: nothing).
func explain(address string, err, fromTLS error) *Error {
	// FromError would put what err was wrapped in into the message.
	s := status.Convert(err)
	if inner := (interface{ GRPCStatus() *status.Status })(nil); errors.As(err, &inner) {
		s = inner.GRPCStatus()
	}
	out := func(k Kind, format string, args ...any) *Error {
		return &Error{Kind: k, Text: fmt.Sprintf(format, args...), Err: err}
	}
	switch s.Code() {
	case codes.Unavailable:
		if fromTLS != nil {
			return explainTLS(address, fromTLS)
		}
		return out(Unavailable, "the control plane at %s cannot be reached: %s", address, trim(s.Message()))
	case codes.Unauthenticated, codes.PermissionDenied:
		return out(Removed, "the control plane at %s does not accept this agent: %s", address, s.Message())
	case codes.AlreadyExists, codes.Aborted:
		return out(Cloned, "another agent process uses this agent's identity: %s (a data folder was copied? "+
			"delete the copy's agent.* files and enrol it with a join token of its own)", s.Message())
	case codes.FailedPrecondition:
		return out(Incompatible, "the control plane at %s and this agent do not fit together: %s", address, s.Message())
	case codes.Unimplemented:
		return out(WrongFleet, "what answers at %s is no Switchyard control plane, or a much older one: %s "+
			"(check --server)", address, s.Message())
	case codes.InvalidArgument, codes.OutOfRange:
		return out(Invalid, "the control plane at %s refuses what this agent sent: %s", address, s.Message())
	}
	return out(Unavailable, "the connection to the control plane at %s failed: %s", address, trim(s.Message()))
}

func explainTLS(address string, err error) *Error {
	out := func(k Kind, format string, args ...any) *Error {
		return &Error{Kind: k, Text: fmt.Sprintf(format, args...), Err: err}
	}
	var (
		invalid    x509.CertificateInvalidError
		unknown    x509.UnknownAuthorityError
		name       x509.HostnameError
		plaintext  tls.RecordHeaderError
		wrongFleet = "(check --server; a join token is good only for the control plane that printed it)"
	)
	switch {
	case errors.Is(err, fleettls.ErrWrongCA):
		return out(WrongFleet, "the server at %s does not belong to the fleet of this join token %s", address, wrongFleet)
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return out(Clock, "the certificate of the control plane at %s is not valid now: %s. "+
			"If this host's clock is wrong, set it (NTP); if it is right, restart the control plane, which renews its certificate",
			address, invalid.Detail)
	case errors.As(err, &unknown), errors.As(err, &name), errors.As(err, &invalid):
		return out(WrongFleet, "the server at %s is not this fleet's control plane: %v %s", address, err, wrongFleet)
	case errors.As(err, &plaintext):
		return out(WrongFleet, "what answers at %s does not speak TLS (check --server: it must be the control plane's gRPC port)", address)
	case isAlert(err) && strings.Contains(err.Error(), "expired certificate"):
		return out(Clock, "the control plane at %s says that this agent's certificate is expired: check the clocks of both hosts; "+
			"if they are right, enrol again (delete agent.crt in the data folder and start with a new --token-file)", address)
	case isAlert(err):
		return out(Removed, "the control plane at %s refuses this agent's certificate (%v): it was removed from the fleet, or the "+
			"control plane has a new CA; enrol again (delete agent.crt in the data folder and start with a new --token-file)", address, err)
	}
	return out(Unavailable, "the TLS handshake with %s failed: %v", address, err)
}

// isAlert reports whether err is an alert that the other side sent.
func isAlert(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "remote error"
}

// trim removes gRPC's own wrapping from a connection error.
func trim(message string) string {
	for _, wrapping := range []string{"connection error: desc = ", "transport: "} {
		message = strings.TrimPrefix(strings.Trim(message, `"`), wrapping)
	}
	return strings.Trim(message, `"`)
}
