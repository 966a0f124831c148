//go:build unix

package git_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/job/git"
)

// withSubmodules is a project with a submodule lib, that has a submodule deep, and a submodule other of a public server
// elsewhere.
func withSubmodules(t testing.TB, format string) (main, lib, other *repository) {
	t.Helper()
	main = newUpstream(t, format)
	deep := main.repository(t, "group/deep", format)
	deep.commit(t, "deep one")
	lib = main.repository(t, "group/lib", format)
	lib.commit(t, "lib one")
	lib.commit(t, "lib two")
	lib.submodule(t, "deep", "../deep.git", deep)
	elsewhere := newServer(t)
	elsewhere.public = true
	other = elsewhere.repository(t, "some/other", format)
	other.commit(t, "other one")
	main.submodule(t, "lib", "../lib.git", lib)
	main.submodule(t, "other", other.url, other)
	return main, lib, other
}

// submodule adds one at a path, or moves it to the last commit of sub.
func (r *repository) submodule(t testing.TB, path, url string, sub *repository) {
	t.Helper()
	run(t, r.path, "config", "--file", ".gitmodules", "submodule."+path+".path", path)
	run(t, r.path, "config", "--file", ".gitmodules", "submodule."+path+".url", url)
	require.NoError(t, os.MkdirAll(filepath.Join(r.path, path), 0o755))
	run(t, r.path, "add", ".gitmodules")
	run(t, r.path, "update-index", "--add", "--cacheinfo", "160000,"+sub.last()+","+path)
	run(t, r.path, "commit", "-q", "-m", "submodule "+path)
	r.shas = append(r.shas, run(t, r.path, "rev-parse", "HEAD"))
}

// noWarnings says that nothing went wrong on the way.
func (p *project) noWarnings() {
	p.t.Helper()
	require.NotContains(p.t, strings.Join(p.notices, "\n"), "WARNING", p.said)
}

func TestSubmodules(t *testing.T) {
	for _, format := range []string{"sha1", "sha256"} {
		t.Run(format, func(t *testing.T) {
			main, lib, other := withSubmodules(t, format)
			p := newProject(t, main)
			p.ObjectFormat, p.Submodules, p.SubmoduleDepth = format, git.NormalSubmodules, 1
			p.get()
			require.Equal(t, "lib two", p.read("lib/file"))
			require.Equal(t, "other one", p.read("other/file"))
			require.NoFileExists(t, filepath.Join(p.Dir, "lib", "deep", "file"))
			require.Equal(t, "1", run(t, filepath.Join(p.Dir, "lib"), "rev-list", "--count", "HEAD"))
			require.Equal(t, []string{
				"Updating/initializing submodules with git depth set to 1...", "Updated submodules",
			}, p.notices[len(p.notices)-2:])
			require.Len(t, p.argv, 3, "no process more than needed")
			require.Contains(t, p.said, "Submodule 'lib' ("+main.server.url+"/group/lib.git) registered for path 'lib'")
			headers, _ := other.seen()
			require.NotEmpty(t, headers)
			for _, h := range headers {
				require.Empty(t, h.Get("Authorization"), "credentials are for one server")
			}

			// The next job wants more, and finds what one that was killed left behind.
			sha := lib.commit(t, "lib three")
			main.submodule(t, "lib", "../lib.git", lib)
			module := filepath.Join(p.Dir, ".git", "modules", "lib")
			for name, text := range map[string]string{
				module + "/index.lock": "", module + "/HEAD.lock": "", module + "/refs/heads/main.lock": "",
				module + "/hooks/post-checkout": "#!/bin/sh\ntouch " + p.Dir + "/../hooked\n",
				p.Dir + "/lib/untracked":        "", p.Dir + "/lib/file": "changed",
			} {
				require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o755))
				require.NoError(t, os.WriteFile(name, []byte(text), 0o755))
			}
			require.NoError(t, os.WriteFile(module+"/config", []byte(read(t, module+"/config")+"[core]\n\tfsmonitor = touch "+p.Dir+"/../watched\n"), 0o644))
			p.Submodules, p.SubmoduleDepth = git.RecursiveSubmodules, 0
			p.wants(main)
			p.get()
			p.noWarnings()
			require.Equal(t, "lib three", p.read("lib/file"))
			require.Equal(t, sha, run(t, filepath.Join(p.Dir, "lib"), "rev-parse", "HEAD"))
			require.Equal(t, "deep one", p.read("lib/deep/file"))
			require.NoFileExists(t, filepath.Join(p.Dir, "lib", "untracked"))
			require.NoFileExists(t, filepath.Join(p.Dir, "..", "hooked"))
			require.NoFileExists(t, filepath.Join(p.Dir, "..", "watched"))
			require.Contains(t, p.notices, "Updating/initializing submodules recursively...")
			require.Zero(t, main.vain())

			// Files of a submodule that the job changed go back at the end, too.
			require.NoError(t, os.WriteFile(filepath.Join(p.Dir, "lib", "deep", "file"), []byte("changed"), 0o644))
			require.NoError(t, os.WriteFile(filepath.Join(p.Dir, "lib", "untracked"), nil, 0o644))
			require.NoError(t, p.CleanUp(t.Context()), p.said)
			require.Equal(t, "deep one", p.read("lib/deep/file"))
			require.NoFileExists(t, filepath.Join(p.Dir, "lib", "untracked"))

			// After a failed attempt all files go, and come back without another download of the submodule.
			require.NoError(t, p.ClearWorktree(t.Context()))
			main.seen()
			p.get()
			p.noWarnings()
			require.Equal(t, "deep one", p.read("lib/deep/file"))
			_, requests := main.seen()
			require.NotEmpty(t, requests)
			require.NotContains(t, strings.Join(requests, "\n"), "/group/lib.git")
		})
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	require.NoError(t, err)
	return string(b)
}

func TestSubmodulePaths(t *testing.T) {
	main, _, _ := withSubmodules(t, "sha1")
	for paths, want := range map[string][2]bool{
		"lib": {true, false}, "other": {false, true}, ":(exclude)other": {true, false}, "lib other": {true, true},
	} {
		p := newProject(t, main)
		p.Submodules, p.SubmodulePaths = git.NormalSubmodules, strings.Fields(paths)
		p.get()
		p.noWarnings()
		for i, name := range []string{"lib", "other"} {
			_, err := os.Stat(filepath.Join(p.Dir, name, "file"))
			require.Equal(t, want[i], err == nil, "%s with %s", name, paths)
		}
	}
}

func TestSubmodulesWithSSHAddresses(t *testing.T) {
	main, lib, _ := withSubmodules(t, "sha1")
	for address, server := range map[string]git.Server{
		"git@gitlab.example:group/lib.git":         {Host: "gitlab.example"},
		"ssh://git@ssh.example:2222/group/lib.git": {Host: "gitlab.example", SSHHost: "ssh.example", SSHPort: "2222"},
	} {
		main.submodule(t, "lib", address, lib)
		p := newProject(t, main)
		p.Submodules, p.ForceHTTPS, p.Server = git.NormalSubmodules, true, server
		p.get()
		p.noWarnings()
		require.Equal(t, "lib two", p.read("lib/file"))
		p.script("cd lib; git fetch origin")
	}
}

func TestSubmodulesComeAndGo(t *testing.T) {
	main, lib, other := withSubmodules(t, "sha1")
	with := main.last()
	run(t, main.path, "rm", "-q", "-r", "--cached", "lib", "other", ".gitmodules")
	require.NoError(t, os.RemoveAll(filepath.Join(main.path, ".gitmodules")))
	main.write(t, "lib/tracked", "an ordinary file")
	without := main.commit(t, "no submodule")
	run(t, main.path, "rm", "-q", "-r", "lib")
	main.submodule(t, "lib", other.url, other)
	moved := main.last()

	p := newProject(t, main)
	p.Submodules = git.RecursiveSubmodules
	at := func(sha string) {
		p.SHA, p.Refspecs = sha, []string{"+" + sha + ":refs/pipelines/7"}
		p.get()
	}
	at(with)
	require.Equal(t, "lib two", p.read("lib/file"))
	for range 2 {
		at(without)
		p.noWarnings()
		require.Equal(t, "an ordinary file", p.read("lib/tracked"))
		require.NoFileExists(t, filepath.Join(p.Dir, "lib", "file"))
		require.NoFileExists(t, filepath.Join(p.Dir, "lib", ".git"))
		require.Equal(t, p.Dir, p.script("cd lib; git rev-parse --show-toplevel"))
		at(moved)
		require.Equal(t, "other one", p.read("lib/file"))
		at(with)
		require.Equal(t, "lib two", p.read("lib/file"))
		require.Equal(t, "deep one", p.read("lib/deep/file"))
	}
	lib.commit(t, "lib three")
	main.submodule(t, "lib", "../lib.git", lib)
	at(without)
	p.wants(main)
	p.get()
	p.noWarnings()
	require.Equal(t, "lib three", p.read("lib/file"))
}

func TestFilesInTheWayOfASubmodule(t *testing.T) {
	main, _, _ := withSubmodules(t, "sha1")
	p := newProject(t, main)
	p.get()
	require.NoError(t, os.WriteFile(filepath.Join(p.Dir, "lib", "untracked"), nil, 0o644))
	p.Submodules = git.NormalSubmodules
	p.get()
	require.Contains(t, p.notices, "WARNING: Updating submodules failed. Retrying...")
	require.Equal(t, "lib two", p.read("lib/file"))
	require.NoFileExists(t, filepath.Join(p.Dir, "lib", "untracked"))
}

func TestGitmodulesMayNameAnOrdinaryFolder(t *testing.T) {
	main, lib, _ := withSubmodules(t, "sha1")
	main.submodule(t, "plain", "../lib.git", lib)
	run(t, main.path, "rm", "-q", "--cached", "plain")
	main.write(t, "plain/tracked", "kept")
	main.commit(t, "plain")
	p := newProject(t, main)
	p.get()
	require.NoError(t, os.WriteFile(filepath.Join(p.Dir, "lib", "untracked"), nil, 0o644)) // so that folders are cleared
	p.Submodules = git.NormalSubmodules
	p.get()
	require.Equal(t, "kept", p.read("plain/tracked"))
	require.Equal(t, "lib two", p.read("lib/file"))
}

func TestASubmoduleThatCannotBeGot(t *testing.T) {
	main, lib, _ := withSubmodules(t, "sha1")
	lib.shas = append(lib.shas, strings.Repeat("1", 40))
	main.submodule(t, "lib", "../lib.git", lib)
	p := newProject(t, main)
	p.Submodules = git.NormalSubmodules
	var exit *git.ExitError
	require.ErrorAs(t, p.Get(t.Context()), &exit)
	require.Equal(t, "submodule update", exit.Command)
	require.NotZero(t, exit.Code)
	require.Equal(t, 2, strings.Count(strings.Join(p.argv, "\n"), "submodule update"), "it is tried twice")
	require.Equal(t, "WARNING: Updating submodules failed. Retrying...", p.notices[len(p.notices)-1])
}

func TestSubmodulesAtTheirBranches(t *testing.T) {
	main, lib, _ := withSubmodules(t, "sha1")
	run(t, lib.path, "checkout", "-q", "-b", "dev")
	lib.commit(t, "lib dev")
	run(t, lib.path, "checkout", "-q", "main")
	run(t, main.path, "config", "--file", ".gitmodules", "submodule.lib.branch", "dev")
	main.commit(t, "dev")
	p := newProject(t, main)
	p.Submodules, p.SubmoduleUpdateFlags, p.SubmoduleDepth = git.NormalSubmodules, []string{"--remote"}, 1
	p.get()
	require.Equal(t, "lib dev", p.read("lib/file"))
	p.get()
	require.Equal(t, "lib dev", p.read("lib/file"))
}

// A job must not be able to bring a later one to run its commands.
func TestForeignRepositoriesInPlaceOfSubmodules(t *testing.T) {
	main, _, _ := withSubmodules(t, "sha1")
	p := newProject(t, main)
	p.Submodules = git.RecursiveSubmodules
	p.get()
	for _, place := range []string{"lib", "lib/deep"} {
		for _, kind := range []string{"file", "folder"} {
			t.Run(place+" "+kind, func(t *testing.T) {
				evil := filepath.Join(p.Dir, "..", "evil")
				p.script("rm -rf " + evil + "; git init -q " + evil + "; cd " + evil + "; git commit -q --allow-empty -m x; " +
					"git config core.fsmonitor 'touch " + p.Temp + "-ran'; rm -rf $OLDPWD/" + place + "/.git")
				if kind == "file" {
					p.script("echo gitdir: " + evil + "/.git >" + place + "/.git")
				} else {
					p.script("cp -r " + evil + "/.git " + place + "/")
				}
				p.get()
				require.NoFileExists(t, p.Temp+"-ran")
				require.Equal(t, "lib two", p.read("lib/file"))
				require.Equal(t, "deep one", p.read("lib/deep/file"))
			})
		}
	}
}

func TestSubmodulesAreLeftAlone(t *testing.T) {
	main, _, _ := withSubmodules(t, "sha1")
	p := newProject(t, main)
	p.Submodules = git.NormalSubmodules
	p.get()
	p.Submodules = git.NoSubmodules
	p.get()
	require.Equal(t, "Skipping Git submodules setup", p.notices[len(p.notices)-1])
	require.Len(t, p.argv, 3)
	require.Equal(t, "lib two", p.read("lib/file"))
	p.script("git submodule update --init; cd lib; git fetch origin")

	u := newUpstream(t, "sha1")
	p = newProject(t, u)
	p.Submodules = git.RecursiveSubmodules
	p.get()
	require.Len(t, p.argv, 2, "there are none")
	require.Equal(t, []string{"Updating/initializing submodules recursively...", "Updated submodules"}, p.notices[len(p.notices)-2:])
}
