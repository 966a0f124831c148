//go:build unix

package conformance

import (
	"bytes"
	"context"
	"io"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// daemons are ways by which processes get away from their parents: plain, ignoring the end of the terminal, in a session of
// their own, and with nothing in their environment.
func daemons(nap string) []string {
	return []string{
		nap + " >/dev/null 2>&1 &",
		"nohup " + nap + " >/dev/null 2>&1 &",
		"setsid " + nap + " >/dev/null 2>&1 &",
		"( setsid env -i " + nap + " >/dev/null 2>&1 & )",
	}
}

func execute(t *testing.T, p *place) {
	r := p.prepare(script("true"))
	var out, errs bytes.Buffer
	code, err := r.env.Exec(t.Context(), executors.Command{
		Argv: []string{"sh", "-c", `read line; echo "got $line"; echo oops >&2; exit 9`}, Stdin: strings.NewReader("a line\n"), Stdout: &out, Stderr: &errs,
	})
	require.NoError(t, err)
	require.Equal(t, 9, code)
	require.Equal(t, "got a line\n", out.String())
	require.Equal(t, "oops\n", errs.String())

	code, err = r.env.Exec(t.Context(), executors.Command{Argv: []string{"sh", "-c", "cat; kill -9 $$"}})
	require.NoError(t, err)
	require.Equal(t, 128+9, code, "a signal, and no input")

	_, err = r.env.Exec(t.Context(), executors.Command{Argv: []string{"/no/such/program"}})
	require.Error(t, err)
	_, err = r.env.Exec(t.Context(), executors.Command{})
	require.Error(t, err)
	version, _ := r.env.Exec(t.Context(), executors.Command{Argv: []string{r.env.Job().Binary, "version"}})
	require.Zero(t, version)
}

func execGoesOn(t *testing.T, p *place) {
	r := p.prepare(script("true"))
	nap := naps(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := r.env.Exec(ctx, executors.Command{Argv: strings.Fields(nap), Stdout: io.Discard})
		ended <- err
	}()
	p.awaitProcesses(nap, 1)
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	require.Equal(t, 1, p.Processes(t, nap))
	require.NoError(t, r.env.Kill(t.Context()))
	p.gone(nap)
	require.NoError(t, r.env.Kill(t.Context()), "again")
	select {
	case <-r.env.Done():
		t.Fatal("Kill is not the end of an environment")
	default:
	}
}

func killedUnderTheJob(t *testing.T, p *place) {
	nap := naps(t)
	r := p.start(script(append(daemons(nap), "echo begun; "+nap)...))
	r.awaitReady()
	r.await("begun")
	p.awaitProcesses(nap, 5)
	require.NoError(t, r.env.Kill(t.Context()))
	p.gone(nap)
	if e := r.wait(); e.err == nil || r.here() { // a stream may be lost instead
		require.Equal(t, 128+9, e.code)
	}
	_, err := r.folder.Result()
	require.ErrorIs(t, err, folder.ErrNoResult)
	alive, err := r.folder.Running()
	require.NoError(t, err)
	require.False(t, alive)
}

func agentRestarts(t *testing.T, p *place) {
	gate := "gate-" + strings.ReplaceAll(naps(t), " ", "-")
	r := p.start(script("echo before", "while ! test -e \"$CI_BUILDS_DIR/"+gate+"\"; do sleep 0.02; done", "echo after; exit 5"))
	r.awaitReady()
	r.await("before")
	r.drop() // the agent is gone
	require.ErrorIs(t, r.wait().err, context.Canceled)

	again := p.Again(t)
	require.NoError(t, again.Sweep(t.Context(), func(name string) bool { return name == r.name }))
	env, err := again.Recover(t.Context(), r.spec)
	require.NoError(t, err)
	require.Equal(t, r.env.Job(), env.Job())
	require.Equal(t, r.here(), func() bool { _, ok := env.LocalFolder(); return ok }())
	r.env = env
	if !r.here() {
		r.ended = make(chan exit, 1)
		r.open("attach")
	}
	f := r.follow()
	code, err := env.Exec(t.Context(), executors.Command{Argv: []string{"touch", filepath.Join(env.Job().BuildsDir, gate)}})
	require.NoError(t, err)
	require.Zero(t, code)
	for err == nil {
		err = f.next(f.news())
	}
	require.ErrorIs(t, err, folder.ErrGone)
	result := r.result()
	require.Equal(t, 5, result.ExitCode)
	require.Equal(t, 1, strings.Count(r.text(), "before\n"))
	require.Contains(t, r.text(), "after\n")
	require.NoError(t, env.Destroy(t.Context()))
}

// lostStreams is more streams than a job takes followers: what is lost must not stay.
func lostStreams(t *testing.T, p *place) {
	gate := "gate-" + strings.ReplaceAll(naps(t), " ", "-")
	r := p.prepare(script("echo begun", "while ! test -e \"$CI_BUILDS_DIR/"+gate+"\"; do sleep 0.02; done", "echo ended"))
	if r.here() {
		return
	}
	r.exec()
	r.awaitReady()
	r.await("begun")
	for range 40 {
		r.drop()
		require.ErrorIs(t, r.wait().err, context.Canceled)
		r.ended = make(chan exit, 1)
		r.open("attach")
		select {
		case <-r.stream.hello:
		case <-time.After(patience):
			t.Fatal("the job cannot be attached to any more")
		}
	}
	code, err := r.env.Exec(t.Context(), executors.Command{Argv: []string{"touch", path.Join(r.env.Job().BuildsDir, gate)}})
	require.NoError(t, err)
	require.Zero(t, code)
	require.Zero(t, r.wait().code)
	succeeded(t, r.result(), r.text())
	require.Contains(t, r.text(), "ended\n")
}

func startsOnce(t *testing.T, p *place) {
	r := p.start(script("echo once"))
	r.wait()
	succeeded(t, r.result(), r.text())
	before := r.text()
	place := r.env.Job()
	code, err := r.env.Exec(t.Context(), executors.Command{Argv: []string{place.Binary, "run", place.Folder}})
	require.NoError(t, err)
	require.NotZero(t, code)
	if !r.here() {
		r.ended = make(chan exit, 1)
		r.open("launch")
		require.Zero(t, r.wait().code, "it follows what was started")
	}
	require.Equal(t, before, r.text())
}

func destroyLeavesNothing(t *testing.T, p *place) {
	nap := naps(t)
	done := p.start(script(append(daemons(nap), "echo done")...))
	done.wait()
	succeeded(t, done.result(), done.text())
	require.NoError(t, done.env.Destroy(t.Context()))
	p.gone(nap)
	require.NoError(t, done.env.Destroy(t.Context()), "again")
	require.FileExists(t, filepath.Join(done.spec.Folder, folder.ResultFile), "the job folder is the agent's")

	r := p.start(script(append(daemons(nap), "echo begun; "+nap)...))
	r.awaitReady()
	r.await("begun")
	p.awaitProcesses(nap, 5)
	require.NoError(t, r.env.Destroy(t.Context()))
	p.gone(nap)
	p.gone(r.env.Job().Folder)
	r.wait()
}

func destroyUnused(t *testing.T, p *place) {
	r := p.prepare(script("true"))
	require.NoError(t, r.env.Destroy(t.Context()))
	require.NoError(t, r.env.Destroy(t.Context()))
}

func recoverNothing(t *testing.T, p *place) {
	_, err := p.Executor.Recover(t.Context(), executors.Spec{
		Name: "sy-test-9-9", Folder: filepath.Join(p.Jobs, "sy-test-9-9", "job"), JobBinary: p.JobBinary,
	})
	require.ErrorIs(t, err, executors.ErrNotFound)
}

func sweep(t *testing.T, p *place) {
	mine, lost := naps(t), naps(t)
	require.NotEqual(t, mine, lost)
	keep := p.start(script("echo begun; " + mine))
	drop := p.start(script(append(daemons(lost), "echo begun; "+lost)...))
	keep.awaitReady()
	drop.awaitReady()
	p.awaitProcesses(mine, 1)
	p.awaitProcesses(lost, 5)
	require.NoError(t, p.Again(t).Sweep(t.Context(), func(name string) bool { return name == keep.name }))
	p.gone(lost)
	require.Equal(t, 1, p.Processes(t, mine))
	select {
	case e := <-drop.ended:
		drop.ended <- e
	case <-time.After(patience):
		t.Fatal("the swept job does not end")
	}
}
