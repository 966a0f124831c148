//go:build unix

package git_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/job/git"
)

// as returns a PATH in which git says that it is of this version.
func as(t *testing.T, version string) string {
	t.Helper()
	program, err := exec.LookPath("git")
	require.NoError(t, err)
	dir := t.TempDir()
	script := "#!/bin/sh\nif test \"$1\" = --version; then echo git version " + version + "; else exec " + program + " \"$@\"; fi\n"
	require.NoError(t, os.WriteFile(filepath.Join(dir, "git"), []byte(script), 0o755))
	return dir + ":" + os.Getenv("PATH")
}

func TestNativeClone(t *testing.T) {
	u := newUpstream(t, "sha1")
	p := newProject(t, u)
	p.Strategy, p.NativeClone, p.CloneFlags = git.Clone, true, []string{"--no-tags", "--quiet"}
	p.Environment[0] = "PATH=" + as(t, "2.49.0.windows.1")
	for range 2 {
		p.get()
		require.Equal(t, []string{
			"git --version",
			"git clone --no-checkout " + u.url + " " + p.Dir + " --template " + p.Temp + "/git-template --depth 2 --branch main --no-tags --quiet",
			"git -c submodule.recurse=false checkout -f -q " + u.last(),
		}, p.argv)
		require.Equal(t, "Cloning repository for main with git depth set to 2...", p.notices[0])
		require.Equal(t, "three", p.file())
	}
	require.Empty(t, onDisk(t, p.Secrets(), p.Dir, p.Temp))
	require.Zero(t, u.vain())
	p.script("git fetch origin main")

	// The branch has moved on since the pipeline was made.
	for _, text := range []string{"four", "five", "six"} {
		u.commit(t, text)
	}
	p.get()
	require.Equal(t, "three", p.file())
	require.Contains(t, p.notices, "Fetching changes with git depth set to 2...")

	p.Depth, p.CloneFlags = 0, nil
	p.get()
	require.Equal(t, "Cloning repository for main...", p.notices[0])
	require.Equal(t, "6", run(t, p.Dir, "rev-list", "--count", "origin/main"))

	// A git that cannot do it fetches.
	p.Environment[0] = "PATH=" + as(t, "2.48.9")
	p.get()
	require.Equal(t, "Fetching changes...", p.notices[0])
	require.Equal(t, "three", p.file())
}

func TestAPartialClone(t *testing.T) {
	u := newUpstream(t, "sha1")
	p := newProject(t, u)
	p.FetchFlags = []string{"--filter=blob:none", "--quiet"}
	for _, text := range []string{"three", "four", "five"} {
		p.get()
		p.noWarnings()
		require.Equal(t, text, p.file())
		u.commit(t, map[string]string{"three": "four", "four": "five", "five": "six"}[text])
		p.wants(u)
	}
	p.FetchFlags = nil
	p.get()
	p.noWarnings()
	require.Equal(t, "six", p.file())
	p.script("git log -p")
	require.Zero(t, u.vain())
}
