package dispatch

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/test/bufconn"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

var (
	chaosSeeds = flag.Int("chaos.seeds", 8, "how many seeds the chaos test runs with")
	chaosSeed  = flag.Uint64("chaos.seed", 0, "run the chaos test with this seed only")
)

const (
	chaosPeriod = 5 * time.Second
	chaosStop   = time.Minute
	chaosLost   = 90 * time.Second
	chaosTime   = 10 * time.Minute
)

// Agents are cut off, restarted and lost, repeat and delay what they say; the control plane is stopped, and killed between
// any two writes; GitLab fails and cancels. At any time: at most one attempt at a job is begun, and only when GitLab has it
// as running. When all is well again: every job has one result, its trace is whole, and nobody holds anything.
func TestChaos(t *testing.T) {
	first, n := uint64(1), uint64(*chaosSeeds)
	if *chaosSeed != 0 {
		first, n = *chaosSeed, 1
	}
	for seed := first; seed < first+n; seed++ {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { runChaos(t, seed) })
		})
	}
}

type chaos struct {
	t      *testing.T
	dice   *dice
	gitlab *chaosGitLab
	well   atomic.Bool

	mu     sync.Mutex
	listen *bufconn.Listener
	begins map[int64]ref // by GitLab's job id
}

func (c *chaos) calm() bool { return c.well.Load() }

func (c *chaos) listener() *bufconn.Listener {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.listen
}

// begun is called when an agent begins a job.
func (c *chaos) begun(agent string, r ref, gitlab int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, again := c.begins[gitlab]; again {
		c.t.Errorf("job %d of GitLab is begun twice: %v, and %v on agent %s", gitlab, old, r, agent)
	}
	c.begins[gitlab] = r
	c.gitlab.mu.Lock()
	defer c.gitlab.mu.Unlock()
	if j := c.gitlab.jobs[gitlab-1]; j.status == runnerapi.StatePending {
		c.t.Errorf("a job is begun that GitLab has as pending: %s", j)
	}
}

// mortalStore dies with its control plane: no write succeeds any more, and the last one may or may not have happened.
type mortalStore struct {
	store.Jobs
	dice *dice
	dead atomic.Bool
	last sync.Once
}

var errDead = errors.New("the control plane was killed")

func mortal[T any](s *mortalStore, do func() (T, error)) (T, error) {
	if !s.dead.Load() {
		return do()
	}
	s.last.Do(func() {
		if s.dice.in(2) {
			_, _ = do()
		}
	})
	var none T
	return none, errDead
}

func (s *mortalStore) InsertJob(ctx context.Context, j store.NewJob) (store.Job, error) {
	return mortal(s, func() (store.Job, error) { return s.Jobs.InsertJob(ctx, j) })
}

func (s *mortalStore) Reoffer(ctx context.Context, id, epoch int64, agent string) (int64, error) {
	return mortal(s, func() (int64, error) { return s.Jobs.Reoffer(ctx, id, epoch, agent) })
}

func (s *mortalStore) StartJob(ctx context.Context, id, epoch int64, at time.Time) error {
	_, err := mortal(s, func() (int, error) { return 0, s.Jobs.StartJob(ctx, id, epoch, at) })
	return err
}

func (s *mortalStore) FinishJob(ctx context.Context, id, epoch int64, r store.Result) error {
	_, err := mortal(s, func() (int, error) { return 0, s.Jobs.FinishJob(ctx, id, epoch, r) })
	return err
}

func (s *mortalStore) DeleteJob(ctx context.Context, id int64) error {
	_, err := mortal(s, func() (int, error) { return 0, s.Jobs.DeleteJob(ctx, id) })
	return err
}

// plane is one life of the control plane with its claims.
type plane struct {
	*fleet
	store   *mortalStore
	claims  sync.WaitGroup
	claimer context.CancelFunc
}

func (c *chaos) startPlane(dir string) *plane {
	p := &plane{store: &mortalStore{dice: c.dice}}
	p.fleet = start(c.t, dir, nil, func(cfg *Config) {
		p.store.Jobs = cfg.Store
		cfg.Store = p.store
		cfg.PingPeriod, cfg.StopAfter, cfg.LostAfter = chaosPeriod, chaosStop, chaosLost
		cfg.Runners = []Runner{
			{Name: "any", URL: "http://gitlab", Executor: "shell", OutputLimit: 1 << 20, GitLab: c.gitlab},
			{Name: "few", URL: "http://gitlab", Executor: "shell", OutputLimit: 1 << 20, GitLab: c.gitlab, Limit: 2},
		}
	})
	c.mu.Lock()
	c.listen = p.listener
	c.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	p.claimer = cancel
	for _, runner := range []string{"any", "any", "few"} {
		p.claims.Go(func() { c.claim(ctx, p, runner) })
	}
	return p
}

// claim is a poller: with a slot, and now and then without one, as a watch does.
func (c *chaos) claim(ctx context.Context, p *plane, runner string) {
	for ctx.Err() == nil {
		var r *Reservation
		if !c.dice.in(10) {
			var err error
			if r, err = p.d.Reserve(ctx, runner); err != nil {
				return
			}
		}
		id := c.gitlab.next()
		if id != 0 {
			c.save(ctx, p, runner, r, id)
		} else if r != nil {
			r.Release()
		}
		select {
		case <-ctx.Done():
		case <-time.After(c.dice.wait(time.Second)):
		}
	}
}

func (c *chaos) save(ctx context.Context, p *plane, runner string, r *Reservation, id int64) {
	for {
		err := p.d.Claimed(context.WithoutCancel(ctx), runner, r, Claim{
			Payload: []byte("{}"), Envelope: runnerapi.Envelope{ID: id, Token: "t"}, At: time.Now(),
		})
		if err == nil {
			return
		}
		if p.store.dead.Load() {
			c.gitlab.abandon(id)
			return
		}
		c.t.Errorf("claimed: %v", err)
	}
}

func (p *plane) end(kill bool) {
	p.store.dead.Store(kill)
	p.claimer()
	p.claims.Wait()
	p.stop()
}

func runChaos(t *testing.T, seed uint64) {
	d := &dice{rng: rand.New(rand.NewPCG(seed, 0))}
	c := &chaos{t: t, dice: d, gitlab: &chaosGitLab{dice: d, twoPhase: seed%2 == 0}, begins: make(map[int64]ref)}
	dir := t.TempDir()
	p := c.startPlane(dir)
	ctx, cancel := context.WithCancel(context.Background())
	var agents sync.WaitGroup
	all := make([]*chaosAgent, 0, 4)
	for i := range 4 {
		a := &chaosAgent{c: c, id: string(rune('a' + i)), slots: 1 + i, held: make(map[ref]*chaosHeld)}
		all = append(all, a)
		agents.Go(func() { a.run(ctx) })
	}
	for began := time.Now(); time.Since(began) < chaosTime; {
		switch d.n(12) {
		case 0:
			p.end(d.in(2))
			p = c.startPlane(dir)
		case 1:
			c.gitlab.set(true, d.in(3))
		case 2:
			c.gitlab.set(false, false)
		case 3:
			if n := len(c.gitlab.jobs); n > 0 {
				c.gitlab.cancel(int64(1+d.n(n)), d.in(2))
			}
		default:
			for range d.n(6) {
				c.gitlab.add()
			}
		}
		time.Sleep(d.wait(20 * time.Second))
	}
	c.well.Store(true)
	c.gitlab.set(false, false)
	for began := time.Now(); !c.gitlab.allOver() || len(p.d.Jobs()) > 0; {
		if time.Since(began) > 2*time.Hour {
			for _, j := range c.gitlab.jobs {
				if !j.over() {
					t.Error(j)
				}
			}
			t.Errorf("it does not end: %+v", p.d.Jobs())
			break
		}
		time.Sleep(time.Second)
	}
	time.Sleep(chaosLost + 2*time.Minute) // the last agent is back
	for _, a := range p.d.Agents() {
		require.True(t, a.Online)
		require.Zero(t, a.UsedSlots, a.Name)
	}
	rows, err := p.store.LoadJobs(t.Context())
	require.NoError(t, err)
	require.Empty(t, rows)
	p.end(false)
	cancel()
	agents.Wait()
	for _, a := range all {
		for r, j := range a.held {
			t.Errorf("at %s agent %s still holds %v (%v, acknowledged %v):\n%s", time.Now().Format("15:04:05"), a.id, r, j.state, j.acked, a.about(r))
		}
	}
	c.verify()
}

func (c *chaos) verify() {
	outcomes := map[string]int{}
	for _, j := range c.gitlab.jobs {
		outcomes[j.status]++
		if j.lost {
			continue
		}
		switch j.status {
		case runnerapi.StateCanceled:
			require.LessOrEqual(c.t, j.results, 1, j)
		default:
			require.Equal(c.t, 1, j.results, j)
		}
		if j.status == runnerapi.StateSuccess {
			require.Equal(c.t, fmt.Sprintf("crc32:%08x", crc32.ChecksumIEEE(j.trace)), j.last.Output.Checksum, "%s: %d bytes", j, len(j.trace))
			require.Equal(c.t, int64(len(j.trace)), j.last.Output.Bytesize)
			trace, _, lost := strings.Cut(string(j.trace), "\nWARNING: the rest of this trace is lost: ")
			line, _, _ := strings.Cut(trace, "\n")
			whole := strings.Repeat(line+"\n", strings.Count(trace, "\n")+1)
			require.True(c.t, trace+line+"\n" == whole || lost && strings.HasPrefix(whole, trace), "%s: %.200q", j, trace)
		}
	}
	c.t.Logf("%d jobs, %d begun: %v", len(c.gitlab.jobs), len(c.begins), outcomes)
}
