//go:build unix

package git

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// tidy removes from the repository what an earlier job may have left: locks and half-written files of git commands that were
// killed, and hooks, configuration and attributes with commands that this job did not ask for. It does so in the
// repositories of submodules too, and gives these new configuration.
func (s *Sources) tidy(repository string, r remote) error {
	if err := tidyOne(repository); err != nil {
		return err
	}
	list, err := modules(repository)
	if err != nil || len(list) == 0 {
		return err
	}
	core, err := s.core(repository)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(s.Dir)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	s.worktrees = nil
	for _, module := range list {
		if isReftable(module) { // its configuration would have to say so; it is fetched anew
			if err := removeTree(module); err != nil {
				return err
			}
			continue
		}
		text, err := readSmall(filepath.Join(module, "config"))
		if err != nil {
			text = ""
		}
		old := readConfig(text)
		url := s.moduleURL(old)
		worktree := s.moduleWorktree(root, module, old)
		if err := tidyOne(module); err != nil {
			return err
		}
		var c configText
		c.WriteString(core)
		c.section("core", "", [2]string{"bare", "false"}, [2]string{"logAllRefUpdates", "true"})
		if worktree != "" {
			c.section("core", "", [2]string{"worktree", worktree})
		}
		s.writeDefaults(&c)
		origin := [][2]string{{"fetch", fetchAll}}
		if url != "" {
			origin = append(origin, [2]string{"url", url})
		}
		if hasPromised(module) {
			origin = append(origin, [2]string{"promisor", "true"})
		}
		c.section("remote", "origin", origin...)
		r.write(&c, s.CAFile)
		if err := writeNew(filepath.Join(module, "config"), c.String()); err != nil {
			return err
		}
	}
	return nil
}

// moduleURL is the address that a submodule's repository has been fetched from. git submodule sync sets it anew, but only
// for submodules that have a working copy; the others are fetched from here. A job may have written any address, so it is
// good for commits only, whose content is in their name, and not for branches (--remote).
func (s *Sources) moduleURL(config []setting) string {
	for _, flag := range s.SubmoduleUpdateFlags {
		if strings.EqualFold(flag, "--remote") {
			return ""
		}
	}
	url := lastValue(config, "remote", "origin", "url")
	for _, scheme := range []string{"https://", "http://", "ssh://", "file://", "git@", "/"} {
		if strings.HasPrefix(url, scheme) {
			return url
		}
	}
	return ""
}

// moduleWorktree is the value of core.worktree that a submodule's repository had, if the folder is within the project and
// knows of the repository. It notes the folder.
func (s *Sources) moduleWorktree(root *os.Root, module string, config []setting) string {
	value := lastValue(config, "core", "", "worktree")
	if value == "" || filepath.IsAbs(value) {
		return ""
	}
	path, err := filepath.Rel(s.Dir, filepath.Join(module, value))
	if err != nil || !isSubmodulePath(path) || gitFile(root, s.Dir, path) != module {
		return ""
	}
	s.worktrees = append(s.worktrees, path)
	return value
}

func tidyOne(repository string) error {
	for _, name := range []string{
		"config", "config.worktree", "commondir", "hooks", "info/attributes", "info/grafts", "gc.pid", "objects/maintenance.lock",
		"objects/info/commit-graph.lock", "objects/info/commit-graphs/commit-graph-chain.lock",
	} {
		if err := os.RemoveAll(filepath.Join(repository, name)); err != nil {
			return err
		}
	}
	// Files that a sparse checkout left out come back only if the index forgets that they are to be left out.
	sparse := filepath.Join(repository, "info", "sparse-checkout")
	if _, err := os.Lstat(sparse); err == nil {
		if err := errors.Join(os.RemoveAll(sparse), os.RemoveAll(filepath.Join(repository, "index"))); err != nil {
			return err
		}
	}
	remove := func(dir string, match func(string) bool) error {
		entries, err := os.ReadDir(filepath.Join(repository, dir))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			if !e.IsDir() && match(e.Name()) {
				if err := os.Remove(filepath.Join(repository, dir, e.Name())); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := remove("", isLock); err != nil {
		return err
	}
	if err := remove("objects/pack", func(name string) bool { return strings.HasPrefix(name, "tmp_") || isLock(name) }); err != nil {
		return err
	}
	return filepath.WalkDir(filepath.Join(repository, "refs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !isLock(path) {
			return nil //nolint:nilerr // what cannot be looked at is git's to complain about
		}
		return os.Remove(path)
	})
}

func isLock(name string) bool { return strings.HasSuffix(name, ".lock") }

const (
	maxModules = 10_000
	maxDepth   = 64
)

// modules returns the repositories of submodules that repository keeps, and of theirs. Names of submodules may have
// slashes. Links are not followed.
func modules(repository string) ([]string, error) {
	var list []string
	var walk func(dir string, depth int) error
	walk = func(dir string, depth int) error {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || depth > maxDepth {
			return err
		}
		for _, e := range entries {
			if !e.IsDir() {
				continue
			}
			path := filepath.Join(dir, e.Name())
			if isRepository(path) {
				if list = append(list, path); len(list) > maxModules {
					return errors.New("there are too many submodules")
				}
				path = filepath.Join(path, "modules")
			}
			if err := walk(path, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	dir := filepath.Join(repository, "modules")
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
		return nil, nil //nolint:nilerr // there are none
	}
	return list, walk(dir, 0)
}

func isRepository(dir string) bool {
	for _, name := range []string{"HEAD", "objects"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			return false
		}
	}
	return true
}

// isReftable says whether references are not in files, as git clone makes it where git is configured so.
func isReftable(repository string) bool {
	_, err := os.Lstat(filepath.Join(repository, "reftable"))
	return err == nil
}

// hasPromised says whether some objects were left out when the repository was fetched (--filter): git may then fetch
// them later.
func hasPromised(repository string) bool { return packs(repository, ".promisor") > 0 }

func packs(repository, suffix string) int {
	entries, _ := os.ReadDir(filepath.Join(repository, "objects", "pack"))
	n := 0
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), suffix) {
			n++
		}
	}
	return n
}

// needsMaintenance says whether git would pack or prune the repository, by the same limits as git gc --auto. If not, git need
// not be asked: it takes a process.
func needsMaintenance(repository string) bool {
	const maxPacks, maxLoose = 50, 6700 / 256
	loose, _ := os.ReadDir(filepath.Join(repository, "objects", "17"))
	if len(loose) > maxLoose {
		return true
	}
	return packs(repository, ".pack") > maxPacks
}
