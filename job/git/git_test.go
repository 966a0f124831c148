//go:build unix

package git_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/job/git"
)

func TestGet(t *testing.T) {
	for _, format := range []string{"sha1", "sha256"} {
		t.Run(format, func(t *testing.T) {
			u := newUpstream(t, format)
			p := newProject(t, u)
			p.ObjectFormat = format
			p.get()
			require.Equal(t, "three", p.file())
			require.Equal(t, []string{
				"Fetching changes with git depth set to 2...", "Created fresh repository.",
				"Checking out " + u.last()[:8] + " as detached HEAD (ref is main)...", "Skipping Git submodules setup",
			}, p.notices)
			require.Contains(t, p.said, "Initialized empty Git repository in "+p.Dir+"/.git/\n")
			require.Len(t, p.argv, 2, "no process more than needed")
			require.Equal(t, "2", run(t, p.Dir, "rev-list", "--count", "HEAD"))
			require.Zero(t, u.vain(), "no request without credentials")

			// The next job of the project finds the working copy, with things left behind.
			sha := u.commit(t, "four")
			require.NoError(t, os.WriteFile(filepath.Join(p.Dir, "untracked"), nil, 0o644))
			require.NoError(t, os.WriteFile(filepath.Join(p.Dir, ".git", "index.lock"), nil, 0o644))
			require.NoError(t, os.WriteFile(filepath.Join(p.Dir, ".git", "refs", "remotes", "origin", "main.lock"), nil, 0o644))
			require.NoError(t, os.MkdirAll(filepath.Join(p.Dir, ".git", "hooks"), 0o755))
			require.NoError(t, os.WriteFile(filepath.Join(p.Dir, ".git", "hooks", "post-checkout"), []byte("#!/bin/sh\ntouch "+p.Temp+"/hooked\n"), 0o755))
			run(t, p.Dir, "config", "core.fsmonitor", "touch "+p.Temp+"/watched")
			p.SHA, p.Refspecs = sha, []string{"+refs/heads/main:refs/remotes/origin/main"}
			p.get()
			require.Equal(t, "four", p.file())
			require.NoFileExists(t, filepath.Join(p.Dir, "untracked"))
			require.NoFileExists(t, filepath.Join(p.Temp, "hooked"))
			require.NoFileExists(t, filepath.Join(p.Temp, "watched"))
			require.NotContains(t, p.notices, "Created fresh repository.")
			require.Contains(t, p.said, "Reinitialized existing Git repository in "+p.Dir+"/.git/\n")
		})
	}
}

func TestStrategies(t *testing.T) {
	u := newUpstream(t, "sha1")
	p := newProject(t, u)
	p.get()
	marker := filepath.Join(p.Dir, ".git", "marker")
	leave := func() {
		require.NoError(t, os.WriteFile(marker, nil, 0o644))
		require.NoError(t, os.MkdirAll(filepath.Join(p.Dir, "cache", "sub"), 0o755))
		require.NoError(t, os.Chmod(filepath.Join(p.Dir, "cache"), 0o555))
	}
	leave()
	p.Strategy = git.Clone
	p.get()
	require.NoFileExists(t, marker)
	require.Equal(t, "three", p.file())

	leave()
	p.Strategy = git.None
	p.get()
	require.FileExists(t, marker)
	require.Empty(t, p.argv)
	require.Equal(t, []string{"Skipping Git repository setup", "Skipping Git checkout", "Skipping Git submodules setup"}, p.notices)

	p.Strategy = git.Empty
	p.get()
	entries, err := os.ReadDir(p.Dir)
	require.NoError(t, err)
	require.Empty(t, entries)
	require.Equal(t, "Skipping Git repository setup and creating an empty build directory", p.notices[0])

	p.Strategy, p.Checkout, p.Depth = git.Fetch, false, 0
	p.get()
	require.NoFileExists(t, filepath.Join(p.Dir, "file"))
	require.Equal(t, []string{"Fetching changes...", "Created fresh repository.", "Skipping Git checkout", "Skipping Git submodules setup"}, p.notices)
}

func TestUnshallow(t *testing.T) {
	u := newUpstream(t, "sha1")
	p := newProject(t, u)
	p.Depth = 1
	p.get()
	require.Equal(t, "1", run(t, p.Dir, "rev-list", "--count", "HEAD"))
	p.Depth = 0
	p.get()
	require.Equal(t, "3", run(t, p.Dir, "rev-list", "--count", "HEAD"))
}

func TestADamagedWorkingCopyIsGotAnew(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, dir string){
		"empty objects": func(t *testing.T, dir string) {
			require.NoError(t, filepath.WalkDir(filepath.Join(dir, ".git", "objects"), func(path string, d os.DirEntry, err error) error {
				if d.Type().IsRegular() {
					require.NoError(t, os.Chmod(path, 0o644))
					require.NoError(t, os.Truncate(path, 0))
				}
				return err
			}))
		},
		"no HEAD": func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, ".git", "HEAD"), nil, 0o644))
		},
		"index garbage": func(t *testing.T, dir string) {
			require.NoError(t, os.WriteFile(filepath.Join(dir, ".git", "index"), []byte("garbage"), 0o644))
		},
		"other format": func(t *testing.T, dir string) {
			require.NoError(t, os.RemoveAll(dir))
			run(t, "/", "init", "-q", "--object-format", "sha256", dir)
		},
		".git is a file": func(t *testing.T, dir string) {
			require.NoError(t, os.RemoveAll(filepath.Join(dir, ".git")))
			require.NoError(t, os.WriteFile(filepath.Join(dir, ".git"), []byte("gitdir: /no/where"), 0o644))
		},
	} {
		t.Run(name, func(t *testing.T) {
			u := newUpstream(t, "sha1")
			p := newProject(t, u)
			p.get()
			damage(t, p.Dir)
			p.get()
			require.Equal(t, "three", p.file())
			require.Equal(t, u.last(), run(t, p.Dir, "rev-parse", "HEAD"))
		})
	}
}

func TestAServerThatFailsCostsNoWorkingCopy(t *testing.T) {
	u := newUpstream(t, "sha1")
	p := newProject(t, u)
	p.get()
	require.NoError(t, os.WriteFile(filepath.Join(p.Dir, ".git", "marker"), nil, 0o644))
	for name, bad := range map[string]string{
		"gone":    "http://127.0.0.1:1/group/project.git",
		"refused": strings.Replace(u.url, "http://", "http://gitlab-ci-token:wrong@", 1),
	} {
		p.URL = bad
		p.Environment = append(p.Environment, "CI_JOB_TOKEN=wrong")
		err := p.Get(context.Background())
		var exit *git.ExitError
		require.ErrorAs(t, err, &exit, name)
		require.Equal(t, "fetch", exit.Command)
		require.Equal(t, 128, exit.Code)
		require.FileExists(t, filepath.Join(p.Dir, ".git", "marker"))
		require.NotContains(t, p.said, "wrong", name)
	}
}

func TestClearWorktreeAndCleanUp(t *testing.T) {
	u := newUpstream(t, "sha1")
	p := newProject(t, u)
	require.NoError(t, p.ClearWorktree(context.Background()))
	p.get()
	require.NoError(t, os.WriteFile(filepath.Join(p.Dir, "untracked"), nil, 0o644))
	require.NoError(t, p.ClearWorktree(context.Background()))
	entries, err := os.ReadDir(p.Dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)

	p.get()
	require.NoError(t, os.WriteFile(filepath.Join(p.Dir, "file"), []byte("changed"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(p.Dir, "untracked"), nil, 0o644))
	require.NoError(t, p.CleanUp(context.Background()))
	require.Equal(t, "three", p.file())
	require.NoFileExists(t, filepath.Join(p.Dir, "untracked"))
	p.Strategy = git.Clone
	require.NoError(t, p.CleanUp(context.Background()))
	require.NoDirExists(t, p.Dir)
}

func TestTheContextEndsIt(t *testing.T) {
	p := newProject(t, newUpstream(t, "sha1"))
	ctx, cancel := context.WithCancelCause(context.Background())
	reason := errors.New("stop it")
	cancel(reason)
	require.ErrorIs(t, p.Get(ctx), reason)
}

func TestCheck(t *testing.T) {
	good := git.Sources{Options: git.Options{Strategy: git.Fetch}, SHA: strings.Repeat("a", 40), URL: "https://x:secret@h/p.git", Refspecs: []string{"+a:b"}}
	require.NoError(t, good.Check())
	for want, change := range map[string]func(*git.Sources){
		`git_info.sha: "-x"`:                       func(s *git.Sources) { s.SHA = "-x" },
		`git_info.sha: ""`:                         func(s *git.Sources) { s.SHA = "" },
		`git_info.refspecs[1]: "--upload-pack=sh"`: func(s *git.Sources) { s.Refspecs = append(s.Refspecs, "--upload-pack=sh") },
		`repo_object_format: "md5"`:                func(s *git.Sources) { s.ObjectFormat = "md5" },
		`git_info.repo_url: not a URL`:             func(s *git.Sources) { s.URL = "https://x:secret@h/\x01" },
		`git_info.repo_url: it names no host`:      func(s *git.Sources) { s.URL = "https:///p.git" },
	} {
		s := good
		change(&s)
		err := s.Check()
		require.ErrorContains(t, err, want)
		require.NotContains(t, err.Error(), "secret")
		s.Strategy = git.None
		require.NoError(t, s.Check())
	}
	local := git.Sources{Options: git.Options{Strategy: git.Fetch}, SHA: strings.Repeat("a", 64), URL: "file:///srv/p.git"}
	require.NoError(t, local.Check())
	require.Empty(t, local.Secrets())
}

func TestTheJobsOwnConfigurationStays(t *testing.T) {
	p := newProject(t, newUpstream(t, "sha1"))
	p.Environment = append(p.Environment, "GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=core.abbrev", "GIT_CONFIG_VALUE_0=11",
		"GIT_CONFIG_PARAMETERS='alias.hello=!echo \"it'\\''s me\"'", "GIT_DIR=/nowhere", "GIT_WORK_TREE=/")
	p.get()
	require.Contains(t, p.envs[0], "GIT_CONFIG_COUNT=1")
	code, said, err := p.Run(context.Background(), []string{"git", "hello"}, p.envs[0], p.Dir)
	require.NoError(t, err)
	require.Zero(t, code)
	require.Equal(t, "it's me\n", string(said))
}
