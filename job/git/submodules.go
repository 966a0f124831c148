//go:build unix

package git

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

func (s *Sources) submodules() bool {
	return s.Submodules == NormalSubmodules || s.Submodules == RecursiveSubmodules
}

// getSubmodules puts the submodules in place. What fails once is tried again, as in gitlab-runner, after what may be in the
// way was removed.
func (s *Sources) getSubmodules(ctx context.Context, r remote, fresh bool) error {
	s.tellSubmodules()
	if list, err := s.listSubmodules(); err != nil || len(list) == 0 {
		if err == nil {
			s.Notice("Updated submodules")
		}
		return err
	}
	repository := filepath.Join(s.Dir, ".git")
	had, err := modules(repository)
	if err != nil {
		return fmt.Errorf("look for submodules: %w", err)
	}
	if err := s.checkSubmodules(had); err != nil {
		return err
	}
	plain, fetching := s.environment(r.rewrites()...), s.fetching(r, had...)
	run := func(env []string, args ...string) error {
		return s.git(ctx, fresh, env, s.Dir, append([]string{"submodule"}, args...)...)
	}
	sync := s.withPaths(s.recursively("sync"))
	update := s.recursively("update", "--init")
	if s.SubmoduleDepth > 0 {
		update = append(update, "--depth", strconv.Itoa(s.SubmoduleDepth))
	}
	update = s.withPaths(append(update, s.SubmoduleUpdateFlags...))

	if len(had) > 0 || len(s.SubmodulePaths) > 0 { // otherwise update does it
		if err := run(plain, "init"); err != nil {
			return err
		}
	}
	if len(had) > 0 { // otherwise there is nothing yet that could have old addresses or files
		if err := run(plain, sync...); err != nil {
			return err
		}
		if err := s.cleanSubmodules(ctx, fresh, plain); err != nil {
			return err
		}
	}
	switch err := run(fetching, update...); {
	case err == nil:
		s.Notice("Updated submodules")
		if len(had) > 0 && s.Submodules == RecursiveSubmodules { // submodules of submodules are known only now
			err = run(plain, sync...)
		}
		if err != nil {
			return err
		}
	case ctx.Err() != nil:
		return err
	default:
		s.Warn("Updating submodules failed. Retrying...")
		if err := s.clearSubmoduleFolders(ctx, fresh); err != nil {
			return err
		}
		if slices.ContainsFunc(s.SubmoduleUpdateFlags, func(f string) bool { return strings.EqualFold(f, "--remote") }) {
			if err := run(fetching, s.recursively("foreach", "git fetch origin '"+fetchAll+"'")...); err != nil {
				return err
			}
		}
		for _, step := range []struct {
			env  []string
			args []string
		}{{plain, sync}, {fetching, update}, {plain, s.recursively("foreach", "git reset --hard")}} {
			if err := run(step.env, step.args...); err != nil {
				return err
			}
		}
		had = append(had, repository) // there may be files now that an update left half done
	}
	if len(had) > 0 {
		args := append([]string{"submodule"}, s.recursively("foreach", s.cleanCommand())...)
		if err := s.force(ctx, fresh, plain, args...); err != nil {
			return err
		}
	}
	return s.finishSubmodules(ctx, r, fresh)
}

// finishSubmodules gives submodules their credential helper and their large files.
func (s *Sources) finishSubmodules(ctx context.Context, r remote, fresh bool) error {
	list, err := modules(filepath.Join(s.Dir, ".git"))
	if err != nil {
		return fmt.Errorf("look for submodules: %w", err)
	}
	var c configText
	r.write(&c, s.CAFile)
	for _, module := range list {
		if err := appendConfig(filepath.Join(module, "config"), c.String()); err != nil {
			return fmt.Errorf("configure a submodule: %w", err)
		}
	}
	return s.pullSubmodulesLFS(ctx, r, fresh, list)
}

// appendConfig adds text to a configuration file that does not have it yet.
func appendConfig(name, text string) error {
	old, err := readSmall(name)
	if err != nil || strings.Contains(old, text) {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString("\n" + text)
	return errors.Join(err, f.Close())
}

func (s *Sources) tellSubmodules() {
	text := "Updating/initializing submodules"
	if s.Submodules == RecursiveSubmodules {
		text += " recursively"
	}
	if s.SubmoduleDepth > 0 {
		text += fmt.Sprintf(" with git depth set to %d", s.SubmoduleDepth)
	}
	s.Notice(text + "...")
}

// recursively are the arguments of one of git submodule's commands.
func (s *Sources) recursively(command string, args ...string) []string {
	list := []string{command}
	if s.Submodules == RecursiveSubmodules {
		list = append(list, "--recursive")
	}
	return append(list, args...)
}

func (s *Sources) withPaths(args []string) []string {
	if len(s.SubmodulePaths) == 0 {
		return args
	}
	return slices.Concat(args, []string{"--"}, s.SubmodulePaths)
}

func (s *Sources) cleanCommand() string {
	if len(s.CleanFlags) == 0 {
		return "git clean -ffdx"
	}
	return shellLine(append([]string{"clean"}, s.CleanFlags...))
}

// shellLine is a command of git for the shell in which git submodule foreach runs it.
func shellLine(args []string) string {
	var line strings.Builder
	line.WriteString("git")
	for _, arg := range args {
		line.WriteString(" '" + strings.ReplaceAll(arg, "'", `'\''`) + "'")
	}
	return line.String()
}

// cleanSubmodules brings submodules that are there back to what is checked out in them.
func (s *Sources) cleanSubmodules(ctx context.Context, fresh bool, env []string) error {
	args := s.recursively("foreach", s.cleanCommand()+" && git reset --hard")
	return s.force(ctx, fresh, env, append([]string{"submodule"}, args...)...)
}

// listSubmodules returns the folders that .gitmodules names.
func (s *Sources) listSubmodules() ([]string, error) {
	root, err := os.OpenRoot(s.Dir)
	if err != nil {
		return nil, fmt.Errorf("look for submodules: %w", err)
	}
	defer func() { _ = root.Close() }()
	return submodulesIn(root, "."), nil
}

func submodulesIn(root *os.Root, dir string) []string {
	name := filepath.Join(dir, ".gitmodules")
	if info, err := root.Lstat(name); err != nil || !info.Mode().IsRegular() {
		return nil
	}
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil
	}
	text, err := readRegular(f)
	if err != nil {
		return nil
	}
	var list []string
	for _, setting := range readConfig(text) {
		if setting.section == "submodule" && setting.key == "path" && isSubmodulePath(setting.value) {
			list = append(list, filepath.Clean(setting.value))
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// isSubmodulePath says whether a submodule can be there: within the project, and not in its repository.
func isSubmodulePath(path string) bool {
	if !filepath.IsLocal(path) || filepath.Clean(path) == "." {
		return false
	}
	for part := range strings.SplitSeq(path, "/") {
		if strings.EqualFold(part, ".git") {
			return false
		}
	}
	return true
}

// gitFile returns the repository that the folder at path below dir, which root is, belongs to by its .git file.
func gitFile(root *os.Root, dir, path string) string {
	name := filepath.Join(path, ".git")
	if info, err := root.Lstat(name); err != nil || !info.Mode().IsRegular() {
		return ""
	}
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	text, err := readRegular(f)
	target, ok := strings.CutPrefix(strings.TrimRight(text, "\r\n"), "gitdir: ")
	if err != nil || !ok {
		return ""
	}
	if !filepath.IsAbs(target) {
		target = filepath.Join(dir, path, target)
	}
	return filepath.Clean(target)
}

// checkSubmodules makes sure that git, when it goes into a submodule, comes to a repository that it keeps itself and that was
// tidied. An earlier job may have put another one there, with commands in its configuration.
func (s *Sources) checkSubmodules(list []string) error {
	root, err := os.OpenRoot(s.Dir)
	if err != nil {
		return fmt.Errorf("look for submodules: %w", err)
	}
	defer func() { _ = root.Close() }()
	var check func(dir string, depth int) error
	check = func(dir string, depth int) error {
		for _, path := range submodulesIn(root, dir) {
			path = filepath.Join(dir, path)
			name := filepath.Join(path, ".git")
			if _, err := root.Lstat(name); err != nil {
				continue
			}
			if !slices.Contains(list, gitFile(root, s.Dir, path)) || depth > maxDepth {
				if err := root.RemoveAll(name); err != nil {
					return fmt.Errorf("remove what is in a submodule's place: %w", err)
				}
				continue
			}
			if err := check(path, depth+1); err != nil {
				return err
			}
		}
		return nil
	}
	return check(".", 0)
}

// detachOldSubmodules lets folders that were submodules of an earlier commit, and are none of this one, be ordinary ones: git
// clean removes what is in them, and git commands there mean the project.
func (s *Sources) detachOldSubmodules() error {
	if len(s.worktrees) == 0 {
		return nil
	}
	root, err := os.OpenRoot(s.Dir)
	if err != nil {
		return fmt.Errorf("look for submodules: %w", err)
	}
	defer func() { _ = root.Close() }()
	top := filepath.Join(s.Dir, ".git", "modules")
	now := submodulesIn(root, ".")
	for _, path := range s.worktrees {
		module := gitFile(root, s.Dir, path)
		inner, err := filepath.Rel(top, module)
		if err != nil || slices.Contains(now, path) || strings.Contains("/"+inner+"/", "/modules/") {
			continue // those of submodules go with their submodule
		}
		if err := root.Remove(filepath.Join(path, ".git")); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("detach an old submodule: %w", err)
		}
	}
	return nil
}

// clearSubmoduleFolders removes files that are in folders where a submodule is to be cloned to.
func (s *Sources) clearSubmoduleFolders(ctx context.Context, fresh bool) error {
	root, err := os.OpenRoot(s.Dir)
	if err != nil {
		return fmt.Errorf("look for submodules: %w", err)
	}
	defer func() { _ = root.Close() }()
	cleared := false
	for _, path := range submodulesIn(root, ".") {
		if _, err := root.Lstat(filepath.Join(path, ".git")); err == nil {
			continue
		}
		if info, err := root.Lstat(path); err != nil || !info.IsDir() {
			continue
		}
		if err := root.RemoveAll(path); err != nil {
			return fmt.Errorf("clear a submodule's folder: %w", err)
		}
		cleared = true
	}
	if !cleared || !s.Checkout {
		return nil
	}
	// .gitmodules may name a folder that is none: its files come back.
	return s.git(ctx, fresh, s.environment(), s.Dir, "-c", "submodule.recurse=false", "checkout", "-f", "-q", s.SHA)
}
