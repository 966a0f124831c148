package controlplane

import (
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"

	"github.com/switchyard-ci/switchyard/controlplane/cachestore"
	"github.com/switchyard-ci/switchyard/controlplane/config"
	"github.com/switchyard-ci/switchyard/controlplane/dispatch"
	"github.com/switchyard-ci/switchyard/controlplane/polling"
	"github.com/switchyard-ci/switchyard/controlplane/registry"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/tokens"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
	"github.com/switchyard-ci/switchyard/internal/buildinfo"
)

// Runner is a registration in GitLab and how to serve it.
type Runner = config.Runner

// clients are the connections to the GitLabs: one per address and certificates, shared by its runners. Requests, connections
// and trouble of one are no other's business.
type clients struct {
	byGitLab map[gitlab]*client.Client
	budgets  map[gitlab]*polling.Budget
	ids      map[string]*atomic.Int64 // GitLab's id of each runner, by name; 0 until it has answered
	keepers  map[string]*tokens.Keeper
	log      *slog.Logger
}

type gitlab struct{ url, caFile, certFile, keyFile string }

func gitlabOf(r Runner) gitlab { return gitlab{r.URL, r.CAFile, r.CertFile, r.KeyFile} }

func newClients(runners []Runner, log *slog.Logger) (*clients, error) {
	c := &clients{
		byGitLab: make(map[gitlab]*client.Client), budgets: make(map[gitlab]*polling.Budget),
		ids: make(map[string]*atomic.Int64), keepers: make(map[string]*tokens.Keeper), log: log,
	}
	for _, r := range runners {
		c.ids[r.Name] = new(atomic.Int64)
		if _, err := c.client(gitlabOf(r), nil); err != nil {
			c.close()
			return nil, fmt.Errorf("runner %q: %w", r.Name, err)
		}
	}
	return c, nil
}

// client returns the connections to a GitLab, making them at the first call. ca is PEM to be trusted besides the file's.
func (c *clients) client(at gitlab, ca []byte) (*client.Client, error) {
	if cl := c.byGitLab[at]; cl != nil {
		return cl, nil
	}
	cl, err := client.New(client.Options{
		URL: at.url, CAFile: at.caFile, CA: ca, CertFile: at.certFile, KeyFile: at.keyFile, UserAgent: buildinfo.UserAgent(), Logger: c.log,
	})
	if err != nil {
		return nil, err
	}
	c.byGitLab[at] = cl
	c.budgets[at] = polling.NewBudget(polling.DefaultBudgetPerMinute)
	return cl, nil
}

func (c *clients) close() {
	for _, cl := range c.byGitLab {
		cl.Close()
	}
}

func (c *clients) dispatchRunner(r Runner, systemID string) (dispatch.Runner, error) {
	id := c.ids[r.Name]
	var caches *cachestore.Store
	if r.Settings.Cache != nil {
		var err error
		if caches, err = cachestore.New(*r.Settings.Cache, r.ShortToken()); err != nil {
			return dispatch.Runner{}, fmt.Errorf("runner %q: %w", r.Name, err)
		}
	}
	return dispatch.Runner{
		Settings: r.Settings, Caches: caches,
		Name: r.Name, URL: r.URL, Executor: r.Executor, Selector: r.Selector, Limit: r.Limit, Scope: scopeOf(r.Token),
		OutputLimit: r.OutputLimit, StopAfter: r.StopAfter, LostAfter: r.LostAfter, ShortToken: c.shortToken(r.Name), SystemID: systemID, ID: id.Load,
		Info: infoOf(r), GitLab: c.byGitLab[gitlabOf(r)],
	}, nil
}

// shortToken follows the runner's token. Its caches do not: they stay where the configured token has put them.
func (c *clients) shortToken(runner string) func() string {
	keeper := c.keepers[runner]
	return func() string { return registry.ShortToken(keeper.Token()) }
}

// retired makes a runner for jobs whose own is no longer configured: it can report to their GitLab, which was trusted when
// they came from there.
func (c *clients) retired(job store.Job) (dispatch.Runner, error) {
	r := dispatch.Runner{
		Name: job.Runner, URL: job.GitLabURL, OutputLimit: config.DefaultOutputLimit << 10, Info: baseInfo(),
	}
	for at, cl := range c.byGitLab {
		if at.url == job.GitLabURL {
			r.GitLab = cl
			return r, nil
		}
	}
	cl, err := c.client(gitlab{url: job.GitLabURL}, []byte(job.Envelope.ServerCA))
	r.GitLab = cl
	return r, err
}

// baseInfo is what GitLab is told of the control plane itself: what it does with every job, whatever runs it.
func baseInfo() runnerapi.Info {
	return runnerapi.Info{
		Name: "switchyard", Version: buildinfo.Version(), Revision: buildinfo.Revision(),
		Platform: runtime.GOOS, Architecture: runtime.GOARCH,
		Features: runnerapi.Features{
			TraceReset: true, TraceChecksum: true, TraceSize: true, Cancelable: true, CancelGracefully: true, TwoPhaseJobCommit: true,
		},
	}
}

// infoOf is baseInfo with what the configuration has for GitLab's list of runners.
func infoOf(r Runner) runnerapi.Info {
	info := baseInfo()
	info.Labels = r.Labels
	return info
}

func (c *clients) poller(r Runner, systemID string, d *dispatch.Dispatcher, fenced <-chan struct{}) (*polling.Poller, error) {
	at, keeper := gitlabOf(r), c.keepers[r.Name]
	return polling.New(polling.Options{
		Runner: r.Name, Token: keeper.Token, Superseded: keeper.Superseded, SystemID: systemID,
		Client: verified{c.byGitLab[at], c.ids[r.Name], keeper}, Dispatcher: slots{d}, Budget: c.budgets[at], Recovered: c.byGitLab[at].Recovered,
		Info:          func() runnerapi.Info { return d.Info(r.Name) },
		Slots:         func() int { return d.Slots(r.Name) },
		CheckInterval: r.CheckInterval, RequestsPerMinute: r.RequestsPerMinute, Fenced: fenced, Logger: c.log,
	})
}

// openKeeper finds out which token a runner has. info is what GitLab is told when the token is checked, changed is called
// when the runner has another one.
func (c *clients) openKeeper(ctx context.Context, s tokens.Store, r Runner, systemID string, info func() runnerapi.Info, changed func()) error {
	keeper, err := tokens.Open(ctx, tokens.Options{
		Runner: r.Name, Configured: r.Token, Automatic: !r.Settings.FeatureFlags[tokens.DisableFlag], Store: s,
		GitLab: tokenIssuer{c.byGitLab[gitlabOf(r)], systemID, info}, ID: c.ids[r.Name].Load, Changed: changed, Logger: c.log,
	})
	c.keepers[r.Name] = keeper
	return err
}

// tokenIssuer asks about a runner's token as the runner.
type tokenIssuer struct {
	*client.Client
	systemID string
	info     func() runnerapi.Info
}

func (i tokenIssuer) Knows(ctx context.Context, token string) error {
	_, err := i.Verify(ctx, runnerapi.VerifyRequest{Info: i.info(), Token: token, SystemID: i.systemID})
	return err
}

// verified notes the runner's id and how long its token is good for when GitLab tells them.
type verified struct {
	*client.Client
	id     *atomic.Int64
	keeper *tokens.Keeper
}

func (v verified) Verify(ctx context.Context, r runnerapi.VerifyRequest) (*runnerapi.VerifyResponse, error) {
	res, err := v.Client.Verify(ctx, r)
	if err == nil && res != nil {
		v.id.Store(res.ID)
		v.keeper.Verified(r.Token, res.TokenExpiresAt)
	}
	return res, err
}

// slots lets polling see the dispatcher in its own words.
type slots struct{ *dispatch.Dispatcher }

func (s slots) Reserve(ctx context.Context, runner string) (polling.Reservation, error) {
	r, err := s.Dispatcher.Reserve(ctx, runner)
	if err != nil {
		return nil, err
	}
	return r, nil
}

func (s slots) Claimed(ctx context.Context, runner string, r polling.Reservation, c polling.Claim) error {
	slot, _ := r.(*dispatch.Reservation)
	return s.Dispatcher.Claimed(ctx, runner, slot, dispatch.Claim{Payload: c.Payload, Envelope: c.Envelope, ServerCA: c.ServerCA, At: c.ReceivedAt})
}
