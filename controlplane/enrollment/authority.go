// Package enrollment decides who belongs to the fleet. It holds the fleet's CA, turns join tokens into identities,
// renews them, and tells which agent a connection belongs to.
//
// An agent's identity is a UUID in its client certificate; the control plane's is the fixed name fleettls.ServerName.
// Both are signed by the fleet's own CA, whose digest is in each join token.
package enrollment

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/internal/fleettls"
	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

// Authority is the fleet's authority over identities. It serves EnrollmentService. It may be used concurrently.
type Authority struct {
	fleetv1.UnimplementedEnrollmentServiceServer

	ca     *CA
	agents store.Agents
	log    *slog.Logger

	serverMu sync.Mutex
	server   *tls.Certificate // renewed when two thirds of its life are over

	membersMu sync.RWMutex
	members   map[string]store.Agent // by id, without the removed

	failures *failures
}

// New takes up the agents that are enrolled already. The one control plane that is active has the only Authority that
// works on a store: who belongs to the fleet is kept in memory.
func New(ctx context.Context, ca *CA, agents store.Agents, log *slog.Logger) (*Authority, error) {
	enrolled, err := agents.Agents(ctx)
	if err != nil {
		return nil, fmt.Errorf("take up the enrolled agents: %w", err)
	}
	a := &Authority{ca: ca, agents: agents, log: log, members: make(map[string]store.Agent, len(enrolled)), failures: newFailures(ca.now)}
	for _, agent := range enrolled {
		if !agent.Removed {
			a.members[agent.ID] = agent
		}
	}
	if a.server, err = ca.serverCertificate(); err != nil {
		return nil, err
	}
	return a, nil
}

// TLSConfig is the server's side: the fixed name, and client certificates of this fleet or none at all (for Enroll).
// The server's certificate is renewed while the server runs.
func (a *Authority) TLSConfig() *tls.Config {
	clients := x509.NewCertPool()
	clients.AddCert(a.ca.certificate)
	return &tls.Config{
		MinVersion: fleettls.MinVersion,
		Time:       a.ca.now,
		ClientAuth: tls.VerifyClientCertIfGiven,
		ClientCAs:  clients,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return a.serverCertificate()
		},
		// Each connection proves its key anew; agents keep theirs for days.
		SessionTicketsDisabled: true,
	}
}

func (a *Authority) serverCertificate() (*tls.Certificate, error) {
	a.serverMu.Lock()
	defer a.serverMu.Unlock()
	if !a.ca.now().Before(a.server.Leaf.NotAfter.Add(-ServerLife / 3)) {
		renewed, err := a.ca.serverCertificate()
		if err != nil {
			return nil, err
		}
		a.server = renewed
	}
	return a.server, nil
}

// NewJoinToken makes a token with which uses agents may enrol within ttl. The token is in no log and only as a digest in
// the store.
func (a *Authority) NewJoinToken(ctx context.Context, uses int, ttl time.Duration) (jointoken.Token, store.JoinToken, error) {
	if uses <= 0 || ttl <= 0 {
		return jointoken.Token{}, store.JoinToken{}, errors.New("a join token must have at least one use and a time to live above zero")
	}
	token := jointoken.New(a.ca.certificate)
	digest := token.Digest()
	now := a.ca.now()
	stored := store.JoinToken{ID: uuid.NewString(), SecretDigest: digest[:], Uses: uses, CreatedAt: now, ExpiresAt: now.Add(ttl)}
	if err := a.agents.AddJoinToken(ctx, stored); err != nil {
		return jointoken.Token{}, store.JoinToken{}, fmt.Errorf("make a join token: %w", err)
	}
	return token, stored, nil
}

// Remove puts an agent out of the fleet, for ever: its calls are refused from now on. Streams that are open are the
// caller's to end.
func (a *Authority) Remove(ctx context.Context, agentID string) error {
	if err := a.agents.RemoveAgent(ctx, agentID); err != nil {
		return err
	}
	a.membersMu.Lock()
	defer a.membersMu.Unlock()
	delete(a.members, agentID)
	return nil
}

// Agent returns a member of the fleet.
func (a *Authority) Agent(agentID string) (agent store.Agent, ok bool) {
	a.membersMu.RLock()
	defer a.membersMu.RUnlock()
	agent, ok = a.members[agentID]
	return agent, ok
}

// Agents returns the members of the fleet, in no particular order.
func (a *Authority) Agents() []store.Agent {
	a.membersMu.RLock()
	defer a.membersMu.RUnlock()
	return slices.Collect(maps.Values(a.members))
}

func (a *Authority) admit(agent store.Agent) {
	a.membersMu.Lock()
	defer a.membersMu.Unlock()
	a.members[agent.ID] = agent
}
