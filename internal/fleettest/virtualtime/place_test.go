package virtualtime

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/attach"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// place runs jobs that do nothing until they are stopped: by an order, by their own limit as switchyard-job has it, or, if
// they are deaf, by being killed.
type place struct {
	grace time.Duration
	deaf  bool          // only being killed ends a job
	slow  time.Duration // how long a job takes to stop

	mu   sync.Mutex
	jobs map[int64]*process // by GitLab's id
}

// process is a job that runs.
type process struct {
	told    time.Time // when it was told to stop first, or its own limit was over
	stopped time.Time // zero: it runs
	ended   chan struct{}
	limit   *time.Timer
	once    sync.Once
	mu      *sync.Mutex // the place's
}

// told and stopped times of a job; zero: not yet.
func (x *place) times(job int64) (told, stopped time.Time) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if p := x.jobs[job]; p != nil {
		return p.told, p.stopped
	}
	return time.Time{}, time.Time{}
}

// runs says whether the job was begun.
func (x *place) runs(job int64) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.jobs[job] != nil
}

func (x *place) Name() string { return "shell" }

func (x *place) Features() executors.Features {
	return executors.Features{Runner: runnerapi.Features{Variables: true}, Shell: "none", SurvivesAgent: true}
}

func (x *place) Check(context.Context) error { return nil }

func (x *place) Prepare(_ context.Context, spec executors.Spec, _ io.Writer) (executors.Environment, error) {
	return &environment{x: x, job: spec.Job.ID, done: make(chan struct{})}, nil
}

func (x *place) Recover(context.Context, executors.Spec) (executors.Environment, error) {
	return nil, executors.ErrNotFound
}

func (x *place) Sweep(context.Context, func(string) bool) error { return nil }

type environment struct {
	x    *place
	job  int64
	done chan struct{}
}

func (v *environment) Job() executors.Place {
	return executors.Place{Folder: "/job", Binary: "switchyard-job", BuildsDir: "/b", CacheDir: "/c", KillGrace: v.x.grace}
}

func (v *environment) LocalFolder() (string, bool) { return "", false }

func (v *environment) Done() <-chan struct{} { return v.done }

func (v *environment) Err() error { return nil }

// Exec is launch: nobody attaches, because the stream never breaks.
func (v *environment) Exec(ctx context.Context, c executors.Command) (int, error) {
	spec, _, err := attach.ReadHeader(c.Stdin)
	if err != nil {
		return 1, nil //nolint:nilerr // the command has failed, not its being run
	}
	p := &process{ended: make(chan struct{}), mu: &v.x.mu}
	v.x.mu.Lock()
	v.x.jobs[v.job] = p
	v.x.mu.Unlock()
	if spec.Lease > 0 {
		p.renew(v.x, spec.Lease)
	}
	offset, err := strconv.ParseInt(c.Argv[4], 10, 64)
	if err != nil {
		return 1, err
	}
	greeting, err := json.Marshal(attach.Greeting{
		Version: attach.Version, Job: spec.Job, Epoch: spec.Epoch, Offset: offset, Started: &folder.Started{Version: folder.Version, At: time.Now()},
	})
	if err != nil {
		return 1, err
	}
	if err := frame(c.Stdout, attach.Hello, greeting); err != nil {
		return 1, nil //nolint:nilerr // nobody listens
	}
	go v.obey(p, c.Stdin)
	select {
	case <-p.ended:
		_ = frame(c.Stdout, attach.Gone, nil)
		return 0, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func frame(w io.Writer, kind attach.Kind, content []byte) error {
	b := binary.BigEndian.AppendUint32([]byte{byte(kind)}, uint32(len(content))) //nolint:gosec // short
	_, err := w.Write(append(b, content...))
	return err
}

// obey takes orders until its input ends.
func (v *environment) obey(p *process, in io.Reader) {
	for lines := bufio.NewScanner(in); lines.Scan(); {
		order, err := folder.ParseOrder([]byte(strings.TrimSpace(lines.Text())))
		if err != nil {
			continue
		}
		switch order.Kind {
		case folder.OrderLease:
			p.renew(v.x, order.Lease)
		case folder.OrderCancelKill:
			p.stop(v.x)
		}
	}
}

// renew sets the job's own limit.
func (p *process) renew(x *place, d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.limit != nil {
		p.limit.Stop()
	}
	p.limit = time.AfterFunc(d, func() { p.stop(x) })
}

// stop ends the job in its own time.
func (p *process) stop(x *place) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.told.IsZero() {
		return
	}
	p.told = time.Now()
	if !x.deaf {
		time.AfterFunc(x.slow, p.end)
	}
}

func (p *process) end() {
	p.once.Do(func() {
		p.mu.Lock()
		p.stopped = time.Now()
		if p.limit != nil {
			p.limit.Stop()
		}
		p.mu.Unlock()
		close(p.ended)
	})
}

func (v *environment) Kill(context.Context) error {
	v.x.mu.Lock()
	p := v.x.jobs[v.job]
	v.x.mu.Unlock()
	if p != nil {
		p.end()
	}
	return nil
}

func (v *environment) Destroy(ctx context.Context) error { return v.Kill(ctx) }
