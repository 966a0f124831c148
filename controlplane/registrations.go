package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/tokens"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
	"github.com/switchyard-ci/switchyard/internal/buildinfo"
)

// Registrations are the runners of a configuration as GitLab knows them, without a control plane that serves them: for
// commands that look at them or end them.
type Registrations struct {
	clients *clients
	store   store.Store // nil: no control plane has worked here yet
}

// OpenRegistrations opens the clients of cfg's runners, and its store if there is one. The caller holds the data folder, if
// it exists. Close must be called.
func OpenRegistrations(ctx context.Context, cfg Config) (*Registrations, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	clients, err := newClients(cfg.Runners, cfg.Logger)
	if err != nil {
		return nil, err
	}
	r := &Registrations{clients: clients}
	// The key is made with the store: without it there is nothing to read, and looking must not make anything.
	switch _, err = os.Stat(filepath.Join(cfg.Data, keyFile)); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, errors.Join(fmt.Errorf("look at the data folder: %w", err), r.Close())
	default:
		if r.store, err = openStore(ctx, cfg, cfg.Logger); err != nil {
			return nil, errors.Join(err, r.Close())
		}
	}
	return r, nil
}

// Close releases everything.
func (r *Registrations) Close() error {
	r.clients.close()
	if r.store == nil {
		return nil
	}
	return r.store.Close()
}

// identity returns the token that a runner has now, and the system_id of this control plane; "" if it has none yet.
func (r *Registrations) identity(ctx context.Context, runner Runner) (token, systemID string, err error) {
	if r.store == nil {
		return runner.Token, "", nil
	}
	if systemID, err = r.store.SystemID(ctx, runner.Name); err != nil {
		return "", "", err
	}
	keeper, err := tokens.Open(ctx, tokens.Options{Runner: runner.Name, Configured: runner.Token, Store: r.store})
	if err != nil {
		return "", "", err
	}
	return keeper.Token(), systemID, nil
}

// Verify asks GitLab whether it knows the runner; see [client.Client.Verify] for the errors. rotated says that it was asked
// about a token that replaced the configured one.
func (r *Registrations) Verify(ctx context.Context, runner Runner) (answer *runnerapi.VerifyResponse, rotated bool, err error) {
	token, systemID, err := r.identity(ctx, runner)
	if err != nil {
		return nil, false, err
	}
	answer, err = r.clients.byGitLab[gitlabOf(runner)].Verify(ctx, runnerapi.VerifyRequest{Info: infoOf(runner), Token: token, SystemID: systemID})
	return answer, token != runner.Token, err
}

// Unregister removes the runner from GitLab and forgets what replaced its configured token.
func (r *Registrations) Unregister(ctx context.Context, runner Runner) error {
	token, _, err := r.identity(ctx, runner)
	if err != nil {
		return err
	}
	if err := r.clients.byGitLab[gitlabOf(runner)].Unregister(ctx, token); err != nil {
		return err
	}
	if r.store == nil {
		return nil
	}
	return r.store.DeleteRunnerToken(ctx, runner.Name)
}

// ErrNoManager is returned if GitLab has never heard of this control plane.
var ErrNoManager = errors.New("no control plane has served this runner from this data folder, so GitLab knows none")

// UnregisterManager removes this control plane from the runner's managers in GitLab; the runner stays. ErrNoManager.
func (r *Registrations) UnregisterManager(ctx context.Context, runner Runner) error {
	token, systemID, err := r.identity(ctx, runner)
	if err != nil {
		return err
	}
	if systemID == "" {
		return ErrNoManager
	}
	return r.clients.byGitLab[gitlabOf(runner)].UnregisterManager(ctx, token, systemID)
}

// Register makes a runner in a GitLab with a registration token. at names the GitLab and how to reach it: URL, CAFile,
// CertFile, KeyFile. See [client.Client.Register] for the errors.
func Register(ctx context.Context, at Runner, r runnerapi.RegisterRequest) (*runnerapi.RegisterResponse, error) {
	c, err := client.New(client.Options{
		URL: at.URL, CAFile: at.CAFile, CertFile: at.CertFile, KeyFile: at.KeyFile, UserAgent: buildinfo.UserAgent(),
	})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	r.Info = infoOf(at)
	return c.Register(ctx, r)
}
