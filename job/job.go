//go:build unix

// Package job runs one GitLab job in place: its stages in GitLab's order with GitLab's names, into a trace file that is
// masked and limited already. It runs once; what makes a second run impossible is the folder's fence, which whoever calls
// this package has raised.
//
// gitlab-runner's behaviour is followed where users can see it. What differs on purpose: standard output and standard
// error are one stream in exact order, output is passed on byte for byte (no U+FFFD, no timestamps unless FF_TIMESTAMPS asks
// for them), a script ends with its shell and not with the last daemon that holds its output, and such daemons are
// stopped at the end of the job.
package job

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
	"github.com/switchyard-ci/switchyard/job/git"
	"github.com/switchyard-ci/switchyard/job/masking"
	"github.com/switchyard-ci/switchyard/job/process"
	"github.com/switchyard-ci/switchyard/job/shell"
	"github.com/switchyard-ci/switchyard/job/trace"
	"github.com/switchyard-ci/switchyard/job/variables"
)

// defaultTimeout is a job's timeout if the payload has none.
const defaultTimeout = 2 * time.Hour

// leftoverGrace is the time between SIGTERM and SIGKILL for what is left behind by a job that has ended by itself.
const leftoverGrace = 5 * time.Second

// patience is how long what was killed may take to be gone before the job goes on without it.
const patience = 10 * time.Second

// shortestSecret is the length from which on a password that no variable marks as masked is hidden: hiding a short word would
// hide much else.
const shortestSecret = 8

// Options are what a job runs with.
type Options struct {
	Spec    folder.Spec
	Payload []byte
	// Trace is the trace file, opened for appending and empty.
	Trace io.Writer
	// SpareTrace makes room for some more words when the trace could not be written; nil: there is nothing to spare.
	SpareTrace func() error
	// Checkpoint is told now and then what the CRC-32 of prefix and trace file is up to a length of the file, one call
	// at a time; see trace.Checkpoints. It may be nil. An error says that it need not be called again.
	Checkpoint func(length int64, crc uint32) error
	// SyncTrace is called before Run returns.
	SyncTrace func() error
	// Grown is told the trace file's length, Stage each stage that begins; neither may block.
	Grown func(length int64)
	Stage func(name string)
	// Ask asks the control plane for the URL of a cache archive; it chooses the request's ID. It waits, for a few minutes at
	// most. An error means that nobody answers; why there is no URL is in the answer otherwise.
	Ask func(ctx context.Context, r folder.CacheRequest) (folder.CacheAnswer, error)
	// Group owns the processes of the job; there are none yet.
	Group *process.Group
	// Environment is what the job's processes inherit, in the form of os.Environ.
	Environment []string
	Log         *slog.Logger
}

// Job is one job. Order may be called concurrently with Run and before it.
type Job struct {
	Options
	payload  runnerapi.Job
	vars     *variables.Set
	flags    map[string]bool
	settings settings
	sources  git.Sources
	out      *output
	shell    shell.Shell

	projectDir, tempDir string
	timeout             time.Duration
	startedAt           time.Time
	leftOutTold         bool
	tidy                bool // the temporary files are removed

	ctx  context.Context
	stop context.CancelCauseFunc

	mu         sync.Mutex
	phase      phase
	stopScript context.CancelCauseFunc
	lease      *time.Timer
	leaseTime  time.Duration
	leaseEnd   time.Time
}

type phase int

const (
	preparing phase = iota // a graceful cancel is a cancel of the whole job
	scripting              // a graceful cancel is a cancel of the script
	ending                 // a graceful cancel comes too late
)

// What may stop a job or its script, as causes of contexts.
var (
	errCanceled = &failure{reason: runnerapi.ReasonCanceled, message: "canceled"}
	errEnded    = errors.New("the job has ended")
)

// New makes a job, ready for orders. The lease of the spec begins to run.
func New(o Options) *Job {
	j := &Job{Options: o}
	j.ctx, j.stop = context.WithCancelCause(context.Background())
	if o.Spec.Lease > 0 {
		j.renew(o.Spec.Lease)
	}
	return j
}

// Order does what the control socket asks for.
func (j *Job) Order(o folder.Order) {
	switch o.Kind {
	case folder.OrderCancelKill:
		if end := j.lapsing(); end != nil {
			j.Log.Error("the agent stops the job, whose lease runs out", "lease", end.message)
			j.stop(end)
			return
		}
		j.Log.Info("the job is canceled at once")
		j.stop(errCanceled)
	case folder.OrderCancelGraceful:
		j.mu.Lock()
		defer j.mu.Unlock()
		switch j.phase {
		case preparing:
			j.Log.Info("the job is canceled before its script")
			j.stop(errCanceled)
		case scripting:
			j.Log.Info("the script is canceled")
			j.stopScript(errCanceled)
		case ending:
			j.Log.Info("a cancel came after the script's end")
		}
	case folder.OrderLease:
		j.renew(o.Lease)
	}
}

// Interrupt stops the job because this process is asked to end.
func (j *Job) Interrupt(signal os.Signal) {
	j.Log.Warn("the job is stopped by a signal", "signal", signal)
	j.stop(&failure{reason: runnerapi.ReasonInterrupted, message: fmt.Sprintf("aborted: %v", signal)})
}

func (j *Job) renew(d time.Duration) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.leaseTime, j.leaseEnd = d, time.Now().Add(d)
	if j.lease != nil {
		j.lease.Reset(d)
		return
	}
	j.lease = time.AfterFunc(d, func() {
		j.mu.Lock()
		d := j.leaseTime
		j.mu.Unlock()
		j.Log.Error("the lease has run out", "lease", d)
		j.stop(outOfTouch(d))
	})
}

func outOfTouch(d time.Duration) *failure {
	if d > time.Second {
		d = d.Round(leaseRounding)
	}
	return &failure{
		reason:  runnerapi.ReasonRunnerSystem,
		message: fmt.Sprintf("the runner lost touch with its control plane for longer than %v, so the job was stopped", d),
	}
}

const (
	// leaseMargin is how long before the lease's end as the job counts it a kill is the agent's, which counts to the same
	// moment and may be first. Nobody else's comes then: the lease of an agent that hears of a cancel has most of it left.
	leaseMargin = 2 * time.Second
	// leaseRounding hides that a lease is told a little after it began.
	leaseRounding = 100 * time.Millisecond
)

// lapsing is what a kill that comes now means if it is for the lease's end; nil: it is a cancel.
func (j *Job) lapsing() *failure {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.lease == nil || time.Until(j.leaseEnd) > min(leaseMargin, j.leaseTime/2) {
		return nil
	}
	return outOfTouch(j.leaseTime)
}

// Run runs the job to its end and returns how it ended, with the trace synced. It never fails: what goes wrong is a
// result. It is called once.
func (j *Job) Run() folder.Result {
	j.startedAt = time.Now().UTC()
	result := folder.Result{StartedAt: j.startedAt}
	masker, warnings, err := j.read()
	checkpoints := trace.NewCheckpoints(j.checkpoint)
	var w *trace.Writer
	w = trace.NewWriter(j.Trace, j.Spec.PrefixLength, j.Spec.PrefixCRC32, j.Spec.OutputLimit, func(length int64) {
		j.Grown(length)
		checkpoints.Grown(length, w.CRC32())
	})
	w.LimitReason(j.Spec.OutputLimitReason)
	var end *failure
	out, outErr := newOutput(masker, w)
	if outErr != nil {
		end = asFailure(outErr)
	} else {
		j.out = out
		end = j.execute(warnings, err)
		if err := out.close(); err != nil {
			j.Log.Warn("close the pipe for the job's output", "error", err)
		}
		w.Close()
	}
	j.stop(errEnded)
	j.mu.Lock()
	if j.lease != nil {
		j.lease.Stop()
	}
	j.mu.Unlock()
	if err := w.Err(); err != nil {
		// The job ran to its end, but what it said is not all there: that is no success.
		j.Log.Error("the trace is incomplete", "error", err)
		if j.SpareTrace != nil {
			if err := j.SpareTrace(); err != nil {
				j.Log.Warn("there may be no room to say so", "error", err)
			}
		}
		w.Notice("\n" + red + "ERROR: the rest of the job's log is missing: " + err.Error() + reset + "\n")
		if end == nil {
			end = &failure{reason: runnerapi.ReasonRunnerSystem, message: "the job's log is incomplete: " + err.Error()}
		}
	}
	checkpoints.Close()
	if err := j.SyncTrace(); err != nil {
		j.Log.Error("the trace may be lost", "error", err)
		if end == nil {
			end = &failure{reason: runnerapi.ReasonRunnerSystem, message: "the job's log cannot be kept: " + err.Error()}
		}
	}
	result.State = runnerapi.StateSuccess
	if end != nil {
		result.State = runnerapi.StateFailed
		result.FailureReason = reasonFor(end.reason, j.payload.Features.FailureReasons)
		result.ExitCode = end.exitCode
		if end.reason != "" {
			result.Message = shorten(end.message)
		}
	}
	result.TraceLength, result.TraceCRC32 = w.Length(), w.CRC32()
	result.FinishedAt = time.Now().UTC()
	return result
}

// checkpoint notes what the trace is up to a length.
func (j *Job) checkpoint(length int64, crc uint32) error {
	if j.Checkpoint == nil {
		return errNoCheckpoints
	}
	err := j.Checkpoint(length, crc)
	if err != nil {
		j.Log.Warn("after a loss of power less of the trace can be proven", "error", err)
	}
	return err
}

var errNoCheckpoints = errors.New("nobody takes checkpoints")

// shorten keeps a message within what a result may hold.
func shorten(text string) string {
	const most = 4 << 10
	if len(text) <= most {
		return text
	}
	return strings.ToValidUTF8(text[:most], "") + "..."
}

// read understands payload and spec. Whatever it returns, the masker knows all secrets that could be understood.
func (j *Job) read() (masker *masking.Masker, warnings []string, err error) {
	err = json.Unmarshal(j.Payload, &j.payload)
	p := &j.payload
	var phrases []string
	if len(p.Token) >= shortestSecret { // an ordinary variable holds it too, and GitLab marks that as masked
		phrases = append(phrases, p.Token)
	}
	for _, v := range p.Variables {
		if v.Masked {
			phrases = append(phrases, v.Value)
		}
	}
	for _, c := range p.Credentials {
		if len(c.Password) >= shortestSecret {
			phrases = append(phrases, c.Password)
		}
	}
	prefixes := masking.DefaultTokenPrefixes()
	if err != nil {
		return masking.New(phrases, prefixes), nil, fmt.Errorf("read the job's payload: %w", err)
	}
	j.timeout = time.Duration(p.RunnerInfo.Timeout) * time.Second
	if p.RunnerInfo.Timeout <= 0 {
		j.timeout = defaultTimeout
	}
	j.projectDir = j.Spec.ProjectDir(p)
	j.tempDir = j.projectDir + ".tmp"
	var flagWarnings []string
	j.flags, p.Variables, flagWarnings = resolveFlags(p.Variables, j.Spec.Settings.FeatureFlags)
	if j.Spec.Settings.DebugTraceDisabled {
		p.Variables = slices.DeleteFunc(p.Variables, func(v runnerapi.Variable) bool {
			denied := v.Key == "CI_DEBUG_TRACE" || v.Key == "CI_DEBUG_SERVICES"
			if on, err := strconv.ParseBool(v.Value); denied && (on || err != nil) {
				flagWarnings = append(flagWarnings, v.Key+": usage is disabled on this runner (debug_trace_disabled)")
			}
			return denied
		})
	}
	if err = j.readVariables(); err != nil {
		return masking.New(phrases, prefixes), nil, &failure{reason: runnerapi.ReasonConfiguration, message: err.Error()}
	}
	phrases = append(phrases, j.vars.Masked()...)
	j.settings, warnings = readSettings(j.vars.Value, j.flags, j.timeout)
	warnings = append(flagWarnings, warnings...)
	options, err := git.ReadOptions(j.vars.Value, p.AllowGitFetch, p.GitInfo.Depth, func(w string) { warnings = append(warnings, w) })
	if err != nil {
		err = &failure{reason: runnerapi.ReasonConfiguration, message: err.Error()}
	}
	j.sources = j.gitSources(options)
	phrases = append(phrases, j.sources.Secrets()...)
	if !j.settings.maskAllTokens {
		prefixes = prefixes[:1] // glpat-
	}
	prefixes = append(prefixes, p.Features.TokenMaskPrefixes...)
	j.Payload, p.Variables = nil, nil // vars has them; a long job should not keep them twice
	return masking.New(phrases, prefixes), warnings, err
}

// readVariables makes the job's variables. GIT_CLONE_PATH, which may refer to others of them, moves the project folder, of
// which others of them tell.
func (j *Job) readVariables() error {
	var err error
	if j.vars, err = variables.New(j.before(), j.payload.Variables, j.after()); err != nil {
		return err
	}
	clonePath := j.vars.Value("GIT_CLONE_PATH")
	if clonePath == "" {
		return nil
	}
	if !j.Spec.CustomBuildDir {
		return fmt.Errorf("GIT_CLONE_PATH=%q is not allowed by this runner: remove the variable, or have the administrator set custom_build_dir", clonePath)
	}
	if j.projectDir, err = git.ClonePath(j.Spec.BuildsDir, clonePath); err != nil {
		return err
	}
	j.tempDir = j.projectDir + ".tmp"
	j.vars, err = variables.New(j.before(), j.payload.Variables, j.after())
	return err
}

// before are the variables that the job's own override, after those that override the job's.
func (j *Job) before() []runnerapi.Variable {
	s := &j.Spec
	var list []runnerapi.Variable
	if i := j.payload.Image; i != nil && i.Name != "" {
		list = append(list, runnerapi.Variable{Key: "CI_JOB_IMAGE", Value: i.Name, Public: true})
	}
	list = append(list, runnerapi.Variable{Key: "CI_RUNNER_SHORT_TOKEN", Value: s.Runner.ShortToken, Public: true, Raw: true})
	list = append(list, s.Environment...)
	for _, v := range [][2]string{
		{"CI_BUILDS_DIR", s.BuildsDir},
		{"CI_PROJECT_DIR", j.projectDir},
		{"CI_CONCURRENT_ID", fmt.Sprint(s.ConcurrentID)},
		{"CI_CONCURRENT_PROJECT_ID", fmt.Sprint(s.ConcurrentProjectID)},
		{"CI_SERVER", "yes"},
		{"CI_JOB_STATUS", "running"},
		{"CI_JOB_TIMEOUT", fmt.Sprint(int64(j.timeout / time.Second))},
	} {
		list = append(list, runnerapi.Variable{Key: v[0], Value: v[1], Public: true, Raw: true})
	}
	if s.ServerCA != "" {
		list = append(list, runnerapi.Variable{Key: caVariable, Value: s.ServerCA, Public: true, File: true, Raw: true})
	}
	return list
}

const caVariable = "CI_SERVER_TLS_CA_FILE"

func (j *Job) after() []runnerapi.Variable {
	shared := "CI_SHARED_ENVIRONMENT"
	if disposable(j.Spec.Executor) {
		shared = "CI_DISPOSABLE_ENVIRONMENT"
	}
	var list []runnerapi.Variable
	for _, v := range [][2]string{
		{shared, "true"},
		{"CI_RUNNER_VERSION", j.Spec.Runner.Version},
		{"CI_RUNNER_REVISION", j.Spec.Runner.Revision},
		{"CI_RUNNER_EXECUTABLE_ARCH", runtime.GOOS + "/" + runtime.GOARCH},
		{variables.TempDir, j.tempDir},
	} {
		list = append(list, runnerapi.Variable{Key: v[0], Value: v[1], Public: true, Raw: true})
	}
	return list
}

// containers says whether an executor runs jobs in images.
func containers(executor string) bool {
	switch executor {
	case "docker", "docker-windows", "docker-autoscaler", "kubernetes":
		return true
	}
	return false
}

// disposable says whether an executor's environments are used for one job only.
func disposable(executor string) bool {
	return containers(executor) || executor == "virtualbox" || executor == "parallels"
}

func (j *Job) gitSources(options git.Options) git.Sources {
	g := &j.payload.GitInfo
	sources := git.Sources{
		Options: options, Dir: j.projectDir, Temp: j.tempDir,
		URL: g.RepoURL, Token: j.payload.Token, CloneURL: j.Spec.Settings.CloneURL, ObjectFormat: g.RepoObjectFormat,
		SHA: g.SHA, Ref: g.Ref, Refspecs: g.Refspecs, Depth: g.Depth,
		UserAgent:   j.userAgent(),
		SharedFiles: j.Spec.SharedFiles,
		Environment: j.gitEnvironment(),
		Notice:      func(text string) { j.out.notice(text) },
		Warn:        func(text string) { j.out.warn(text) },
		Say:         func(text string) { j.out.say(text + "\n") },
		Run:         j.runGit,
	}
	if j.Spec.ServerCA != "" {
		sources.CAFile = path.Join(j.tempDir, caVariable)
	}
	return sources
}

// userAgent is how this program introduces itself to servers.
func (j *Job) userAgent() string {
	return fmt.Sprintf("switchyard %s %s/%s", j.Spec.Runner.Version, runtime.GOOS, runtime.GOARCH)
}

// gitEnvironment is the job's variables above what this process inherited. The kernel limits what a program can be given:
// of variables that do not fit, those that git has no use for are left out.
func (j *Job) gitEnvironment() []string {
	const mostEach, mostAll = 64 << 10, 1 << 20
	var env []string
	set := map[string]bool{}
	total := 0
	add := func(key, value string, needed bool) {
		size := len(key) + len(value) + 2
		if set[key] || size > mostEach || total+size > mostAll && !needed {
			return
		}
		total += size
		set[key] = true
		env = append(env, key+"="+value)
	}
	j.vars.Winning(func(key, value string) {
		add(key, value, strings.HasPrefix(key, "GIT_") || strings.HasSuffix(strings.ToLower(key), "_proxy") || key == "CI_JOB_TOKEN")
	})
	for _, kv := range j.Environment {
		key, value, _ := strings.Cut(kv, "=")
		add(key, value, true)
	}
	return env
}
