//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/internal/buildinfo"
	"github.com/switchyard-ci/switchyard/job"
	"github.com/switchyard-ci/switchyard/job/control"
	"github.com/switchyard-ci/switchyard/job/folder"
	"github.com/switchyard-ci/switchyard/job/process"
)

func run(args []string) int {
	// One thing happens at a time here; more processors only make threads wake each other.
	runtime.GOMAXPROCS(1)
	operand, _, err := parse(args, 1)
	if err != nil {
		return misused("run: " + err.Error())
	}
	f, err := folder.Open(operand[0])
	if err != nil {
		return failed(err)
	}
	spec, err := f.Spec()
	if err != nil {
		return failed(err)
	}
	// The lock on the start is let go once the control socket listens: see folder.LockStart.
	start, err := f.LockStart()
	if err != nil {
		return failed(err)
	}
	lock, ok, err := f.TryLock()
	switch {
	case err != nil:
		return failed(err)
	case !ok:
		_ = start.Close()
		return wait(f)
	}
	defer func() { _ = lock.Close() }()
	switch _, err := f.Started(); {
	case err == nil:
		fmt.Fprintln(os.Stderr, "switchyard-job: the job was started before and does not start again")
		return exitStartedBefore
	case !errors.Is(err, folder.ErrNotStarted):
		return failed(err)
	}
	r, err := prepare(f, spec)
	if err != nil {
		return failed(err)
	}
	// The fence. From here on this is the job's only run, whatever happens; nothing of it has happened yet.
	if err := f.WriteStarted(folder.Started{PID: os.Getpid(), BootID: bootID(), At: time.Now().UTC(), Checkpoints: true}); err != nil {
		defer r.control.Close()
		if errors.Is(err, fs.ErrExist) {
			return exitStartedBefore
		}
		return r.giveUp(err, spec.PrefixCRC32)
	}
	_ = start.Close()
	announce("ready")
	if err := letGo(r.logFile); err != nil {
		r.log.Warn("the standard streams are kept", "error", err)
	}
	return r.run()
}

// wait waits for the end of the process that runs the job.
func wait(f *folder.Folder) int {
	announce("attached")
	lock, err := f.WaitLock()
	if err != nil {
		return failed(err)
	}
	defer func() { _ = lock.Close() }()
	if _, err := f.Result(); err != nil {
		fmt.Fprintln(os.Stderr, "switchyard-job: the process that ran the job is gone:", err)
		return exitAttachedNoResult
	}
	return exitAttached
}

func announce(what string) {
	// Nobody may read it any more.
	_, _ = os.Stdout.WriteString("switchyard-job " + buildinfo.Version() + " " + what + "\n")
}

// runner is a job that can be followed and is not fenced yet.
type runner struct {
	folder  *folder.Folder
	job     *job.Job
	group   *process.Group
	control *control.Server
	trace   *os.File
	// checkpoints are those of trace.
	checkpoints *folder.Checkpoints
	logFile     *os.File
	log         *slog.Logger
}

// prepare does everything that can fail and that leaves no trace of the job.
func prepare(f *folder.Folder, spec folder.Spec) (*runner, error) {
	// Caught and not ignored: what is ignored would be ignored by all programs of the job.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGPIPE, syscall.SIGTERM, syscall.SIGINT)
	// In its own session, or it may go with the one who started it. The leader of a group has one already.
	if _, err := unix.Setsid(); err != nil && !errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("begin a session: %w", err)
	}
	payload, err := f.Payload()
	if err != nil {
		return nil, err
	}
	r := &runner{folder: f}
	if r.logFile, err = f.OpenForJob(folder.LogFile); err != nil {
		return nil, err
	}
	r.log = slog.New(slog.NewTextHandler(r.logFile, nil))
	if r.trace, err = f.OpenForJob(folder.TraceFile); err != nil {
		return nil, err
	}
	if err := errors.Join(f.ReserveResult(), f.ReserveTrace()); err != nil {
		return nil, err
	}
	if r.group, err = process.NewGroup(); err != nil {
		return nil, err
	}
	r.checkpoints = f.Checkpoints(spec)
	r.job = job.New(job.Options{
		Spec: spec, Payload: payload, Trace: r.trace, Checkpoint: r.checkpoints.Append, SpareTrace: f.ReleaseTrace, SyncTrace: r.trace.Sync,
		Grown: func(length int64) { r.control.Trace(length) },
		Stage: func(name string) { r.control.Stage(name) },
		Ask: func(ctx context.Context, q folder.CacheRequest) (folder.CacheAnswer, error) {
			return r.control.Ask(ctx, q)
		},
		Group: r.group, Environment: environment(), Log: r.log,
	})
	if r.control, err = control.Listen(f, r.job.Order, r.log); err != nil {
		return nil, err
	}
	go func() {
		for s := range signals {
			if s != syscall.SIGHUP && s != syscall.SIGPIPE {
				r.job.Interrupt(s)
			}
		}
	}()
	return r, nil
}

// giveUp is for a fence that may stand or not: the job can neither run nor be tried again, so this is its result.
func (r *runner) giveUp(why error, prefixCRC uint32) int {
	now := time.Now().UTC()
	err := r.folder.WriteResult(folder.Result{
		State: runnerapi.StateFailed, FailureReason: runnerapi.ReasonRunnerSystem, Message: why.Error(),
		TraceCRC32: prefixCRC, StartedAt: now, FinishedAt: now,
	})
	fmt.Fprintln(os.Stderr, "switchyard-job:", errors.Join(why, err))
	if err != nil {
		return exitNoResult
	}
	r.control.Result()
	return exitOK
}

func (r *runner) run() int {
	result := r.job.Run()
	if err := r.checkpoints.Close(); err != nil {
		r.log.Warn("close the trace's checkpoints", "error", err)
	}
	err := r.folder.WriteResult(result)
	if err != nil {
		r.log.Error("how the job ended could not be written down", "error", err, "state", result.State, "reason", result.FailureReason)
	} else {
		r.control.Result()
	}
	r.control.Close()
	if err != nil {
		return exitNoResult
	}
	return exitOK
}

// letGo points the standard streams away from whoever started this process: input to nothing, output to the log, where a
// crash of this program leaves its traces.
func letGo(log *os.File) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = null.Close() }()
	for fd, file := range []*os.File{null, log, log} {
		if err := unix.Dup2(int(file.Fd()), fd); err != nil {
			return err
		}
	}
	return nil
}

// environment is what the job's processes inherit: this process's environment without what would point git to another
// repository, as it does when all this was started from a git hook.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(kv string) bool {
		key, _, _ := strings.Cut(kv, "=")
		switch key {
		case "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES",
			"GIT_COMMON_DIR", "GIT_PREFIX", "GIT_NAMESPACE", "GIT_SHALLOW_FILE", "GIT_CONFIG", "GIT_CONFIG_PARAMETERS",
			"GIT_CEILING_DIRECTORIES", "GIT_QUARANTINE_PATH":
			return true
		}
		return false
	})
}

// bootID tells this run of the kernel from others; empty where there is no such thing.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
