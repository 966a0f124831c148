package controlplane

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/admin"
	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// drainedDocument is the store's document of the drained agents.
const drainedDocument = "drained"

// drains keeps over restarts which agents are drained.
type drains struct {
	store store.Documents

	mu     sync.Mutex
	doc    store.Document // without its body
	agents map[string]admin.Drain
}

// open reads what the store has. Agents that are no members any more are left out.
func (s *drains) open(ctx context.Context, isMember func(id string) bool) error {
	var err error
	if s.doc, err = loadDocument(ctx, s.store, drainedDocument); err != nil {
		return err
	}
	s.agents = make(map[string]admin.Drain)
	if s.doc.Version > 0 {
		if err := json.Unmarshal(s.doc.Body, &s.agents); err != nil {
			return fmt.Errorf("read which agents are drained: %w", err)
		}
	}
	s.doc.Body = nil
	maps.DeleteFunc(s.agents, func(id string, _ admin.Drain) bool { return !isMember(id) })
	return nil
}

// reasons are those of the drained agents, by id.
func (s *drains) reasons() map[string]string {
	all := make(map[string]string, len(s.agents))
	for id, d := range s.agents {
		all[id] = d.Reason
	}
	return all
}

// putLocked stores the drained agents as they are to be from now on, with an entry in the audit log.
func (s *drains) putLocked(ctx context.Context, agents map[string]admin.Drain, audit store.AuditEntry) error {
	body, err := json.Marshal(agents)
	if err != nil {
		return fmt.Errorf("write which agents are drained: %w", err)
	}
	d := store.Document{Name: drainedDocument, Body: body, ChangedAt: audit.At, ChangedBy: audit.Actor}
	if d, err = s.store.PutDocument(ctx, d, s.doc.Version, &audit); err != nil {
		return fmt.Errorf("store which agents are drained: %w", err)
	}
	d.Body = nil
	s.doc, s.agents = d, agents
	return nil
}

// Drains implements admin.Drains.
func (s *Server) Drains() map[string]admin.Drain {
	s.drains.mu.Lock()
	defer s.drains.mu.Unlock()
	return maps.Clone(s.drains.agents)
}

// Drain implements admin.Drains.
func (s *Server) Drain(ctx context.Context, agent store.Agent, reason, actor string) (jobs int, err error) {
	s.drains.mu.Lock()
	defer s.drains.mu.Unlock()
	now := time.Now()
	agents := maps.Clone(s.drains.agents)
	agents[agent.ID] = admin.Drain{Reason: reason, By: actor, At: now}
	entry := store.AuditEntry{At: now, Actor: actor, Action: "agent.drain", Subject: agent.Name, Detail: reason}
	if err := s.drains.putLocked(ctx, agents, entry); err != nil {
		return 0, err
	}
	return s.dispatch.DrainAgent(agent.ID, reason), nil
}

// Undrain implements admin.Drains.
func (s *Server) Undrain(ctx context.Context, agent store.Agent, actor string) (was bool, err error) {
	s.drains.mu.Lock()
	defer s.drains.mu.Unlock()
	if _, was = s.drains.agents[agent.ID]; !was {
		return false, nil
	}
	agents := maps.Clone(s.drains.agents)
	delete(agents, agent.ID)
	entry := store.AuditEntry{At: time.Now(), Actor: actor, Action: "agent.undrain", Subject: agent.Name}
	if err := s.drains.putLocked(ctx, agents, entry); err != nil {
		return true, err
	}
	s.dispatch.UndrainAgent(agent.ID)
	return true, nil
}
