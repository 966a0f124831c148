//go:build unix

package git

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

const (
	// unborn is the HEAD of a repository in which nothing was checked out yet.
	unborn = "ref: refs/heads/none\n"
	// fetchAll is what `git fetch` in a user's script brings.
	fetchAll = "+refs/heads/*:refs/remotes/origin/*"
)

// errUnusable is what became of a repository that no git command can work with.
var errUnusable = errors.New("the repository is damaged")

// lay makes the repository of the project's folder, or gives the one that is there new configuration and takes away
// what an earlier job left in its way. It does what git init does, without a process. fresh says that there was none.
func (s *Sources) lay(r remote) (fresh bool, err error) {
	if info, err := os.Lstat(s.Dir); err == nil && !info.IsDir() {
		// A link must not lead this job's git clean to another place.
		if err := os.Remove(s.Dir); err != nil {
			return false, fmt.Errorf("make the project folder: %w", err)
		}
	}
	repository := filepath.Join(s.Dir, ".git")
	switch fresh, err = s.inspect(repository); {
	case errors.Is(err, errUnusable):
		s.Warn("The working copy of an earlier job is damaged. It is removed and fetched anew.")
		if err := removeTree(s.Dir); err != nil {
			return false, fmt.Errorf("remove the old working copy: %w", err)
		}
		fresh = true
	case err != nil:
		return false, err
	}
	if err := os.MkdirAll(filepath.Dir(s.Dir), s.mode()); err != nil {
		return false, fmt.Errorf("make the project folder: %w", err)
	}
	if fresh {
		for _, dir := range []string{"refs/heads", "refs/tags", "objects/pack", "objects/info"} {
			if err := os.MkdirAll(filepath.Join(repository, dir), 0o777); err != nil {
				return false, fmt.Errorf("make the repository: %w", err)
			}
		}
		err = writeNew(filepath.Join(repository, "HEAD"), unborn)
	} else {
		err = s.tidy(repository, r)
	}
	if err == nil {
		err = s.configure(repository, r)
	}
	if err != nil {
		return false, fmt.Errorf("make the repository: %w", err)
	}
	if fresh {
		s.say("Initialized empty Git repository in " + repository + "/")
		s.Notice("Created fresh repository.")
	} else {
		s.say("Reinitialized existing Git repository in " + repository + "/")
	}
	return fresh, nil
}

// mode is that of folders that are made on the way to the project's.
func (s *Sources) mode() fs.FileMode {
	if s.SharedFiles {
		return 0o777
	}
	return 0o755
}

func (s *Sources) say(line string) {
	if s.Say != nil {
		s.Say(line)
	} else {
		s.Notice(line)
	}
}

// inspect looks whether there is a repository that can be used. It says errUnusable if there is one that cannot.
func (s *Sources) inspect(repository string) (absent bool, err error) {
	info, err := os.Lstat(repository)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, nil
	case err != nil:
		return false, fmt.Errorf("look at the repository: %w", err)
	case !info.IsDir():
		return false, errUnusable
	}
	for _, dir := range []string{"objects", "refs"} {
		if info, err := os.Lstat(filepath.Join(repository, dir)); err != nil || !info.IsDir() {
			return false, errUnusable
		}
	}
	if isReftable(repository) {
		return false, errUnusable
	}
	head, err := readSmall(filepath.Join(repository, "HEAD"))
	if err != nil {
		return false, errUnusable
	}
	head = strings.TrimSpace(head)
	format := s.ObjectFormat
	if format == "" {
		format = "sha1"
	}
	if !strings.HasPrefix(head, "ref: refs/") && (!isHash(head) || len(head) == 64 != (format == "sha256")) {
		return false, errUnusable
	}
	if text, err := readSmall(filepath.Join(repository, "config")); err == nil {
		config := readConfig(text)
		was := lastValue(config, "extensions", "", "objectformat")
		if was == "" {
			was = "sha1"
		}
		if len(config) > 0 && was != format {
			return false, errUnusable
		}
	}
	return false, nil
}

// configure writes the project's .git/config.
func (s *Sources) configure(repository string, r remote) error {
	var c configText
	core, err := s.core(repository)
	if err != nil {
		return err
	}
	c.WriteString(core)
	c.section("core", "", [2]string{"bare", "false"}, [2]string{"logAllRefUpdates", "true"})
	s.writeDefaults(&c)
	origin := [][2]string{{"url", r.url}, {"fetch", fetchAll}}
	if hasPromised(repository) {
		origin = append(origin, [2]string{"promisor", "true"})
	}
	c.section("remote", "origin", origin...)
	r.write(&c, s.CAFile)
	return writeNew(filepath.Join(repository, "config"), c.String())
}

// writeDefaults writes gitlab-runner's settings for git.
func (s *Sources) writeDefaults(c *configText) {
	c.section("init", "", [2]string{"defaultBranch", "none"})
	c.section("fetch", "", [2]string{"recurseSubmodules", "false"})
	c.section("credential", "", [2]string{"interactive", "never"})
	c.section("gc", "", [2]string{"autoDetach", "false"})
	if s.BundleURIs {
		c.section("transfer", "", [2]string{"bundleURI", "true"})
	}
}

// core returns the section that says how repository is stored, as git init finds it out: it tries what the file system
// can do.
func (s *Sources) core(repository string) (string, error) {
	var c configText
	if s.ObjectFormat == "sha256" {
		c.section("core", "", [2]string{"repositoryFormatVersion", "1"})
		c.section("extensions", "", [2]string{"objectFormat", "sha256"})
	} else {
		c.section("core", "", [2]string{"repositoryFormatVersion", "0"})
	}
	probe := filepath.Join(repository, "CoNfIg.probe")
	if err := writeNew(probe, ""); err != nil {
		return "", err
	}
	defer func() { _ = os.Remove(probe) }()
	var values [][2]string
	before, err := os.Lstat(probe)
	if err == nil {
		err = os.Chmod(probe, before.Mode().Perm()^0o100)
	}
	after, statErr := os.Lstat(probe)
	executable := err == nil && statErr == nil && before.Mode() != after.Mode()
	values = append(values, [2]string{"fileMode", fmt.Sprint(executable)})
	if _, err := os.Lstat(filepath.Join(repository, "config.probe")); err == nil {
		values = append(values, [2]string{"ignoreCase", "true"})
	}
	link := filepath.Join(repository, "link.probe")
	_ = os.Remove(link)
	if err := os.Symlink("config", link); err != nil {
		values = append(values, [2]string{"symlinks", "false"})
	}
	_ = os.Remove(link)
	if runtime.GOOS == "darwin" {
		values = append(values, [2]string{"precomposeUnicode", "true"})
	}
	c.section("core", "", values...)
	return c.String(), nil
}

// writeNew writes a file in place of whatever has its name; a link is not followed.
func writeNew(name, text string) error {
	if err := os.RemoveAll(name); err != nil {
		return err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// readSmall reads a regular file of at most maxConfig bytes.
func readSmall(name string) (string, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	return readRegular(f)
}

// readRegular reads f, which it closes, if it is a regular file of at most maxConfig bytes.
func readRegular(f *os.File) (string, error) {
	defer func() { _ = f.Close() }()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() > maxConfig {
		return "", fmt.Errorf("%s is not a regular file of at most %d bytes: %w", f.Name(), maxConfig, fs.ErrInvalid)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxConfig))
	return string(b), err
}

// removeTree removes a folder with all that is in it, read-only folders included.
func removeTree(path string) error {
	err := os.RemoveAll(path)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	openFolders(path)
	return os.RemoveAll(path)
}

// openFolders makes the folders below path writable, as far as that is permitted: Go's module cache is not, and git clean
// does not get through it.
func openFolders(path string) {
	_ = filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		if d == nil || !d.IsDir() {
			return nil
		}
		if info, err := d.Info(); err == nil && info.Mode().Perm()&0o700 != 0o700 {
			_ = os.Chmod(path, info.Mode().Perm()|0o700)
		}
		return nil
	})
}
