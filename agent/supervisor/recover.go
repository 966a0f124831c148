package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/agent/uplink"
	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// Recovered is a job that an earlier process of the agent left behind.
type Recovered struct {
	*Job
	// Phase is Accepted (it was never started and never will be without a new Launch), Started or Finished.
	Phase  ledger.Phase
	Fenced bool
}

// Recover takes up what is in the jobs' folder. run is called with each job's goroutine. It is for the start of the agent,
// before anything is accepted; Sweep follows.
//
// What cannot be understood is left alone and named in the log, except folders that say nothing of a job: those are
// removed.
func Recover(leave context.Context, c *Config, run func(func())) ([]Recovered, error) {
	entries, err := os.ReadDir(c.Jobs)
	if err != nil {
		return nil, fmt.Errorf("look for jobs of an earlier run: %w", err)
	}
	if c.CopyOf != "" {
		c.Log.Warn("the data folder is a copy, and the jobs in it are those of the original, which is still there", "original", c.CopyOf, "jobs", len(entries))
		for _, e := range entries {
			c.copied = append(c.copied, e.Name())
		}
		return nil, nil
	}
	var jobs []Recovered
	for _, e := range entries {
		dir := filepath.Join(c.Jobs, e.Name())
		if strings.HasPrefix(e.Name(), trashPrefix) {
			if err := os.RemoveAll(dir); err != nil {
				c.Log.Error("cannot remove what is left of a job", "folder", dir, "err", err)
			}
			continue
		}
		i, err := readIntent(dir)
		if errors.Is(err, os.ErrNotExist) { // nothing was made for it yet
			if err := remove(dir); err != nil {
				c.Log.Error("cannot remove what is left of a job", "folder", dir, "err", err)
			}
			continue
		}
		if err != nil {
			c.Log.Error("cannot take up a job of an earlier run; its folder is left alone", "folder", dir, "err", err)
			continue
		}
		j := newJob(leave, c, i)
		j.dir = dir
		r, err := j.takeUp(leave, run)
		if err != nil {
			c.Log.Error("cannot take up a job of an earlier run; its folder is left alone", "folder", dir, "err", err)
			continue
		}
		jobs = append(jobs, r)
	}
	return jobs, nil
}

// Sweep has the executors remove what is left of jobs that have no folder any more: nothing is made for a job before its
// folder, and the folder goes last. It may run beside jobs, and is called once, when the control plane has let this agent in:
// until then another process with a copy of the data folder, and so with the same names, may be the one that has jobs. In
// such a copy only the folders are removed that were copied.
func Sweep(ctx context.Context, c *Config) {
	if c.CopyOf != "" {
		for _, name := range c.copied {
			if err := remove(filepath.Join(c.Jobs, name)); err != nil {
				c.Log.Error("cannot remove what was copied of a job", "err", err)
			}
		}
		return
	}
	entries, err := os.ReadDir(c.Jobs)
	if err != nil {
		c.Log.Error("cannot look for what jobs of earlier runs left behind", "err", err)
		return
	}
	known := make(map[string]bool, len(entries))
	for _, e := range entries {
		known[e.Name()] = true
	}
	keep := func(name string) bool { // also one that was accepted meanwhile
		_, err := os.Lstat(filepath.Join(c.Jobs, filepath.Base(name)))
		return known[name] || !errors.Is(err, os.ErrNotExist)
	}
	for _, x := range c.Executors {
		if err := x.Sweep(ctx, keep); err != nil && ctx.Err() == nil {
			c.Log.Error("cannot remove what jobs of earlier runs left behind", "executor", x.Name(), "err", err)
		}
	}
}

// takeUp finds out how far a job had come, and goes on from there.
func (j *Job) takeUp(leave context.Context, run func(func())) (Recovered, error) {
	w := &work{Job: j, leave: leave}
	phase, fenced, body, err := w.inspect()
	if err != nil {
		w.close()
		return Recovered{}, err
	}
	run(func() { w.run(body) })
	return Recovered{j, phase, fenced}, nil
}

// inspect reads a job's files on this host; body is what is left to do.
func (w *work) inspect() (phase ledger.Phase, fenced bool, body func(), err error) {
	fail := func(err error) (ledger.Phase, bool, func(), error) { return 0, false, nil, err }
	w.recovered, w.intent = true, w.Intent
	if w.config.Executors[w.Intent.Executor] == nil {
		return fail(fmt.Errorf("it was run by the executor %q, which this agent does not have any more", w.Intent.Executor))
	}
	if w.folder, err = folder.Open(filepath.Join(w.dir, folderName)); errors.Is(err, os.ErrNotExist) {
		w.sought = true // nothing was made yet, or it is destroyed
		if err := w.finishReset(); err != nil {
			return fail(err)
		}
		return ledger.Accepted, false, w.fresh, nil
	} else if err != nil {
		return fail(err)
	}
	if w.trace, err = w.folder.OpenTrace(); err != nil {
		return fail(err)
	}
	running, err := w.folder.Running()
	if err != nil {
		return fail(err)
	}
	started, err := w.folder.Started()
	if err != nil && !errors.Is(err, folder.ErrNotStarted) {
		return fail(err)
	}
	fenced = err == nil
	given, launchErr := readLaunched(w.dir)
	elsewhere := launchErr == nil
	if !elsewhere && !errors.Is(launchErr, os.ErrNotExist) {
		return fail(launchErr)
	}
	spec, specErr := w.folder.Spec()
	w.prefixLength = spec.PrefixLength
	w.settings = Settings{Settings: spec.Settings, ServerURL: spec.ServerURL, ServerCA: spec.ServerCA}
	o, outcomeErr := readOutcome(w.dir)
	switch {
	case outcomeErr == nil: // the agent ended it
		w.config.Traces.Add(w.Intent.Ref(), w.trace)
		w.conclude(o.proto())
		return ledger.Finished, fenced, func() {}, nil
	case !errors.Is(outcomeErr, os.ErrNotExist):
		return fail(outcomeErr)
	case !fenced && !running && !elsewhere:
		if err := w.unsent(); err != nil {
			return fail(err)
		}
		return ledger.Accepted, false, w.again, nil
	}
	switch {
	case elsewhere:
		err = w.distrust(given)
	case !running:
		err = w.survey(started)
	}
	if err != nil {
		return fail(err)
	}
	// A host that was restarted may have lost it; see followRemote.
	if specErr != nil && !elsewhere && !w.powerless {
		return fail(specErr)
	}
	w.config.Traces.Add(w.Intent.Ref(), w.trace)
	if !running {
		if r := w.ownResult(); r != nil {
			w.conclude(r)
			return ledger.Finished, fenced, func() {}, nil
		}
	}
	if size, err := w.trace.Size(); err == nil {
		w.length.Store(size)
	}
	return ledger.Started, fenced, w.resume, nil
}

// find takes up the environment of a recovered job, if there is one. A place that cannot be asked is asked again, for as
// long as that takes: what is there is this job's alone. It returns false if ctx ended before.
func (w *work) find(ctx context.Context) bool {
	backoff := uplink.Backoff{First: time.Second, Most: time.Minute}
	for told := false; !w.sought; told = true {
		env, err := w.config.Executors[w.Intent.Executor].Recover(ctx, w.spec(nil))
		switch {
		case err == nil:
			w.env, w.sought = env, true
			continue
		case errors.Is(err, executors.ErrNotFound):
			w.sought = true
			continue
		case ctx.Err() != nil:
			return false
		case !told:
			w.log.Error("cannot take up the job's environment; it is tried again", "err", err)
		}
		select {
		case <-time.After(backoff.Next()):
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// again is for a job that was killed with the agent before it started.
func (w *work) again() {
	if !w.find(w.life) {
		return
	}
	err := w.reset()
	switch {
	case err == nil:
		w.fresh()
	case !w.awaitLaunch():
	case errors.Is(err, errBegun):
		w.config.Traces.Add(w.Intent.Ref(), w.trace)
		w.resume()
	default:
		w.failWithoutFolder(fmt.Sprintf("the agent was restarted and cannot prepare the job anew: %v", err))
	}
}

// errBegun says that a process of the job which was on its way has arrived.
var errBegun = errors.New("its process has just begun")

// reset makes a new folder for a job that was killed with the agent before it started. Of the old one only the prefix is
// kept: the control plane may have some of it, and a trace never changes. The locks, and that the folder is another one,
// make sure that no switchyard-job which was on its way can start.
func (w *work) reset() error {
	start, err := w.folder.LockStart()
	if err != nil {
		return err
	}
	defer func() { _ = start.Close() }()
	lock, ok, err := w.folder.TryLock()
	if err != nil {
		return err
	}
	if !ok {
		return errBegun
	}
	defer func() { _ = lock.Close() }()
	if _, err := w.folder.Started(); !errors.Is(err, folder.ErrNotStarted) {
		return errBegun
	}
	// Only now: a process that has begun since the folder was looked at must not be killed.
	if w.destroy(); w.leave.Err() != nil {
		return w.leave.Err()
	}
	w.env = nil
	w.close()
	next, old := filepath.Join(w.dir, nextFolderName), filepath.Join(w.dir, folderName)
	if err := os.Mkdir(next, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("prepare the job anew: %w", err)
	}
	if err := os.Rename(filepath.Join(old, folder.PrefixFile), filepath.Join(next, folder.PrefixFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("keep the begin of the trace: %w", err)
	}
	if err := os.RemoveAll(old); err != nil {
		return fmt.Errorf("remove what was prepared: %w", err)
	}
	return w.finishReset()
}

// finishReset is reset's last step; the agent may have been killed right before it.
func (w *work) finishReset() error {
	err := os.Rename(filepath.Join(w.dir, nextFolderName), filepath.Join(w.dir, folderName))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("prepare the job anew: %w", err)
	}
	return nil
}
