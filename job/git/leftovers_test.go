//go:build unix

package git_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/job/git"
)

func TestTagsAndMergeRequests(t *testing.T) {
	u := newUpstream(t, "sha1")
	run(t, u.path, "checkout", "-q", "--detach")
	merged := u.commit(t, "merged")
	run(t, u.path, "update-ref", "refs/merge-requests/5/merge", merged)
	run(t, u.path, "checkout", "-q", "main")
	p := newProject(t, u)
	p.Ref, p.SHA, p.Refspecs = "v1", u.shas[2], []string{"+refs/tags/v1:refs/tags/v1"}
	p.get()
	require.Equal(t, "three", p.file())
	require.Equal(t, "v1", p.script("git describe --tags --exact-match"))

	p.Ref, p.SHA = "refs/merge-requests/5/merge", merged
	p.Refspecs = []string{"+refs/merge-requests/5/merge:refs/remotes/merge-requests/5/merge", "+" + merged + ":refs/pipelines/8"}
	p.get()
	require.Equal(t, "merged", p.file())
	require.Equal(t, merged, p.script("git rev-parse refs/remotes/merge-requests/5/merge"))

	// A branch's name may become a folder of others.
	run(t, u.path, "branch", "feature", "main")
	p.SHA, p.Refspecs = u.shas[2], []string{"+refs/heads/feature:refs/remotes/origin/feature"}
	p.get()
	run(t, u.path, "branch", "-m", "feature", "feature/one")
	p.Refspecs = []string{"+refs/heads/feature/one:refs/remotes/origin/feature/one"}
	p.get()
	require.Equal(t, "three", p.file())
}

func TestLeftovers(t *testing.T) {
	u := newUpstream(t, "sha1")
	u.write(t, "sparse/file", "always")
	u.commit(t, "three")
	p := newProject(t, u)
	p.get()
	p.script("git sparse-checkout set --no-cone /file; git config filter.evil.smudge 'touch " + p.Temp + "-ran; cat'; test ! -e sparse")
	repository := filepath.Join(p.Dir, ".git")
	left := map[string]string{
		"index.lock": "", "shallow.lock": "", "HEAD.lock": "", "packed-refs.lock": "", "config.lock": "", "ORIG_HEAD.lock": "",
		"objects/maintenance.lock": "", "gc.pid": "1 nowhere", "objects/pack/tmp_pack_Xy": "half", "refs/pipelines/7.lock": "",
		"hooks/post-checkout": "#!/bin/sh\ntouch " + p.Temp + "-ran\n", "info/attributes": "* filter=evil\n",
		"commondir": "../../evil\n", "config.worktree": "[core]\n\tfsmonitor = touch " + p.Temp + "-ran\n",
	}
	p.script("git replace HEAD HEAD~1; cp -r .git ../evil; git config --file ../evil/config core.fsmonitor 'touch " + p.Temp + "-ran'")
	for name, text := range left {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(repository, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(repository, name), []byte(text), 0o755))
	}
	p.get()
	p.noWarnings()
	for name := range left {
		require.NoFileExists(t, filepath.Join(repository, name))
	}
	require.NoFileExists(t, p.Temp+"-ran")
	require.Equal(t, "always", p.read("sparse/file"))

	// A link in the folder's place leads nowhere else.
	other := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(other, "kept"), nil, 0o644))
	require.NoError(t, os.RemoveAll(p.Dir))
	require.NoError(t, os.Symlink(other, p.Dir))
	p.get()
	entries, err := os.ReadDir(other)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.Equal(t, "three", p.file())
}

func TestMaintenanceIsDoneWhenItIsDue(t *testing.T) {
	u := newUpstream(t, "sha1")
	p := newProject(t, u)
	p.Depth = 0
	p.get()
	require.Contains(t, strings.Join(p.envs[0], "\n"), "'maintenance.auto=false'")
	for i := range 60 {
		name := fmt.Sprintf("%s/.git/objects/17/%038x", p.Dir, i)
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
		require.NoError(t, os.WriteFile(name, nil, 0o444))
	}
	require.Error(t, exec.Command("git", "-C", p.Dir, "fsck").Run(), "what was written are no objects")
	p.get()
	require.NotContains(t, strings.Join(p.envs[0], "\n"), "maintenance.auto")
}

// another is a user that is not root, for tests that begin as root.
var another = &syscall.Credential{Uid: 65534, Gid: 65534}

func TestFilesForAnotherUser(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can be two users")
	}
	main, _, _ := withSubmodules(t, "sha1")
	p := newProject(t, main)
	p.Submodules = git.NormalSubmodules
	p.SharedFiles = true
	old := syscall.Umask(0)
	p.get()
	syscall.Umask(old)
	reachable(t, p.Dir)
	command := func(environment []string) (string, error) {
		c := exec.Command("/bin/sh", "-ec", "git status --short; touch file lib/new; rm lib/file; git commit -q --allow-empty -m mine; "+
			"git -C lib status --short; git fetch -q origin; mkdir -p a/b; git rev-parse HEAD")
		c.Dir, c.SysProcAttr = p.Dir, &syscall.SysProcAttr{Credential: another}
		c.Env = append([]string{
			"PATH=" + os.Getenv("PATH"), "HOME=/", "CI_JOB_TOKEN=" + token, "GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b",
			"GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b",
		}, environment...)
		out, err := c.CombinedOutput()
		return string(out), err
	}
	out, err := command(nil)
	require.Error(t, err)
	require.Contains(t, out, "dubious ownership")
	var environment []string
	for _, kv := range p.ScriptEnvironment() {
		environment = append(environment, kv[0]+"="+kv[1])
	}
	out, err = command(environment)
	require.NoError(t, err, out)

	// The next job takes over what the other user made.
	syscall.Umask(0)
	p.get()
	syscall.Umask(old)
	p.noWarnings()
	require.NoDirExists(t, filepath.Join(p.Dir, "a"))
	require.Equal(t, "lib two", p.read("lib/file"))

	p.Environment = append(p.Environment, "GIT_CONFIG_COUNT=2")
	require.Equal(t, [][2]string{
		{"GIT_CONFIG_COUNT", "3"}, {"GIT_CONFIG_KEY_2", "safe.directory"}, {"GIT_CONFIG_VALUE_2", "*"},
	}, p.ScriptEnvironment())
	p.SharedFiles = false
	require.Empty(t, p.ScriptEnvironment())
}

// reachable opens the test's own folders on the way to path.
func reachable(t *testing.T, path string) {
	t.Helper()
	for ; strings.HasPrefix(path, os.TempDir()+"/"); path = filepath.Dir(path) {
		info, err := os.Stat(path)
		require.NoError(t, err)
		if info.Mode().Perm()&0o005 != 0o005 {
			require.NoError(t, os.Chmod(path, info.Mode().Perm()|0o055))
		}
	}
}

// A user without root's rights meets folders that it must not write to, such as those of Go's module cache.
func TestFoldersThatCannotBeWrittenTo(t *testing.T) {
	u := newUpstream(t, "sha1")
	p := newProject(t, u)
	p.get()
	chown := func() {
		require.NoError(t, filepath.WalkDir(p.Dir, func(path string, _ os.DirEntry, err error) error {
			if err == nil && p.as != nil {
				err = os.Lchown(path, int(another.Uid), int(another.Gid))
			}
			return err
		}))
	}
	if os.Getuid() == 0 { // root could write to them
		p.as = another
		reachable(t, p.Dir)
		reachable(t, strings.TrimPrefix(p.Environment[1], "HOME="))
	}
	readOnly := filepath.Join(p.Dir, "mod", "cache@v1")
	require.NoError(t, os.MkdirAll(readOnly, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(readOnly, "go.mod"), nil, 0o444))
	require.NoError(t, os.Chmod(readOnly, 0o555))
	chown()
	p.get()
	require.NoDirExists(t, readOnly)
	require.Contains(t, p.said, "Permission denied")
	require.Equal(t, "three", p.file())
}
