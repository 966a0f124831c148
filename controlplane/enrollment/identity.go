package enrollment

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/switchyard-ci/switchyard/internal/fleettls"
)

// rejoin is the way out for an agent whose identity is good no more.
const rejoin = "; to let it join, stop it, empty its data folder and give it a new token from `switchyard agents token`"

// Identity returns the id of the agent that makes a call, as its client certificate names it. The error is a gRPC
// status: UNAUTHENTICATED without a certificate, PERMISSION_DENIED if that agent is not, or no longer, in the fleet.
//
// A certificate is verified, its time included, when its connection is made; a connection may outlive it.
func (a *Authority) Identity(ctx context.Context) (agentID string, err error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return "", status.Error(codes.Unauthenticated, "this call needs the agent's client certificate")
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return "", status.Error(codes.Unauthenticated, "this call needs the agent's client certificate"+rejoin)
	}
	id, err := fleettls.AgentID(info.State.VerifiedChains[0][0])
	if err != nil {
		return "", status.Error(codes.Unauthenticated, err.Error())
	}
	if _, ok := a.Agent(id); !ok {
		return "", status.Errorf(codes.PermissionDenied,
			"agent %s is not in this fleet: it was removed, or the control plane's store is from before it enrolled%s", id, rejoin)
	}
	return id, nil
}
