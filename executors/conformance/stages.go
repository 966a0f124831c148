//go:build unix

package conformance

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// held is a job that waits in one of its stages.
type held struct {
	*running
	t      *testing.T
	stage  string
	gate   string // a file that the job's scripts wait for
	gitlab *gitlab
	ending bool // the stage comes after the script: a graceful cancel comes too late
}

// The stages in which a job can be made to wait, in their order.
var heldStages = []string{
	"get_sources", "restore_cache", "download_artifacts", "step_script", "after_script", "archive_cache", "upload_artifacts_on_success",
}

// holdAt starts a job that has every stage, and waits until it waits in that one.
func (p *place) holdAt(t *testing.T, g *gitlab, stage string) *held {
	t.Helper()
	token := g.token
	h := &held{t: t, stage: stage, gate: "gate-" + strings.ReplaceAll(naps(t), " ", "-"), gitlab: g}
	h.gitlab.hold = nil
	h.gitlab.offer(t, 9, map[string]string{"from-build": "built\n"})
	wait := `echo "reached it"; while ! test -e "$CI_BUILDS_DIR/` + h.gate + `"; do sleep 0.02; done`
	hook, main, last := "true", "echo ran once", "echo after"
	remote := false
	switch stage {
	case "get_sources":
		hook = wait
	case "restore_cache", "archive_cache":
		remote = true // the question for the URL is what is not answered
	case "download_artifacts", "upload_artifacts_on_success":
		h.gitlab.hold = newHold()
	case "step_script":
		main = wait + "; echo ran once"
	case "after_script":
		last = wait
	}
	h.ending = stage == "after_script" || stage == "archive_cache" || stage == "upload_artifacts_on_success"

	job := script(main, "mkdir -p dir out; echo x >dir/x; echo y >out/y", "cat file from-build")
	job.Token = token
	job.Features.TraceSections = true
	job.Variables = []runnerapi.Variable{{Key: "GIT_STRATEGY", Value: "clone"}, {Key: "CI_JOB_TOKEN", Value: token, Masked: true}}
	job.GitInfo = runnerapi.GitInfo{
		RepoURL: h.gitlab.repoURL(), Ref: "main", RefType: "branch", SHA: h.gitlab.commits[1],
		Refspecs: []string{"+refs/heads/main:refs/remotes/origin/main"},
	}
	job.Hooks = []runnerapi.Hook{{Name: "pre_get_sources_script", Script: []string{hook}}}
	policy := "push" // of a cache of which only the end is waited for
	if stage == "restore_cache" {
		policy = "pull"
	}
	if remote {
		job.Cache = []runnerapi.Cache{{Key: "k", Policy: policy, Paths: []string{"dir"}, When: "on_success"}}
	}
	dependency := runnerapi.Dependency{ID: 9, Name: "build", Token: token}
	dependency.ArtifactsFile.Filename = "artifacts.zip"
	job.Dependencies = []runnerapi.Dependency{dependency}
	if stage != "download_artifacts" {
		job.Artifacts = []runnerapi.Artifact{{Paths: []string{"out"}, When: "always", Type: "archive", Format: "zip"}}
	}
	job.Steps = append(job.Steps, runnerapi.Step{Name: "after_script", Script: []string{last}, When: "always"})
	if stage == "upload_artifacts_on_success" { // the download must pass
		job.Dependencies = nil
		job.Steps[0].Script = []string{main, "mkdir -p dir out; echo y >out/y", "cat file"}
	}
	h.running = p.start(job, func(_ *runnerapi.Job, s *folder.Spec) {
		s.ServerURL = h.gitlab.url
		s.Settings.RemoteCache = remote
	})
	h.awaitReady()
	h.awaitHeld()
	return h
}

// awaitHeld waits until the job waits.
func (h *held) awaitHeld() {
	h.t.Helper()
	switch h.stage {
	case "restore_cache", "archive_cache":
		f := h.follow()
		defer f.close()
		limit := time.AfterFunc(patience, f.close)
		defer limit.Stop()
		_, err := f.asked()
		require.NoError(h.t, err, h.text())
	case "download_artifacts", "upload_artifacts_on_success":
		select {
		case <-h.gitlab.hold.reached:
		case <-time.After(patience):
			h.t.Fatalf("no request comes; the trace is %q", h.text())
		}
	default:
		h.await("reached it\n")
	}
}

// release lets the job go on.
func (h *held) release() {
	h.t.Helper()
	switch h.stage {
	case "restore_cache", "archive_cache":
		f := h.follow()
		defer f.close()
		q, err := f.asked()
		require.NoError(h.t, err)
		require.NoError(h.t, f.answer(folder.CacheAnswer{ID: q.ID, Error: "there is no store"}))
	case "download_artifacts", "upload_artifacts_on_success":
		close(h.gitlab.hold.release)
	default:
		code, err := h.env.Exec(h.t.Context(), executors.Command{Argv: []string{"touch", filepath.Join(h.env.Job().BuildsDir, h.gate)}})
		require.NoError(h.t, err)
		require.Zero(h.t, code)
	}
}

// again is what an agent does that was killed and restarted.
func (h *held) again() {
	h.t.Helper()
	h.drop()
	require.ErrorIs(h.t, h.wait().err, context.Canceled)
	x := h.place.Again(h.t)
	require.NoError(h.t, x.Sweep(h.t.Context(), func(name string) bool { return name == h.name }))
	env, err := x.Recover(h.t.Context(), h.spec)
	require.NoError(h.t, err)
	h.env = env
	if !h.here() {
		h.ended = make(chan exit, 1)
		h.open("attach")
	}
}

// end waits until the job has ended, as the agent does that does not own its process.
func (h *held) end() {
	h.t.Helper()
	if h.here() {
		lock, err := h.folder.WaitLock() // the job has it for as long as it lives
		require.NoError(h.t, err)
		require.NoError(h.t, lock.Close())
		return
	}
	f := h.follow()
	var err error
	for err == nil {
		err = f.next(f.news())
	}
	require.ErrorIs(h.t, err, folder.ErrGone)
}

// clean checks that nothing is left once the environment is destroyed.
func (h *held) clean() {
	h.t.Helper()
	require.NoError(h.t, h.env.Destroy(h.t.Context()))
	if h.place.Leftovers != nil {
		require.Empty(h.t, h.place.Leftovers(h.t))
	}
}

func agentRestartsInEachStage(t *testing.T, p *place) {
	g := p.newGitLab("glcbt-64_held")
	for _, stage := range heldStages {
		t.Run(stage, func(t *testing.T) {
			h := p.holdAt(t, g, stage)
			h.again()
			h.release()
			h.end()
			result := h.result()
			succeeded(t, result, h.text())
			require.Equal(t, 1, strings.Count(h.text(), "\nran once\n"), h.text())
			require.Equal(t, 1, strings.Count(h.text(), ":"+stage+"\r\x1b[0K\x1b[0K"), "the stage begins once")
			h.clean()
		})
	}
}

func cancelInEachStage(t *testing.T, p *place) {
	g := p.newGitLab("glcbt-64_held")
	for _, stage := range heldStages {
		t.Run(stage, func(t *testing.T) {
			h := p.holdAt(t, g, stage)
			f := h.follow()
			require.NoError(t, f.Cancel(false))
			if h.ending {
				h.release()
			}
			h.wait()
			f.close()
			result := h.result()
			switch {
			case h.ending:
				succeeded(t, result, h.text())
			default:
				require.Equal(t, runnerapi.ReasonCanceled, result.FailureReason, h.text())
				require.Equal(t, stage == "step_script", strings.Contains(h.text(), "\nafter\n"), "after_script runs if the script did")
			}
			if h.gitlab.hold != nil && !h.ending {
				close(h.gitlab.hold.release)
			}
			h.clean()
		})
	}
}

func killInEachStage(t *testing.T, p *place) {
	g := p.newGitLab("glcbt-64_held")
	for _, stage := range heldStages {
		t.Run(stage, func(t *testing.T) {
			h := p.holdAt(t, g, stage)
			f := h.follow()
			require.NoError(t, f.Cancel(true))
			h.wait()
			f.close()
			require.Equal(t, runnerapi.ReasonCanceled, h.result().FailureReason, h.text())
			if h.gitlab.hold != nil {
				close(h.gitlab.hold.release)
			}
			h.clean()
		})
	}
}
