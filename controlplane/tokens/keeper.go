// Package tokens keeps the authentication tokens of runners and replaces those that expire, in good time and without a
// restart.
//
// The token of the configuration is the runner's identity: a token that a rotation brought is used as long as the
// configuration still has the one that it descends from, and forgotten when the configuration has another.
package tokens

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/breaker"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// DisableFlag is the feature flag of a runner that turns automatic rotation off.
const DisableFlag = "FF_DISABLE_AUTOMATIC_TOKEN_ROTATION"

const (
	// longestSleep bounds how long the loop trusts its timer: clocks are set, machines sleep.
	longestSleep = time.Hour
	// pause is the least time between two rotations that nobody asked for.
	pause = time.Minute
	// After a failed rotation the next is tried after firstRetry, doubling up to lastRetry.
	firstRetry = 5 * time.Second
	lastRetry  = 10 * time.Minute
	// A token that cannot be saved is tried again after firstSave, doubling up to lastSave.
	firstSave = 100 * time.Millisecond
	lastSave  = 5 * time.Second
	// callTimeout bounds a reset, which nothing else ends: its answer must not be thrown away.
	callTimeout = 2 * time.Minute
	// stopPatience is how long a stopping loop goes on trying to save a token.
	stopPatience = 20 * time.Second
)

// Store is where tokens are kept; see [store.Runners].
type Store interface {
	// RunnerToken returns the kept token; store.ErrNotFound.
	RunnerToken(ctx context.Context, runner string) (store.RunnerToken, error)
	// SaveRunnerToken keeps a token; it is durable when it returns.
	SaveRunnerToken(ctx context.Context, runner string, t store.RunnerToken) error
	// DeleteRunnerToken forgets it.
	DeleteRunnerToken(ctx context.Context, runner string) error
}

// GitLab is asked for new tokens.
type GitLab interface {
	// ResetToken is [client.Client.ResetToken].
	ResetToken(ctx context.Context, token string) (*runnerapi.ResetTokenResponse, error)
	// Knows asks whether GitLab knows a token, as [client.Client.Verify] does.
	Knows(ctx context.Context, token string) error
}

// Options describe a runner's token.
type Options struct {
	Runner     string // its name
	Configured string // the token of the configuration; secret
	// Automatic: the token is replaced at three quarters of its life.
	Automatic bool
	Store     Store
	GitLab    GitLab
	// ID returns GitLab's id of the runner for messages, 0 if it is not known; nil: never known.
	ID func() int64
	// Changed is called after each change of the token; it must not block. nil: nobody wants to know.
	Changed func()
	Logger  *slog.Logger // nil discards it
}

// Keeper has the token of one runner. All methods may be called concurrently.
type Keeper struct {
	o        Options
	log      *slog.Logger
	digest   string
	requests chan chan error
	news     chan struct{} // something is to be looked at
	changing chan struct{} // capacity 1; full while GitLab may have given a token away that is not in use yet

	mu sync.Mutex
	state
}

// state is what a keeper knows of its token.
type state struct {
	token             string
	obtained, expires time.Time // zero if not known; expires also if it does not
	dice              float64
	rotated           bool // not the configured one
	unsaved           bool // obtained or expires is not in the store
	doubt             bool // a reset was not answered: the token may be void
	lost              bool // it is void, and nobody has the new one
	failures          int
	retryAt           time.Time
	lastRotation      time.Time
	problem           string
}

// Status is a keeper's state for people.
type Status struct {
	Rotated    bool      // the token is not the configured one but a successor
	ObtainedAt time.Time // zero: not known
	ExpiresAt  time.Time // zero: never, or not known
	RotateAt   time.Time // zero: not by itself
	Lost       bool      // the token is void and nobody has the new one; Problem says what to do
	Problem    string    // why the last rotation failed; empty if it did not
}

// Open finds out which token the runner has. Run must be called for it to be replaced.
func Open(ctx context.Context, o Options) (*Keeper, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.ID == nil {
		o.ID = func() int64 { return 0 }
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	sum := sha256.Sum256([]byte(o.Configured))
	k := &Keeper{
		o: o, log: o.Logger.With("runner", o.Runner), digest: hex.EncodeToString(sum[:]),
		requests: make(chan chan error), news: make(chan struct{}, 1), changing: make(chan struct{}, 1),
		state: state{token: o.Configured, dice: rand.Float64()},
	}
	kept, err := o.Store.RunnerToken(ctx, o.Runner)
	switch {
	case errors.Is(err, store.ErrNotFound):
	case err != nil:
		return nil, fmt.Errorf("find the token of runner %q: %w", o.Runner, err)
	case kept.Configured != k.digest:
		k.log.InfoContext(ctx, "the configuration has another token than the one that was kept, which is forgotten")
		if err := o.Store.DeleteRunnerToken(ctx, o.Runner); err != nil {
			return nil, fmt.Errorf("forget the old token of runner %q: %w", o.Runner, err)
		}
	default:
		k.token, k.obtained, k.expires = kept.Token, kept.ObtainedAt, kept.ExpiresAt
		k.rotated = kept.Token != o.Configured
	}
	return k, nil
}

// Token returns the token to use now.
func (k *Keeper) Token() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.token
}

// Superseded says whether token is not the one to use any more. While a new one is being made it waits until that is
// decided, at most until ctx ends.
func (k *Keeper) Superseded(ctx context.Context, token string) bool {
	select {
	case k.changing <- struct{}{}:
		<-k.changing
	case <-ctx.Done():
	}
	return token != k.Token()
}

// Verified takes what GitLab said of a token: when it expires, nil if it does not.
func (k *Keeper) Verified(token string, expires *time.Time) {
	var at time.Time
	if expires != nil {
		at = *expires
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if token != k.token {
		return
	}
	k.lost, k.doubt = false, false
	if at.Equal(k.expires) {
		return
	}
	k.expires, k.unsaved = at, true
	if k.obtained.IsZero() {
		k.obtained = time.Now() // GitLab does not say; from now on it is remembered
	}
	k.wake()
}

func (k *Keeper) wake() {
	select {
	case k.news <- struct{}{}:
	default:
	}
}

// Status returns a snapshot.
func (k *Keeper) Status() Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	return Status{
		Rotated: k.rotated, ObtainedAt: k.obtained, ExpiresAt: k.expires, RotateAt: k.rotateAt(), Lost: k.lost, Problem: k.problem,
	}
}

// rotateAt is when the token is replaced; zero: not without being asked.
func (k *Keeper) rotateAt() time.Time {
	at := due(k.obtained, k.expires, k.dice)
	if at.IsZero() || !k.o.Automatic || k.lost {
		return time.Time{}
	}
	for _, t := range []time.Time{k.retryAt, k.lastRotation.Add(pause)} {
		if t.After(at) {
			at = t
		}
	}
	return at
}

// Rotate replaces the token now. It returns when that is done or failed, or when ctx ends; then it may still be done. Run
// must be running.
func (k *Keeper) Rotate(ctx context.Context) error {
	answer := make(chan error, 1)
	select {
	case k.requests <- answer:
	case <-ctx.Done():
		return fmt.Errorf("wait for the runner's turn: %w", context.Cause(ctx))
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the new token is still being made: %w", context.Cause(ctx))
	}
}

// Run replaces the token whenever it is time, until ctx ends. A rotation that has begun is brought to its end first.
func (k *Keeper) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		k.remember(ctx)
		k.mu.Lock()
		at := k.rotateAt()
		k.mu.Unlock()
		wait := longestSleep
		if !at.IsZero() {
			wait = min(time.Until(at), longestSleep)
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-k.news:
		case answer := <-k.requests:
			answer <- k.rotate(ctx)
		case <-timer.C:
			if !at.IsZero() && !time.Now().Before(at) {
				_ = k.rotate(ctx) // it has logged its error and knows when to try again
			}
		}
	}
}

// remember saves what was learned of the token's life. Failing that does no harm: it is learned again.
func (k *Keeper) remember(ctx context.Context) {
	k.mu.Lock()
	row, unsaved, rotated := k.row(), k.unsaved, k.rotated
	k.unsaved = false
	k.mu.Unlock()
	if !unsaved {
		return
	}
	if !k.o.Automatic && !row.ExpiresAt.IsZero() {
		k.log.WarnContext(ctx, "the token expires and "+DisableFlag+" is on: replace it in time with `switchyard runners rotate` or in the configuration",
			"expires", row.ExpiresAt)
	}
	var err error
	if row.ExpiresAt.IsZero() && !rotated {
		err = k.o.Store.DeleteRunnerToken(ctx, k.o.Runner)
	} else {
		err = k.o.Store.SaveRunnerToken(ctx, k.o.Runner, row)
	}
	if err != nil && ctx.Err() == nil {
		k.log.WarnContext(ctx, "cannot keep when the token was obtained", "error", err)
	}
}

// row is the state as the store has it; mu is held.
func (k *Keeper) row() store.RunnerToken {
	return store.RunnerToken{Token: k.token, Configured: k.digest, ObtainedAt: k.obtained, ExpiresAt: k.expires}
}

// rotate replaces the token. Only Run calls it.
func (k *Keeper) rotate(ctx context.Context) error {
	k.changing <- struct{}{}
	defer func() { <-k.changing }()
	if err := k.replace(ctx); err != nil {
		k.failed(ctx, err)
		return err
	}
	log := k.log
	if expires := k.Status().ExpiresAt; !expires.IsZero() {
		log = log.With("expires", expires)
	}
	log.InfoContext(ctx, "the runner has a new token")
	k.o.Changed()
	return nil
}

// errLost: nobody has the token that GitLab knows.
var errLost = errors.New("GitLab's answer with the new token was lost: the old token is refused and nobody has the new one")

func (k *Keeper) replace(ctx context.Context) error {
	// A reset that was sent must be heard to its end, also while the control plane stops.
	call, cancel := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	defer cancel()
	k.mu.Lock()
	old, doubt := k.token, k.doubt
	k.mu.Unlock()
	if doubt {
		if err := k.o.GitLab.Knows(call, old); codeOf(err) == http.StatusForbidden {
			return errLost
		} else if err != nil {
			return fmt.Errorf("find out whether GitLab has replaced the token: %w", err)
		}
	}
	res, err := k.o.GitLab.ResetToken(call, old)
	k.mu.Lock()
	k.doubt = err != nil && mayHaveHappened(err)
	k.mu.Unlock()
	if err != nil {
		return fmt.Errorf("ask GitLab for a new token: %w", err)
	}
	next := state{token: res.Token, obtained: time.Now(), dice: rand.Float64(), rotated: true, lastRotation: time.Now()}
	if res.TokenExpiresAt != nil {
		next.expires = *res.TokenExpiresAt
	}
	if err := k.save(ctx, store.RunnerToken{Token: next.token, Configured: k.digest, ObtainedAt: next.obtained, ExpiresAt: next.expires}); err != nil {
		return err
	}
	k.mu.Lock()
	k.state = next
	k.mu.Unlock()
	return nil
}

// save keeps a new token, which is not used before that: a crash must not leave one behind that nobody has.
func (k *Keeper) save(ctx context.Context, row store.RunnerToken) error {
	work, cancel := outliving(ctx, stopPatience)
	defer cancel()
	for wait := firstSave; ; wait = min(2*wait, lastSave) {
		err := k.o.Store.SaveRunnerToken(work, k.o.Runner, row)
		if err == nil {
			return nil
		}
		if work.Err() != nil {
			return fmt.Errorf("%w; it could not be saved: %w", errLost, err)
		}
		if wait == firstSave {
			k.log.ErrorContext(ctx, "the new token cannot be saved; it is not used before it is, and the old one is refused", "error", err)
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-work.Done():
			timer.Stop()
		}
	}
}

// outliving returns a context that ends so much later than ctx, or by cancel.
func outliving(ctx context.Context, by time.Duration) (context.Context, context.CancelFunc) {
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		late := time.AfterFunc(by, cancel)
		context.AfterFunc(work, func() { late.Stop() })
	})
	return work, func() {
		stop()
		cancel()
	}
}

// failed says what is wrong and when to try again.
func (k *Keeper) failed(ctx context.Context, err error) {
	lost := errors.Is(err, errLost)
	refused := codeOf(err) == http.StatusForbidden
	k.mu.Lock()
	wait := firstRetry << min(k.failures, 10)
	wait = min(wait, lastRetry)
	wait -= time.Duration(rand.Float64() * float64(wait) / 2)
	if status := new(client.StatusError); errors.As(err, &status) {
		wait = max(wait, status.RetryAfter)
	}
	first := k.failures == 0 || lost
	k.failures++
	k.retryAt = time.Now().Add(wait)
	k.lost = lost
	k.problem = err.Error()
	expires := k.expires
	k.mu.Unlock()
	switch {
	case lost || refused:
		text := fmt.Sprintf("the runner has no token that GitLab knows: make a new one (as an administrator or maintainer: POST /api/v4/runners/%s/reset_authentication_token, or create a new runner), put it into the configuration and restart the control plane", idOf(k.o.ID()))
		k.mu.Lock()
		k.problem += "; " + text
		k.mu.Unlock()
		if first {
			k.log.ErrorContext(ctx, text, "error", err)
		}
	case first:
		k.log.WarnContext(ctx, "the token could not be replaced, this is tried again", "error", err, "expires", expires, "next", wait.Round(time.Second))
	}
}

func idOf(id int64) string {
	if id == 0 {
		return ":id"
	}
	return fmt.Sprint(id)
}

// mayHaveHappened says whether GitLab may have carried out what was answered by err.
func mayHaveHappened(err error) bool {
	if errors.As(err, new(*breaker.OpenError)) {
		return false // not sent
	}
	status := new(client.StatusError)
	if errors.As(err, &status) {
		return status.HTML || status.Code < 400 || status.Code >= 500
	}
	return true
}

// codeOf is the status in an error; 0 if there is none, or if something else than GitLab gave it.
func codeOf(err error) int {
	if status := new(client.StatusError); errors.As(err, &status) && !status.HTML {
		return status.Code
	}
	return 0
}
