package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/switchyard-ci/switchyard/agent/uplink"
	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

const (
	defaultOutputLimit = 4 << 20
	defaultTimeout     = 2 * time.Hour
	// endPatience is how long a process that has written its result may take to end.
	endPatience = 10 * time.Second
)

// work is what a job's goroutine has open.
type work struct {
	*Job
	leave  context.Context
	folder *folder.Folder
	trace  *folder.Trace
	env    executors.Environment

	recovered    bool                      // from an earlier process of the agent
	written      bool                      // the intent is on the disk
	intent       Intent                    // with what Launch added
	supported    []runnerapi.FailureReason // by the job's GitLab, as far as is known
	prefixLength int64
	powerless    bool // the host was restarted while the job ran, and lost what it had of the trace or a part of that
	settings     Settings
	sought       bool        // the environment of a recovered job was looked for
	killed       atomic.Bool // the job's processes were killed: it is not started any more
}

// run is a job's goroutine: body brings the job to its result, the rest clears up.
func (w *work) run(body func()) {
	defer w.discard(nil)
	defer w.close()
	body()
	if w.leave.Err() != nil {
		return
	}
	w.destroy()
	if w.leave.Err() != nil {
		return
	}
	w.emit(w.leave, Freed)
	if w.folder != nil { // the trace has its own handle
		_ = w.folder.Close()
		w.folder = nil
	}
	<-w.life.Done()
	if w.leave.Err() != nil {
		return
	}
	w.config.Traces.Remove(w.Intent.Ref())
	w.close()
	if err := remove(w.dir); err != nil {
		w.log.Error("cannot remove what is left of a job", "folder", w.dir, "err", err)
	}
	w.emit(w.leave, Gone)
}

func (w *work) close() {
	if w.trace != nil {
		_ = w.trace.Close()
		w.trace = nil
	}
	if w.folder != nil {
		_ = w.folder.Close()
		w.folder = nil
	}
}

// destroy removes the environment. It repeats that for as long as it takes: until then the slot is not free.
func (w *work) destroy() {
	if w.recovered && !w.find(w.leave) || w.env == nil {
		return
	}
	backoff := uplink.Backoff{First: time.Second, Most: time.Minute}
	for told := false; w.leave.Err() == nil; told = true {
		err := w.env.Destroy(w.leave)
		if err == nil {
			return
		}
		if !told {
			w.log.Error("cannot destroy the job's environment; it is tried again", "err", err)
		}
		select {
		case <-time.After(backoff.Next()):
		case <-w.leave.Done():
		}
	}
}

// remove makes a folder disappear in one step, then deletes what was in it.
func remove(dir string) error {
	trash := filepath.Join(filepath.Dir(dir), trashPrefix+filepath.Base(dir))
	err := os.Rename(dir, trash)
	if errors.Is(err, os.ErrExist) { // of an earlier removal that was not finished
		if err := os.RemoveAll(trash); err != nil {
			return fmt.Errorf("remove %s: %w", trash, err)
		}
		err = os.Rename(dir, trash)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	if err := os.RemoveAll(trash); err != nil {
		return fmt.Errorf("remove %s: %w", trash, err)
	}
	return nil
}

// reserve writes down that the job is held. What keeps it from that, if it lasts, fails the job in open.
func (w *work) reserve() {
	if err := w.writeDown(w.Intent); err != nil {
		w.log.Error("cannot write down an accepted job", "err", err)
	}
	w.emit(w.life, Held)
}

// writeDown makes the job's folder on its first call, and writes the intent.
func (w *work) writeDown(i Intent) error {
	if !w.written {
		err := w.mkdir(w.dir)
		if errors.Is(err, os.ErrExist) { // what bears the name is of no use to anyone
			if err := remove(w.dir); err != nil {
				return err
			}
			err = w.mkdir(w.dir)
		}
		if err != nil {
			return err
		}
	}
	if err := i.write(w.dir); err != nil {
		return err
	}
	w.written = true
	return nil
}

// fresh brings a job from the accepted offer to its result.
func (w *work) fresh() {
	fetched, fetchErr := w.fetch()
	if !w.awaitLaunch() {
		return
	}
	payload := fetched.Payload
	w.settings = fetched.Settings
	o := w.current()
	w.intent = w.Intent
	w.intent.ConcurrentID, w.intent.ConcurrentProjectID = o.concurrentID, o.concurrentProjectID
	p, err := w.open()
	if err != nil {
		w.failWithoutFolder(fmt.Sprintf("the agent cannot keep the job: %v", err))
		return
	}
	var job runnerapi.Job
	if err = fetchErr; err != nil && w.preparing.Err() != nil {
		err = context.Cause(w.preparing)
	}
	if err == nil {
		if err = json.Unmarshal(payload, &job); err != nil {
			err = fmt.Errorf("read the job's payload: %w", err)
		}
	}
	w.supported = job.Features.FailureReasons
	version, revision := versions()
	p.begin(w.Intent, version, revision, job.Features.TraceSections)
	if err == nil {
		err = w.prepare(p, &job)
	}
	if err == nil {
		err = w.writeSpec(p, payload)
	}
	if closeErr := p.close(); err == nil && closeErr != nil {
		err = fmt.Errorf("write the trace: %w", closeErr)
	}
	if err != nil {
		w.failEarly(err)
		return
	}
	w.start()
}

// fetch gets the payload, if possible before the job is launched. Until then a refusal is not final: the request may have
// overtaken the acceptance.
func (w *work) fetch() (Fetched, error) {
	backoff := uplink.Backoff{First: 20 * time.Millisecond, Most: 5 * time.Second}
	for {
		launched := w.current().launched
		fetched, err := w.config.Fetch(w.preparing, w.Intent.Ref())
		if err == nil || launched || w.preparing.Err() != nil {
			return fetched, err
		}
		select {
		case <-w.news:
		case <-time.After(backoff.Next()):
		case <-w.life.Done():
		}
	}
}

// awaitLaunch returns false if the job's life ends before it is launched.
func (j *Job) awaitLaunch() bool {
	for !j.current().launched {
		select {
		case <-j.news:
		case <-j.life.Done():
			return false
		}
	}
	return j.life.Err() == nil
}

// open makes the job's folders and begins its trace.
func (w *work) open() (*prefix, error) {
	err := w.writeDown(w.intent)
	if err != nil {
		return nil, err
	}
	// Made here, because Make would sync the name: after a crash of the machine nothing of this is needed.
	path := filepath.Join(w.dir, folderName)
	if err := w.mkdir(path); err != nil {
		return nil, err
	}
	if w.folder, err = folder.Make(path); err != nil {
		return nil, err
	}
	if w.trace, err = w.folder.OpenTrace(); err != nil {
		return nil, err
	}
	file, err := w.folder.OpenPrefix()
	if err != nil {
		return nil, err
	}
	limit, _ := w.outputLimit()
	p := &prefix{file: file, limit: limit, grown: w.grown}
	if w.recovered {
		if err := p.takeUp(w.trace); err != nil {
			return nil, errors.Join(err, file.Close())
		}
	}
	w.config.Traces.Add(w.Intent.Ref(), w.trace)
	return p, nil
}

// mkdir makes one of the job's folders. Those of a recovered job may exist.
func (w *work) mkdir(path string) error {
	err := os.Mkdir(path, 0o700)
	if w.recovered && errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("make the job's folder: %w", err)
	}
	return nil
}

// outputLimit is the greatest length of the trace; reason is for users, if the limit is not the runner's.
func (j *Job) outputLimit() (limit int64, reason string) {
	limit = j.Intent.OutputLimit
	if limit <= 0 {
		limit = defaultOutputLimit
	}
	if share := j.config.TraceShare; share > 0 && share < limit {
		return share, fmt.Sprintf("That is the share of one slot in this agent's spool.max_size; the runner's output_limit is %d bytes.", limit)
	}
	return limit, ""
}

// spec describes the job's environment; job is nil for Recover.
func (w *work) spec(job *runnerapi.Job) executors.Spec {
	s := executors.Spec{
		Name: Name(w.config.Fleet, w.Intent.Ref()), Folder: filepath.Join(w.dir, folderName), Job: job, JobBinary: w.config.JobBinary,
		Runner: w.runner(), ConcurrentID: w.intent.ConcurrentID, ConcurrentProjectID: w.intent.ConcurrentProjectID,
		Timeout: w.intent.Timeout, ServerURL: w.settings.ServerURL, ServerCA: w.settings.ServerCA, Settings: w.settings.Settings,
		Environment: w.settings.Environment,
	}
	if job != nil && job.RunnerInfo.Timeout > 0 {
		s.Timeout = time.Duration(job.RunnerInfo.Timeout) * time.Second
	}
	if s.Timeout <= 0 {
		s.Timeout = defaultTimeout
	}
	return s
}

// prepare has the executor make the environment, within the time limit of the runner and the job.
func (w *work) prepare(p *prefix, job *runnerapi.Job) error {
	x := w.config.Executors[w.Intent.Executor]
	if x == nil {
		return fmt.Errorf("this agent has no executor %q", w.Intent.Executor)
	}
	ctx, cancel := w.settings.prepareLimit(w.preparing, job)
	defer cancel()
	env, err := x.Prepare(ctx, w.spec(job), p)
	if err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return fmt.Errorf("prepare environment: %w", err)
	}
	w.env = env
	return context.Cause(w.preparing)
}

// writeSpec completes the job folder: from here on the job can be run.
func (w *work) writeSpec(p *prefix, payload []byte) error {
	if err := p.close(); err != nil {
		return fmt.Errorf("write the trace: %w", err)
	}
	i := w.intent
	limit, reason := w.outputLimit()
	spec := folder.Spec{
		Job: i.Job, Epoch: i.Epoch, PrefixLength: p.length, PrefixCRC32: p.crc, OutputLimit: limit, OutputLimitReason: reason,
		Executor: i.Executor, Runner: w.runner(),
		ConcurrentID: i.ConcurrentID, ConcurrentProjectID: i.ConcurrentProjectID,
	}
	w.settings.complete(&spec)
	w.env.Job().Complete(&spec)
	if lease := w.current().lease; !lease.IsZero() {
		spec.Lease = max(time.Until(lease), time.Millisecond)
	}
	w.prefixLength = p.length
	if err := w.folder.WritePayload(payload); err != nil {
		return err
	}
	return w.folder.WriteSpec(spec)
}

// runner is the job's runner as its environment is told.
func (w *work) runner() folder.Runner {
	version, revision := versions()
	r := w.Intent.Runner
	return folder.Runner{
		ID: r.ID, Name: r.Name, ShortToken: r.ShortToken, SystemID: r.SystemID, Version: version, Revision: revision,
	}
}

// kill kills all processes of the job. If that fails it returns a channel that says when to try again.
func (w *work) kill(why string) (again <-chan time.Time) {
	if w.env == nil {
		return nil
	}
	w.killed.Store(true)
	w.log.Info("killing the job's processes", "why", why)
	if err := w.env.Kill(w.leave); err != nil && w.leave.Err() == nil {
		w.log.Error("cannot kill the job's processes; it is tried again", "err", err)
		return time.After(killPatience)
	}
	return nil
}
