//go:build unix

package git_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/internal/testbed"
	"github.com/switchyard-ci/switchyard/job/git"
)

// largeFiles is a Git LFS server: the batch API, and downloads with an authorization of their own, as GitLab has them.
type largeFiles map[string]string

const ofTheFile = "Basic b2Y6dGhlIGZpbGU="

func (l largeFiles) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodGet {
		content, ok := l[path.Base(r.URL.Path)]
		if h := r.Header["Authorization"]; !ok || len(h) != 1 || h[0] != ofTheFile {
			http.Error(w, fmt.Sprintf("no such file for %q", h), http.StatusForbidden)
			return
		}
		_, _ = w.Write([]byte(content))
		return
	}
	var question struct {
		Objects []struct {
			OID  string `json:"oid"`
			Size int64  `json:"size"`
		} `json:"objects"`
	}
	if err := json.NewDecoder(r.Body).Decode(&question); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	type object map[string]any
	objects := []object{}
	for _, o := range question.Objects {
		if _, ok := l[o.OID]; !ok {
			objects = append(objects, object{"oid": o.OID, "size": o.Size, "error": object{"code": 404, "message": "it is gone"}})
			continue
		}
		objects = append(objects, object{"oid": o.OID, "size": o.Size, "actions": object{"download": object{
			"href": "http://" + r.Host + r.URL.Path + "/" + o.OID, "header": object{"Authorization": ofTheFile},
		}}})
	}
	w.Header().Set("Content-Type", "application/vnd.git-lfs+json")
	_ = json.NewEncoder(w).Encode(object{"transfer": "basic", "objects": objects})
}

// large commits a large file: content is on the LFS server, and in the repository is what points to it.
func (l largeFiles) large(t *testing.T, r *repository, name, content string) {
	t.Helper()
	sum := sha256.Sum256([]byte(content))
	oid := hex.EncodeToString(sum[:])
	l[oid] = content
	r.write(t, filepath.Join(filepath.Dir(name), ".gitattributes"), "*.bin filter=lfs diff=lfs merge=lfs -text\n")
	r.write(t, name, fmt.Sprintf("version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n", oid, len(content)))
	r.commit(t, "large "+name)
}

// withoutLFS is a PATH with what git needs, but git-lfs.
func withoutLFS(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"git", "sh"} {
		program, err := exec.LookPath(name)
		require.NoError(t, err)
		require.NoError(t, os.Symlink(program, filepath.Join(dir, name)))
	}
	return dir
}

func TestLargeFiles(t *testing.T) {
	testbed.Need(t, testbed.GitLFS)
	main, lib, _ := withSubmodules(t, "sha1")
	large := largeFiles{}
	main.lfs = large
	p := newProject(t, main)
	p.get()
	require.NotContains(t, strings.Join(p.argv, "\n"), "lfs", "there are none")

	large.large(t, main, "a.bin", "first")
	p.wants(main)
	p.get()
	require.Equal(t, "first", p.read("a.bin"))
	require.Equal(t, "git lfs pull", p.argv[len(p.argv)-1])
	require.NotContains(t, strings.Join(p.argv, "\n"), "grep", "it is seen at once")
	p.noWarnings()

	// Attributes may be deeper.
	run(t, main.path, "rm", "-q", ".gitattributes", "a.bin")
	large.large(t, main, "deep/er/b.bin", "second")
	p.wants(main)
	p.get()
	require.Equal(t, "second", p.read("deep/er/b.bin"))
	p.get()
	require.Equal(t, "second", p.read("deep/er/b.bin"))

	main.write(t, "deep/er/.gitattributes", "*.txt text\n")
	main.commit(t, "other attributes")
	p.wants(main)
	p.get()
	require.Contains(t, p.argv[len(p.argv)-1], "git grep")
	require.Contains(t, p.read("deep/er/b.bin"), "oid sha256:")

	// And in submodules.
	large.large(t, lib, "c.bin", "third")
	main.submodule(t, "lib", "../lib.git", lib)
	p.wants(main)
	p.Submodules = git.NormalSubmodules
	p.get()
	require.Equal(t, "third", p.read("lib/c.bin"))
	require.Contains(t, p.notices, "Pulling LFS files...")
	require.Empty(t, onDisk(t, p.Secrets(), p.Dir, p.Temp))
	require.NotContains(t, strings.Join(p.argv, "\n"), token)
}

func TestLargeFilesThatAreNotGot(t *testing.T) {
	testbed.Need(t, testbed.GitLFS)
	u := newUpstream(t, "sha1")
	large := largeFiles{}
	u.lfs = large
	large.large(t, u, "a.bin", "first")
	p := newProject(t, u)
	p.SkipLFS = true
	p.Environment = append(p.Environment, "GIT_LFS_SKIP_SMUDGE=true")
	p.get()
	p.noWarnings()
	require.Contains(t, p.read("a.bin"), "oid sha256:")
	require.Contains(t, p.envs[0], "GIT_LFS_SKIP_SMUDGE=true")

	p.SkipLFS = false
	p.Environment[0] = "PATH=" + withoutLFS(t)
	p.get()
	require.Contains(t, strings.Join(p.notices, "\n"), "WARNING: The repository uses Git LFS, and git-lfs is not installed")

	for oid := range large {
		delete(large, oid)
	}
	p.Environment[0] = "PATH=" + os.Getenv("PATH")
	var exit *git.ExitError
	require.ErrorAs(t, p.Get(t.Context()), &exit)
	require.Equal(t, "lfs pull", exit.Command)
}
