package controlplane

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/admin"
	"github.com/switchyard-ci/switchyard/controlplane/allocation"
	"github.com/switchyard-ci/switchyard/controlplane/dispatch"
	"github.com/switchyard-ci/switchyard/controlplane/policy"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

// Documents of the store.
const (
	policyDocument = "policy"
	sharesDocument = "shares"
	usageDocument  = "usage"
)

// saveEvery is how often the accounts of fair usage are written down: what a crash loses of them is forgiven usage.
const saveEvery = time.Minute

// sharing keeps the policy and the accounts of fair usage over restarts.
type sharing struct {
	store interface {
		store.Documents
		store.Audit
	}

	mu     sync.Mutex
	policy store.Document // Version 0: there is none, and the default counts
	shares store.Document
	usage  store.Document
}

// open reads what the store has and returns the policy in force.
func (s *sharing) open(ctx context.Context) (*policy.Policy, error) {
	for name, d := range map[string]*store.Document{policyDocument: &s.policy, sharesDocument: &s.shares, usageDocument: &s.usage} {
		var err error
		if *d, err = loadDocument(ctx, s.store, name); err != nil {
			return nil, err
		}
	}
	if s.policy.Version == 0 {
		return policy.Default(), nil
	}
	p, _, err := policy.Parse("the policy in force", s.policy.Body)
	if err != nil {
		return nil, fmt.Errorf("this version of Switchyard does not understand the policy that is in the store (run the version that it was applied with, and apply one that both understand):\n%w", err)
	}
	return p, nil
}

// loadDocument returns a document of the store; one that is not there has the version 0.
func loadDocument(ctx context.Context, s store.Documents, name string) (store.Document, error) {
	d, err := s.Document(ctx, name)
	if errors.Is(err, store.ErrNotFound) {
		return store.Document{Name: name}, nil
	}
	return d, err
}

// save writes the accounts and the figures down.
func (s *sharing) save(ctx context.Context, d *dispatch.Dispatcher) error {
	used, err := d.UsageSnapshot()
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.put(ctx, &s.shares, d.Shares()), s.put(ctx, &s.usage, used))
}

// put writes a new version of a document and forgets its body.
func (s *sharing) put(ctx context.Context, d *store.Document, body []byte) error {
	next, err := s.store.PutDocument(ctx, store.Document{Name: d.Name, Body: body, ChangedAt: time.Now(), ChangedBy: "switchyard"}, d.Version, nil)
	if err != nil {
		return fmt.Errorf("save the %s of fair usage: %w", d.Name, err)
	}
	next.Body = nil
	*d = next
	return nil
}

// Policy implements admin.Policies.
func (s *Server) Policy() admin.Policy {
	s.sharing.mu.Lock()
	defer s.sharing.mu.Unlock()
	d := s.sharing.policy
	return admin.Policy{Text: string(d.Body), Version: d.Version, AppliedAt: d.ChangedAt, AppliedBy: d.ChangedBy}
}

// ApplyPolicy implements admin.Policies.
func (s *Server) ApplyPolicy(ctx context.Context, name, text, actor string, check bool) (admin.Policy, []yamlform.Problem, error) {
	p, warnings, err := policy.Parse(name, []byte(text))
	if err != nil {
		return admin.Policy{}, warnings, err
	}
	warnings = append(warnings, s.strangers(name, p)...)
	if check {
		return s.Policy(), warnings, nil
	}
	s.sharing.mu.Lock()
	defer s.sharing.mu.Unlock()
	now := time.Now()
	d, err := s.sharing.store.PutDocument(ctx, store.Document{Name: policyDocument, Body: []byte(text), ChangedAt: now, ChangedBy: actor}, s.sharing.policy.Version,
		&store.AuditEntry{At: now, Actor: actor, Action: "policy.apply", Subject: "policy", Detail: text})
	if err != nil {
		return admin.Policy{}, warnings, fmt.Errorf("store the policy: %w", err)
	}
	s.sharing.policy = d
	s.dispatch.SetPolicy(p)
	s.log.Info("a policy of fair usage is in force", "version", d.Version, "by", actor)
	return admin.Policy{Text: text, Version: d.Version, AppliedAt: d.ChangedAt, AppliedBy: actor}, warnings, nil
}

// strangers are warnings about what a policy names and the configuration does not have, and about what the policy does not
// say of runners although it matters.
func (s *Server) strangers(name string, p *policy.Policy) []yamlform.Problem {
	runners, gitlabs := make(map[string]bool), make(map[string]int)
	for _, r := range s.cfg.Runners {
		runners[r.Name] = true
		gitlabs[r.URL]++
	}
	var warnings []yamlform.Problem
	for i, r := range p.Runners {
		if !runners[r.Name] {
			warnings = append(warnings, yamlform.Problem{
				File: name, Field: fmt.Sprintf("runners[%d].name", i), Message: fmt.Sprintf("there is no runner %q", r.Name),
				Hint: "the names are those in switchyard.yaml",
			})
		}
	}
	weighed := false
	for i, n := range p.Nodes {
		if n.GitLab != "" && gitlabs[n.GitLab] == 0 {
			warnings = append(warnings, yamlform.Problem{
				File: name, Field: fmt.Sprintf("nodes[%d].gitlab", i), Message: fmt.Sprintf("no runner is of the GitLab %s", n.GitLab),
				Hint: "write it like the runners' url in switchyard.yaml",
			})
		}
		weighed = weighed || n.Weight > 1 || n.Guaranteed > 0 || n.Soft > 0
	}
	var loose []string // runners of groups and projects whose claims are charged to none
	for _, r := range s.cfg.Runners {
		if bound := p.Runner(r.Name); gitlabs[r.URL] > 1 && scopeOf(r.Token) != allocation.InstanceRunner && bound.Group == "" && bound.Project == "" {
			loose = append(loose, r.Name)
		}
	}
	if weighed && p.Mode == policy.Fair && len(loose) > 0 {
		warnings = append(warnings, yamlform.Problem{
			File: name, Field: "runners", Message: fmt.Sprintf("it is not said of which group or project %s: so for their claims weight, guaranteed and "+
				"soft_quota of nodes do not count, and each has the part of a group", isOrAre(loose)),
			Hint: fmt.Sprintf("say it, like runners: [{name: %s, group: path/of/it}]", loose[0]),
		})
	}
	return warnings
}

// isOrAre names some runners, the first few.
func isOrAre(runners []string) string {
	const most = 5
	switch more := len(runners) - most; {
	case len(runners) == 1:
		return "runner " + runners[0] + " is"
	case more > 0:
		return fmt.Sprintf("runners %s and %d more are", strings.Join(runners[:most], ", "), more)
	}
	return "runners " + strings.Join(runners, ", ") + " are"
}

// Audit implements admin.Policies.
func (s *Server) Audit(ctx context.Context, before int64, limit int) ([]store.AuditEntry, error) {
	return s.store.Audit(ctx, before, limit)
}

// Record implements admin.Policies.
func (s *Server) Record(ctx context.Context, e store.AuditEntry) error {
	return s.store.AppendAudit(ctx, e)
}

// saveShares writes the accounts down now and then, and once more when ctx ends.
func (s *Server) saveShares(ctx context.Context) {
	tick := time.NewTicker(saveEvery)
	defer tick.Stop()
	for more := true; more; {
		select {
		case <-ctx.Done():
			more = false
		case <-tick.C:
		}
		saving, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopPatience)
		if err := s.sharing.save(saving, s.dispatch); err != nil && !errors.Is(err, store.ErrFenced) {
			s.log.Warn("the next start may not remember who has used how much", "error", err)
		}
		cancel()
	}
}

// scopeOf is what a runner is registered for, as its token says: GitLab marks those of runners that were made in its
// pages (Ci::Runner#token in GitLab).
func scopeOf(token string) allocation.Scope {
	_, rest, _ := strings.Cut(token, "glrt-")
	switch {
	case strings.HasPrefix(rest, "t2_"):
		return allocation.GroupRunner
	case strings.HasPrefix(rest, "t3_"):
		return allocation.ProjectRunner
	}
	return allocation.InstanceRunner
}
