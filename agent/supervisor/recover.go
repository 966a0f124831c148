package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/switchyard-ci/switchyard/agent/ledger"
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

// Recover takes up what is in the jobs' folder and has the executors sweep the rest. run is called with each job's
// goroutine. It is for the start of the agent, before anything is accepted.
//
// What cannot be understood is left alone and named in the log, except folders that say nothing of a job: those are
// removed.
func Recover(leave context.Context, c *Config, run func(func())) ([]Recovered, error) {
	entries, err := os.ReadDir(c.Jobs)
	if err != nil {
		return nil, fmt.Errorf("look for jobs of an earlier run: %w", err)
	}
	var jobs []Recovered
	known := make(map[string]bool)
	for _, e := range entries {
		dir := filepath.Join(c.Jobs, e.Name())
		if strings.HasPrefix(e.Name(), trashPrefix) {
			if err := os.RemoveAll(dir); err != nil {
				c.Log.Error("cannot remove what is left of a job", "folder", dir, "err", err)
			}
			continue
		}
		known[e.Name()] = true
		i, err := readIntent(dir)
		if errors.Is(err, os.ErrNotExist) { // nothing was made for it yet
			known[e.Name()] = false
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
	for _, x := range c.Executors {
		if err := x.Sweep(leave, func(name string) bool { return known[name] }); err != nil {
			c.Log.Error("cannot remove what jobs of earlier runs left behind", "executor", x.Name(), "err", err)
		}
	}
	return jobs, nil
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

// inspect reads a job's files; body is what is left to do.
func (w *work) inspect() (phase ledger.Phase, fenced bool, body func(), err error) {
	fail := func(err error) (ledger.Phase, bool, func(), error) { return 0, false, nil, err }
	w.recovered = true
	if w.folder, err = folder.Open(filepath.Join(w.dir, folderName)); errors.Is(err, os.ErrNotExist) {
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
	_, err = w.folder.Started()
	fenced = err == nil
	if err != nil && !errors.Is(err, folder.ErrNotStarted) {
		return fail(err)
	}
	if err := w.recoverEnvironment(); err != nil {
		return fail(err)
	}
	spec, specErr := w.folder.Spec()
	w.prefixLength = spec.PrefixLength
	o, outcomeErr := readOutcome(w.dir)
	running, err := w.folder.Running()
	switch {
	case err != nil:
		return fail(err)
	case outcomeErr == nil: // the agent ended it
		w.config.Traces.Add(w.Intent.Ref(), w.trace)
		w.conclude(o.proto())
		return ledger.Finished, fenced, func() {}, nil
	case !errors.Is(outcomeErr, os.ErrNotExist):
		return fail(outcomeErr)
	case !fenced && !running:
		if err := w.reset(); err != nil {
			return fail(err)
		}
		return ledger.Accepted, false, w.fresh, nil
	case specErr != nil:
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

// recoverEnvironment finds the environment again, if there is one.
func (w *work) recoverEnvironment() error {
	x := w.config.Executors[w.Intent.Executor]
	if x == nil {
		return fmt.Errorf("it was run by the executor %q, which this agent does not have any more", w.Intent.Executor)
	}
	env, err := x.Recover(w.leave, w.spec(nil))
	if errors.Is(err, executors.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	w.env = env
	return nil
}

// reset makes a new folder for a job that was killed with the agent before it started. Of the old one only the prefix is
// kept: the control plane may have some of it, and a trace never changes. The locks, and that the folder is another one,
// make sure that no switchyard-job which was on its way can start.
func (w *work) reset() error {
	if w.env != nil {
		if err := w.env.Destroy(w.leave); err != nil {
			return fmt.Errorf("destroy an environment that was never used: %w", err)
		}
		w.env = nil
	}
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
		return errors.New("its process has just begun")
	}
	defer func() { _ = lock.Close() }()
	if _, err := w.folder.Started(); !errors.Is(err, folder.ErrNotStarted) {
		return errors.New("its process has just begun")
	}
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

// resume follows a job that an earlier process of the agent started.
func (w *work) resume() {
	if w.env == nil {
		w.die("nothing is left of the job's environment")
		return
	}
	w.follow(nil, nil)
}
