//go:build unix

package conformance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/attach"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// place is where a case's jobs run. It does what the agent does, without its care.
type place struct {
	Harness
	t      *testing.T
	last   int
	adjust func(*folder.Spec) // has the last word about a job; may be nil
}

// running is a job in an environment.
type running struct {
	t      *testing.T
	place  *place
	name   string
	spec   executors.Spec
	env    executors.Environment
	folder *folder.Folder
	trace  *folder.Trace
	prefix int64
	mirror *attach.Mirror // if the job folder is elsewhere
	stream *stream        // the last one; see stream.go

	drop  context.CancelFunc // ends the wait for the process
	ready chan struct{}
	ended chan exit
}

type exit struct {
	code int
	err  error
}

// option changes a job before it starts.
type option func(*runnerapi.Job, *folder.Spec)

func script(commands ...string) *runnerapi.Job {
	return &runnerapi.Job{
		ID: 1, Token: "job-token", AllowGitFetch: true,
		JobInfo:    runnerapi.JobInfo{ID: 1, Name: "job", Stage: "test", ProjectID: 1, ProjectName: "project", ProjectFullPath: "group/project"},
		GitInfo:    runnerapi.GitInfo{RepoURL: "http://127.0.0.1:1/group/project.git", Ref: "main", RefType: "branch", SHA: strings.Repeat("0", 40)},
		RunnerInfo: runnerapi.RunnerInfo{Timeout: 600},
		Variables:  []runnerapi.Variable{{Key: "GIT_STRATEGY", Value: "none", Public: true}},
		Steps:      []runnerapi.Step{{Name: "script", Script: commands, When: "on_success"}},
		Features:   runnerapi.JobFeatures{FailureReasons: []runnerapi.FailureReason{runnerapi.ReasonCanceled}},
	}
}

func with(variables ...runnerapi.Variable) option {
	return func(j *runnerapi.Job, _ *folder.Spec) { j.Variables = append(j.Variables, variables...) }
}

func after(commands ...string) option {
	return func(j *runnerapi.Job, _ *folder.Spec) {
		j.Steps = append(j.Steps, runnerapi.Step{Name: "after_script", Script: commands, When: "always"})
	}
}

// prepare makes an environment and a complete job folder.
func (p *place) prepare(job *runnerapi.Job, options ...option) *running {
	p.t.Helper()
	p.last++
	spec := folder.Spec{
		Job: int64(p.last), Epoch: 1, OutputLimit: 64 << 20, Executor: p.Executor.Name(),
		Runner:       folder.Runner{ID: 1, Name: "runner", ShortToken: "abcdefghi", SystemID: "s_0123456789ab"},
		ConcurrentID: p.last - 1, ConcurrentProjectID: p.last - 1, KillGrace: 2 * time.Second,
	}
	for _, o := range options {
		o(job, &spec)
	}
	payload, err := json.Marshal(job)
	require.NoError(p.t, err)

	r := &running{t: p.t, place: p, name: "sy-test-" + strconv.Itoa(p.last) + "-1", ready: make(chan struct{}), ended: make(chan exit, 1)}
	parent := filepath.Join(p.Jobs, r.name)
	r.spec = executors.Spec{
		Name: r.name, Folder: filepath.Join(parent, "job"), Job: job, JobBinary: p.JobBinary,
		Runner: spec.Runner, ConcurrentID: spec.ConcurrentID, ConcurrentProjectID: spec.ConcurrentProjectID,
		Timeout:   time.Duration(job.RunnerInfo.Timeout) * time.Second,
		ServerURL: spec.ServerURL, ServerCA: spec.ServerCA, Settings: spec.Settings, Environment: spec.Environment,
	}
	require.NoError(p.t, mkdir(parent))
	r.folder, err = folder.Make(r.spec.Folder)
	require.NoError(p.t, err)
	prefix, err := r.folder.OpenPrefix()
	require.NoError(p.t, err)
	var said bytes.Buffer
	r.env, err = p.Executor.Prepare(context.Background(), r.spec, io.MultiWriter(prefix, &said))
	require.NoError(p.t, err)
	require.NoError(p.t, prefix.Close())
	spec.PrefixLength, spec.PrefixCRC32 = int64(said.Len()), crc32.ChecksumIEEE(said.Bytes())
	r.prefix = spec.PrefixLength
	grace := spec.KillGrace
	r.env.Job().Complete(&spec)
	spec.KillGrace = grace
	if p.adjust != nil {
		p.adjust(&spec)
	}
	require.NoError(p.t, r.folder.WritePayload(payload))
	require.NoError(p.t, r.folder.WriteSpec(spec))
	if r.here() {
		path, _ := r.env.LocalFolder()
		require.Equal(p.t, r.spec.Folder, path)
	} else {
		require.NotEqual(p.t, r.spec.Folder, r.env.Job().Folder)
		r.mirror, err = attach.OpenMirror(r.folder)
		require.NoError(p.t, err)
	}
	r.trace, err = r.folder.OpenTrace()
	require.NoError(p.t, err)
	p.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		require.NoError(p.t, r.env.Destroy(ctx))
		if r.drop != nil {
			r.drop()
			<-r.ended
		}
		require.NoError(p.t, r.trace.Close())
		require.NoError(p.t, r.folder.Close())
		if r.mirror != nil {
			require.NoError(p.t, r.mirror.Close())
		}
	})
	return r
}

// start runs a job.
func (p *place) start(job *runnerapi.Job, options ...option) *running {
	p.t.Helper()
	r := p.prepare(job, options...)
	r.exec()
	return r
}

// finish runs a job to its end.
func (p *place) finish(job *runnerapi.Job, options ...option) (result folder.Result, trace string) {
	p.t.Helper()
	r := p.start(job, options...)
	r.wait()
	return r.result(), r.text()
}

// here says whether the job folder is on this host.
func (r *running) here() bool {
	_, ok := r.env.LocalFolder()
	return ok
}

// exec starts switchyard-job.
func (r *running) exec() {
	if !r.here() {
		r.open("launch")
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	r.drop = cancel
	place := r.env.Job()
	stdout := &firstLine{seen: r.ready}
	go func() {
		code, err := r.env.Exec(ctx, executors.Command{Argv: []string{place.Binary, "run", place.Folder}, Stdout: stdout})
		r.ended <- exit{code, err}
	}()
}

// wait waits for the end of switchyard-job.
func (r *running) wait() exit {
	r.t.Helper()
	select {
	case e := <-r.ended:
		r.ended <- e
		return e
	case <-time.After(patience):
		r.t.Fatalf("the job does not end; its trace is %q", r.text())
		return exit{}
	}
}

// awaitReady waits until the job can be followed.
func (r *running) awaitReady() {
	r.t.Helper()
	select {
	case <-r.ready:
	case e := <-r.ended:
		r.t.Fatalf("the job ended before it was ready: %+v", e)
	case <-time.After(patience):
		r.t.Fatal("the job does not get ready")
	}
}

// follow connects to the job.
func (r *running) follow() *following {
	r.t.Helper()
	if !r.here() {
		return &following{stream: r.stream}
	}
	f, err := r.folder.Follow(r.t.Context())
	require.NoError(r.t, err)
	r.t.Cleanup(func() { _ = f.Close() })
	return &following{Follower: f}
}

// await waits until the trace contains text.
func (r *running) await(text string) {
	r.t.Helper()
	f := r.follow()
	defer f.close()
	limit := time.AfterFunc(patience, f.close)
	defer limit.Stop()
	for {
		news := f.news()
		if strings.Contains(r.text(), text) {
			return
		}
		if err := f.next(news); err != nil {
			if strings.Contains(r.text(), text) {
				return
			}
			r.t.Fatalf("%q does not appear: %v; the trace is %q", text, err, r.text())
		}
	}
}

// result returns the job's result, whose trace must be all there and have the right checksum.
func (r *running) result() folder.Result {
	r.t.Helper()
	result, err := r.folder.Result()
	require.NoError(r.t, err, "the trace is %q", r.text())
	text := r.text()
	require.EqualValues(r.t, len(text), r.prefix+result.TraceLength)
	require.Equal(r.t, crc32.ChecksumIEEE([]byte(text)), result.TraceCRC32)
	return result
}

// text is the trace, as far as it has come.
func (r *running) text() string {
	r.t.Helper()
	size, err := r.trace.Size()
	require.NoError(r.t, err)
	b := make([]byte, size)
	n, err := r.trace.ReadAt(b, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		require.NoError(r.t, err)
	}
	return string(b[:n])
}

// gone checks that no process is left whose command line contains text.
func (p *place) gone(text string) {
	p.t.Helper()
	require.Zero(p.t, p.Processes(p.t, text), "processes with %q are left", text)
}

// awaitProcesses waits until there are n processes whose command line contains text.
func (p *place) awaitProcesses(text string, n int) {
	p.t.Helper()
	require.Eventually(p.t, func() bool { return p.Processes(p.t, text) >= n }, patience, 5*time.Millisecond, "%q", text)
}

// naps returns a command line that sleeps and that no other test has.
func naps(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("sleep 1%09d", time.Now().UnixNano()%1e9)
}

// firstLine closes seen at the first line break.
type firstLine struct {
	once sync.Once
	seen chan struct{}
}

func (f *firstLine) Write(b []byte) (int, error) {
	if bytes.IndexByte(b, '\n') >= 0 {
		f.once.Do(func() { close(f.seen) })
	}
	return len(b), nil
}
