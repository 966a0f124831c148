//go:build unix

package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/switchyard-ci/switchyard/job/artifacts"
	"github.com/switchyard-ci/switchyard/job/cache"
	"github.com/switchyard-ci/switchyard/job/folder"
	"github.com/switchyard-ci/switchyard/job/process"
	"github.com/switchyard-ci/switchyard/job/shell"
	"github.com/switchyard-ci/switchyard/job/transfer"
)

func (j *Job) restoreCache(ctx context.Context) error {
	back := allProcessors()
	defer back()
	return j.cacheStage().Restore(ctx, j.payload.Cache)
}

func (j *Job) archiveCache(ctx context.Context, succeeded bool) error {
	back := allProcessors()
	defer back()
	return j.cacheStage().Archive(ctx, j.payload.Cache, succeeded)
}

func (j *Job) downloadArtifacts(ctx context.Context) error {
	back := allProcessors()
	defer back()
	return artifactFailure(ctx, j.artifactStage().Download(ctx, j.payload.Dependencies))
}

func (j *Job) uploadArtifacts(ctx context.Context, succeeded bool) error {
	back := allProcessors()
	defer back()
	return artifactFailure(ctx, j.artifactStage().Upload(ctx, j.payload.Artifacts, succeeded))
}

// artifactFailure is what an error about artifacts means for the job: as under gitlab-runner, whose helper program ends
// with exit code 1, it counts as the script's.
func artifactFailure(ctx context.Context, err error) error {
	if err == nil || ctx.Err() != nil {
		return err
	}
	return &failure{exitCode: 1, message: err.Error()}
}

// allProcessors lets this process use what there is, for packing and unpacking, and returns what takes that back: otherwise
// one thing happens at a time, and more processors only make threads wake each other.
func allProcessors() (back func()) {
	before := runtime.GOMAXPROCS(0)
	runtime.SetDefaultGOMAXPROCS()
	return func() { runtime.GOMAXPROCS(before) }
}

func (j *Job) cacheStage() *cache.Stage {
	s := &cache.Stage{
		ProjectDir: j.projectDir, Remote: j.Spec.Settings.RemoteCache, MaxUploaded: j.Spec.Settings.MaxUploadedArchiveSize,
		JobName: j.payload.JobInfo.Name, Ref: j.payload.GitInfo.Ref,
		Expand: j.vars.Expand, Value: j.value, Flag: j.flag, Git: j.untracked(),
		CA: j.Spec.ServerCA, UserAgent: j.userAgent(), Lines: j.lines(),
		Sign: func(ctx context.Context, op, key string) (folder.CacheAnswer, error) {
			return j.Ask(ctx, folder.CacheRequest{Op: op, Key: key})
		},
	}
	if j.Spec.CacheDir != "" {
		s.CacheDir = path.Join(j.Spec.CacheDir, folder.ProjectPath(&j.payload))
	}
	return s
}

func (j *Job) artifactStage() *artifacts.Stage {
	var names []string
	j.vars.Winning(func(key, _ string) { names = append(names, key) })
	p := &j.payload
	return &artifacts.Stage{
		ProjectDir: j.projectDir, TempDir: j.tempDir, ServerURL: j.Spec.ServerURL, CA: j.Spec.ServerCA, UserAgent: j.userAgent(),
		JobID: p.ID, Token: p.Token,
		Expand: j.vars.Expand, Value: j.value, Flag: j.flag, Git: j.untracked(),
		Provenance: artifacts.Provenance{
			RunnerID: j.Spec.Runner.ID, RunnerName: j.Spec.Runner.Name, Executor: j.Spec.Executor, JobName: p.JobInfo.Name,
			RepoURL: p.GitInfo.RepoURL, SHA: p.GitInfo.SHA, StartedAt: j.startedAt, Parameters: names, Version: j.Spec.Runner.Version,
		},
		UploadTimeout: j.Spec.Settings.ArtifactUploadTimeout, ResponseTimeout: j.Spec.Settings.ArtifactResponseHeaderTimeout,
		Lines: j.lines(),
	}
}

// value is what a variable is for what this process does itself. Like programs that it starts, it goes by the proxies of the
// environment that it inherited unless the job names others.
func (j *Job) value(key string) string {
	v, lower := j.vars.Get(key), strings.ToLower(key)
	if v != "" || !strings.HasSuffix(lower, "_proxy") || j.vars.Get(lower) != "" || j.vars.Get(strings.ToUpper(key)) != "" {
		return v
	}
	for _, kv := range slices.Backward(j.Environment) {
		if v, ok := strings.CutPrefix(kv, key+"="); ok {
			return v
		}
	}
	return ""
}

func (j *Job) flag(name string) bool { return j.flags[name] }

// lines is the trace as the stages that move files see it.
func (j *Job) lines() transfer.Lines {
	return transfer.Lines{
		Notice: func(text string) { j.out.notice(text) },
		Say:    func(text string) { j.out.say(text + "\n") },
		Warn:   func(text string) { j.out.warn(text) },
		Fail:   func(text string) { j.out.fail(text) },
		Progress: func(text string) {
			j.out.say(text)
			j.out.flush()
		},
	}
}

// maxUntracked limits git's list of untracked files, in bytes.
const maxUntracked = 256 << 20

// untracked is how git lists the files that it does not know; nil without git.
func (j *Job) untracked() func(context.Context) ([]byte, error) {
	program := shell.Look("git", j.searchPath())
	if program == "" {
		return nil
	}
	return func(ctx context.Context) ([]byte, error) {
		// In memory, because it is no secret but may be long, and the folders are the job's.
		list, err := unnamedFile(nil, j.tempDir)
		if err != nil {
			return nil, fmt.Errorf("list untracked files: %w", err)
		}
		defer func() { _ = list.Close() }()
		code, err := j.runHere(ctx, process.Command{
			Path: program, Argv: []string{"git", "ls-files", "-o", "-z"},
			Env: j.sources.Environment, Dir: j.projectDir, Stdout: list, Stderr: j.out.write,
		})
		if err != nil {
			return nil, fmt.Errorf("list untracked files: %w", err)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if code != 0 {
			return nil, fmt.Errorf("list untracked files: git ls-files: exit code %d", code)
		}
		info, err := list.Stat()
		if err != nil {
			return nil, fmt.Errorf("list untracked files: %w", err)
		}
		if info.Size() > maxUntracked {
			return nil, errors.New("list untracked files: there are too many")
		}
		b := make([]byte, info.Size())
		if _, err := list.ReadAt(b, 0); err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("list untracked files: %w", err)
		}
		return b, nil
	}
}
