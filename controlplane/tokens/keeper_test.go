package tokens

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/breaker"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const day = 24 * time.Hour

func TestDue(t *testing.T) {
	obtained := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		life time.Duration
		dice float64
		want time.Duration
	}{
		{life: 100 * time.Hour, want: 75 * time.Hour},
		{life: 100 * time.Hour, dice: 0.5, want: 74 * time.Hour},
		{life: time.Second, want: 750 * time.Millisecond},
	} {
		require.Equal(t, obtained.Add(test.want), due(obtained, obtained.Add(test.life), test.dice))
	}
	require.Zero(t, due(obtained, time.Time{}, 0), "it does not expire")
	require.Zero(t, due(obtained, obtained, 0), "a clock is wrong")
	require.Zero(t, due(obtained, obtained.Add(-time.Hour), 0))
}

// disk is a Store.
type disk struct {
	mu   sync.Mutex
	rows map[string]store.RunnerToken
	fail error
	save int
}

func (d *disk) RunnerToken(_ context.Context, runner string) (store.RunnerToken, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	row, ok := d.rows[runner]
	if !ok {
		return row, fmt.Errorf("row: %w", store.ErrNotFound)
	}
	return row, d.fail
}

func (d *disk) SaveRunnerToken(ctx context.Context, runner string, t store.RunnerToken) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := errors.Join(d.fail, ctx.Err()); err != nil {
		return err
	}
	d.save++
	d.rows[runner] = t
	return nil
}

func (d *disk) DeleteRunnerToken(_ context.Context, runner string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.rows, runner)
	return d.fail
}

func (d *disk) setFail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail = err
}

// row returns what is kept for the one runner.
func (d *disk) row() (row store.RunnerToken, saves int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.rows["r"], d.save
}

// gitlab knows one token.
type gitlab struct {
	mu     sync.Mutex
	token  string
	ttl    time.Duration
	resets int
	before error // instead of a reset
	after  error // instead of its answer
	takes  time.Duration
}

var forbidden = &client.StatusError{Method: "POST", URL: "http://gitlab/api/v4/runners", Code: http.StatusForbidden}

func (g *gitlab) ResetToken(ctx context.Context, token string) (*runnerapi.ResetTokenResponse, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.before != nil {
		return nil, g.before
	}
	if token != g.token {
		return nil, forbidden
	}
	g.resets++
	g.token = fmt.Sprintf("secret-%d", g.resets)
	answer := &runnerapi.ResetTokenResponse{Token: g.token}
	if g.ttl > 0 {
		at := time.Now().Add(g.ttl)
		answer.TokenExpiresAt = &at
	}
	if g.takes > 0 {
		g.mu.Unlock()
		<-time.After(g.takes)
		g.mu.Lock()
	}
	if err := errors.Join(g.after, ctx.Err()); err != nil {
		return nil, err
	}
	return answer, nil
}

func (g *gitlab) Knows(_ context.Context, token string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.before != nil:
		return g.before
	case token != g.token:
		return forbidden
	}
	return nil
}

func (g *gitlab) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.resets
}

func (g *gitlab) set(before, after error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.before, g.after = before, after
}

// logBuffer is read while it is written.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// bench runs a keeper in a bubble.
type bench struct {
	*testing.T
	*Keeper
	disk    *disk
	gitlab  *gitlab
	log     *logBuffer
	changes chan string
	stop    func()
}

func newBench(t *testing.T) *bench {
	return &bench{T: t, disk: &disk{rows: map[string]store.RunnerToken{}}, gitlab: &gitlab{token: "configured", ttl: 100 * day}, log: new(logBuffer)}
}

// start starts a keeper on what is there, as after a restart.
func (b *bench) start(change func(o *Options)) {
	b.Helper()
	b.changes = make(chan string, 100)
	o := Options{
		Runner: "r", Configured: "configured", Automatic: true, Store: b.disk, GitLab: b.gitlab,
		Logger: slog.New(slog.NewTextHandler(b.log, nil)), ID: func() int64 { return 7 },
		Changed: func() { b.changes <- b.Token() },
	}
	if change != nil {
		change(&o)
	}
	var err error
	b.Keeper, err = Open(b.Context(), o)
	require.NoError(b, err)
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b.Keeper.Run(ctx)
	}()
	b.stop = sync.OnceFunc(func() {
		cancel()
		<-ended
	})
	b.Cleanup(b.stop)
}

// verified tells the keeper when its token expires.
func (b *bench) verified(in time.Duration) {
	at := time.Now().Add(in)
	b.Verified(b.Token(), &at)
}

// kept is the token in the store.
func (b *bench) kept() string {
	row, _ := b.disk.row()
	return row.Token
}

func pass(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

func TestRotationAtThreeQuarters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.start(nil)
		b.verified(100 * day)
		pass(72 * day)
		require.Equal(t, "configured", b.Token())
		require.WithinRange(t, b.Status().RotateAt, time.Now().Add(day), time.Now().Add(3*day))
		pass(4 * day)
		require.Equal(t, "secret-1", b.Token())
		require.Equal(t, "secret-1", <-b.changes)
		s := b.Status()
		require.True(t, s.Rotated)
		require.Empty(t, s.Problem)
		row, _ := b.disk.row()
		digest := sha256.Sum256([]byte("configured"))
		require.Equal(t, store.RunnerToken{
			Token: "secret-1", Configured: hex.EncodeToString(digest[:]), ObtainedAt: s.ObtainedAt, ExpiresAt: s.ExpiresAt,
		}, row)
		require.Equal(t, 100*day, row.ExpiresAt.Sub(row.ObtainedAt))
		pass(300 * day)
		require.Equal(t, 5, b.gitlab.count(), "and so on")
		require.NotContains(t, b.log.String(), "secret")
		require.NotContains(t, b.log.String(), "token=configured")
	})
}

func TestRestartsDoNotMoveTheRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		expires := time.Now().Add(100 * day)
		for range 70 { // each start is told again when the token expires
			b.start(nil)
			b.Verified("configured", &expires)
			pass(day)
			b.stop()
		}
		require.Zero(t, b.gitlab.count())
		_, saves := b.disk.row()
		require.Equal(t, 1, saves)
		b.start(nil)
		pass(6 * day)
		require.Equal(t, "secret-1", b.Token())
	})
}

func TestTheConfiguredTokenWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.start(nil)
		require.NoError(t, b.Rotate(t.Context()))
		b.stop()
		b.start(nil)
		require.Equal(t, "secret-1", b.Token(), "the successor of the configured token")
		b.stop()
		b.start(func(o *Options) { o.Configured = "another" })
		require.Equal(t, "another", b.Token())
		require.Empty(t, b.kept())
		require.Contains(t, b.log.String(), "another token than the one that was kept")
		require.False(t, b.Status().Rotated)
		b.stop()
		b.start(nil)
		require.Equal(t, "configured", b.Token(), "that is forgotten")
	})
}

func TestTheStoreCannotBeRead(t *testing.T) {
	b := newBench(t)
	b.disk.rows["r"] = store.RunnerToken{}
	b.disk.fail = errors.New("input/output error")
	_, err := Open(t.Context(), Options{Runner: "r", Configured: "configured", Store: b.disk, GitLab: b.gitlab})
	require.ErrorContains(t, err, `find the token of runner "r": input/output error`)
}

func TestRotationCanBeOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.start(func(o *Options) { o.Automatic = false })
		b.verified(100 * day)
		pass(200 * day)
		require.Equal(t, "configured", b.Token())
		require.Zero(t, b.Status().RotateAt)
		require.Equal(t, 1, strings.Count(b.log.String(), "FF_DISABLE_AUTOMATIC_TOKEN_ROTATION"))
		require.NoError(t, b.Rotate(t.Context()), "but asked for it is done")
		require.Equal(t, "secret-1", b.Token())
	})
}

func TestTokensThatDoNotExpireStay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.start(nil)
		b.Verified("configured", nil)
		b.Verified("not this runner's", new(time.Now().Add(time.Second)))
		pass(1000 * day)
		require.Zero(t, b.gitlab.count())
		require.Empty(t, b.kept())
		// GitLab's administrator changes his mind, twice.
		b.verified(day)
		synctest.Wait()
		require.NotEmpty(t, b.kept())
		b.Verified("configured", nil)
		synctest.Wait()
		require.Empty(t, b.kept())
		pass(10 * day)
		require.Zero(t, b.gitlab.count())
		b.gitlab.ttl = 0
		require.NoError(t, b.Rotate(t.Context()))
		require.Zero(t, b.Status().ExpiresAt)
	})
}

// The order matters: GitLab, store, use.
func TestATokenIsSavedBeforeItIsUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.start(nil)
		b.disk.setFail(store.ErrFull)
		done := make(chan error, 1)
		go func() { done <- b.Rotate(t.Context()) }()
		pass(time.Hour)
		require.Equal(t, "configured", b.Token())
		require.Equal(t, 1, strings.Count(b.log.String(), "cannot be saved"))
		// Whoever is refused with the old token waits for the new one.
		waited := make(chan bool, 1)
		go func() { waited <- b.Superseded(t.Context(), "configured") }()
		impatient, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.False(t, b.Superseded(impatient, "configured"))
		require.Empty(t, waited)
		b.disk.setFail(nil)
		pass(lastSave)
		require.NoError(t, <-done)
		require.True(t, <-waited)
		require.Equal(t, "secret-1", b.Token())
		require.Equal(t, "secret-1", b.kept())
		require.False(t, b.Superseded(t.Context(), "secret-1"))
	})
}

func TestStoppingHearsTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.gitlab.takes = 30 * time.Second
		b.start(nil)
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorContains(t, b.Rotate(short), "still being made")
		b.stop()
		require.Equal(t, "secret-1", b.kept())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		require.ErrorContains(t, b.Rotate(ctx), "wait for the runner's turn", "nobody is there any more")
	})
}

func TestStoppingWithAFullDiskEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.start(nil)
		b.disk.setFail(store.ErrFull)
		done := make(chan error, 1)
		go func() { done <- b.Rotate(t.Context()) }()
		pass(time.Minute)
		began := time.Now()
		b.stop()
		require.Equal(t, stopPatience, time.Since(began))
		err := <-done
		require.ErrorIs(t, err, errLost)
		require.ErrorIs(t, err, store.ErrFull)
		require.Contains(t, b.log.String(), "level=ERROR")
		require.Contains(t, b.log.String(), "/runners/7/reset_authentication_token")
	})
}

func TestFailuresAreTriedAgain(t *testing.T) {
	for name, test := range map[string]struct {
		before error
		level  string
	}{
		"GitLab is down":    {&client.TransportError{Err: errors.New("connection refused")}, "WARN"},
		"not even sent":     {&client.TransportError{Err: &breaker.OpenError{}}, "WARN"},
		"503":               {&client.StatusError{Code: 503, RetryAfter: 2 * time.Minute}, "WARN"},
		"a page for people": {&client.StatusError{Code: 403, HTML: true}, "WARN"},
		"429":               {&client.StatusError{Code: 429}, "WARN"},
		"403":               {forbidden, "ERROR"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newBench(t)
				b.start(nil)
				b.verified(100 * day)
				b.gitlab.set(test.before, nil)
				pass(76 * day)
				require.Equal(t, "configured", b.Token())
				require.Equal(t, 1, strings.Count(b.log.String(), "level="+test.level), b.log.String())
				require.NotEmpty(t, b.Status().Problem)
				require.False(t, b.Status().Lost)
				b.gitlab.set(nil, nil)
				pass(lastRetry)
				require.Equal(t, "secret-1", b.Token())
				require.Empty(t, b.Status().Problem)
			})
		})
	}
}

func TestALostAnswer(t *testing.T) {
	cut := &client.TransportError{Err: errors.New("connection reset")}
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.start(nil)
		b.verified(100 * day)
		b.gitlab.set(nil, cut)
		pass(80 * day)
		require.Equal(t, 1, b.gitlab.count())
		s := b.Status()
		require.True(t, s.Lost)
		require.Contains(t, s.Problem, "nobody has the new one")
		require.Zero(t, s.RotateAt, "there is nothing to try")
		require.Equal(t, 1, strings.Count(b.log.String(), "level=ERROR"))
		require.Contains(t, b.log.String(), "put it into the configuration and restart")
		b.gitlab.set(nil, nil)
		require.ErrorIs(t, b.Rotate(t.Context()), errLost)
		b.stop()
		b.gitlab.token = "new in GitLab"
		b.start(func(o *Options) { o.Configured = "new in GitLab" })
		require.NoError(t, b.Rotate(t.Context()))
	})
	// The request was lost, not its answer: the token is good for all that.
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.start(nil)
		b.gitlab.set(cut, nil)
		require.ErrorIs(t, b.Rotate(t.Context()), cut)
		require.ErrorContains(t, b.Rotate(t.Context()), "find out whether GitLab has replaced the token")
		b.gitlab.set(nil, nil)
		require.NoError(t, b.Rotate(t.Context()))
		require.False(t, b.Status().Lost)
	})
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.start(nil)
		b.gitlab.set(cut, nil)
		require.Error(t, b.Rotate(t.Context()))
		b.Verified("configured", nil) // a poller asked in the meantime
		b.gitlab.set(nil, nil)
		require.NoError(t, b.Rotate(t.Context()))
	})
}
