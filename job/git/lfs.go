//go:build unix

package git

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// attributed is what the attributes of a large file have.
const attributed = "filter=lfs"

// findLFS is a command that succeeds, without a word, where attributes for large files are in the index.
var findLFS = []string{"grep", "--cached", "-q", "-F", "-e", attributed, "--", ":(glob)**/.gitattributes"}

// lfsFilters are what `git lfs install` configures; without them git lfs would not put files in place.
var lfsFilters = [][2]string{
	{"filter.lfs.clean", "git-lfs clean -- %f"},
	{"filter.lfs.smudge", "git-lfs smudge -- %f"},
	{"filter.lfs.process", "git-lfs filter-process"},
	{"filter.lfs.required", "true"},
}

// pullLFS gets the large files of the checked out commit. gitlab-runner asks git lfs each time; here it is asked if there
// are attributes for it.
func (s *Sources) pullLFS(ctx context.Context, r remote, fresh bool) error {
	if s.SkipLFS {
		return nil
	}
	attributes, _ := readSmall(filepath.Join(s.Dir, ".gitattributes"))
	found := strings.Contains(attributes, attributed)
	if !s.hasLFS() {
		if found {
			s.Warn("The repository uses Git LFS, and git-lfs is not installed where sources are got: its large files are pointers.")
		}
		return nil
	}
	if !found && mayHaveAttributes(filepath.Join(s.Dir, ".git", "index"), attributes != "") {
		err := s.git(ctx, fresh, s.environment(), s.Dir, findLFS...)
		if exit, ok := errors.AsType[*ExitError](err); ok && exit.Code == 1 {
			return nil
		}
		if err != nil {
			return err
		}
		found = true
	}
	if !found {
		return nil
	}
	return s.git(ctx, fresh, s.lfsEnvironment(r), s.Dir, "lfs", "pull")
}

// pullSubmodulesLFS does the same in the submodules, whose repositories list holds.
func (s *Sources) pullSubmodulesLFS(ctx context.Context, r remote, fresh bool, list []string) error {
	if s.SkipLFS || !s.hasLFS() {
		return nil
	}
	for _, module := range list {
		if !mayHaveAttributes(filepath.Join(module, "index"), false) {
			continue
		}
		s.Notice("Pulling LFS files...")
		args := append([]string{"submodule"}, s.recursively("foreach", "if "+shellLine(findLFS)+"; then git lfs pull; fi")...)
		return s.git(ctx, fresh, s.lfsEnvironment(r), s.Dir, args...)
	}
	return nil
}

// lfsEnvironment is that of git lfs. It asks the credential helper: the server of a large file gets an Authorization header
// of its own, and there must not be two.
func (s *Sources) lfsEnvironment(r remote) []string {
	env := s.environment(lfsFilters...)
	if r.password == "" || len(r.hosts) == 0 {
		return env
	}
	const name = "CI_JOB_TOKEN="
	for i, kv := range env {
		if strings.HasPrefix(kv, name) {
			env[i] = name + r.password
			return env
		}
	}
	return append(env, name+r.password)
}

// hasLFS says whether git lfs can be run.
func (s *Sources) hasLFS() bool {
	for _, kv := range s.Environment {
		path, ok := strings.CutPrefix(kv, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(path) {
			info, err := os.Stat(filepath.Join(dir, "git-lfs"))
			if err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0 {
				return true
			}
		}
		return false
	}
	return false
}

// mayHaveAttributes looks into an index for files with attributes, but for one in its first folder if that is known. It says
// yes if it cannot tell.
func mayHaveAttributes(index string, known bool) bool {
	const most = 16 << 20 // some 150,000 files
	f, err := os.OpenFile(index, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() < 12 || info.Size() > most {
		return true
	}
	b := make([]byte, info.Size())
	if n, err := f.ReadAt(b, 0); n < len(b) || err != nil {
		return true
	}
	// Version 4 writes only the end of a name, and a split index is in two files.
	if !bytes.HasPrefix(b, []byte("DIRC\x00\x00\x00")) || b[7] != 2 && b[7] != 3 || bytes.Contains(b, []byte("link\x00\x00")) {
		return true
	}
	n := bytes.Count(b, []byte(".gitattributes\x00"))
	if known {
		n--
	}
	return n > 0
}
