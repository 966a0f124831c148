package helperimage

import (
	"bufio"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// findGit returns this machine's git, which must be a program for Linux.
func findGit() (path string, machine elf.Machine, err error) {
	if path, err = exec.LookPath("git"); err != nil {
		return "", 0, fmt.Errorf("%w: %w", ErrCannot, err)
	}
	p, err := readELF(path)
	switch {
	case errors.Is(err, errNotELF):
		return "", 0, fmt.Errorf("%w: %w", ErrCannot, err)
	case err != nil:
		return "", 0, fmt.Errorf("read git: %w", err)
	case architectures[p.machine] == "":
		return "", 0, fmt.Errorf("%w: %s is for %v", ErrCannot, path, p.machine)
	}
	return path, p.machine, nil
}

// helpers are the programs in git's folder that its commands for working copies call. Servers, mail and other version
// control systems stay out, as does what needs Perl or Python.
var helpers = []string{"git", "git-remote-", "git-credential-", "git-sh-i18n--envsubst"}

// git puts git and what it calls into the image.
func (c *collector) git(ctx context.Context, git string) error {
	if err := c.binary("/usr/bin/git", git); err != nil {
		return err
	}
	core, err := output(ctx, git, "--exec-path")
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(core)
	if err != nil {
		return err
	}
	var links []string
	for _, e := range entries {
		name := filepath.Join(core, e.Name())
		switch {
		case e.Type()&fs.ModeSymlink != 0:
			links = append(links, name)
		case e.Type().IsRegular():
			if wanted, err := wantedHelper(name); err != nil {
				return err
			} else if wanted {
				if err := c.binary(name, name); err != nil {
					return err
				}
			}
		}
	}
	// A link comes along if what it points to does. Git's own name may be outside of the folder.
	for _, name := range links {
		target, err := os.Readlink(name)
		if err != nil {
			return err
		}
		if !filepath.IsAbs(target) {
			target = filepath.Join(core, target)
		}
		if c.tree.has(target) {
			relative, err := filepath.Rel(path.Dir(inUsr(name)), inUsr(target))
			if err != nil {
				return err
			}
			c.tree.link(name, relative)
		}
	}
	// The servers' halves of fetch and push are called for repositories in a folder.
	for _, name := range []string{"git-receive-pack", "git-upload-archive", "git-upload-pack"} {
		c.tree.link("/usr/bin/"+name, "git")
	}
	return c.gitTemplates(filepath.Dir(filepath.Dir(core)))
}

// gitTemplates puts in what `git init` copies, without the samples of hooks.
func (c *collector) gitTemplates(prefix string) error {
	templates := filepath.Join(prefix, "share", "git-core", "templates")
	if _, err := os.Stat(templates); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	c.tree.dir(templates, 0o755)
	for _, name := range []string{"description", "info/exclude"} {
		if file := filepath.Join(templates, name); isFile(file) {
			if err := c.tree.file(file, file); err != nil {
				return err
			}
		}
	}
	return nil
}

// wantedHelper says whether a file of git's folder goes into the image: helpers, and scripts for sh.
func wantedHelper(file string) (bool, error) {
	name := filepath.Base(file)
	f, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer f.Close()
	head, err := bufio.NewReader(f).Peek(64)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	if line, isScript := strings.CutPrefix(string(head), "#!"); isScript {
		line, _, _ = strings.Cut(line, "\n")
		return path.Base(strings.TrimSpace(line)) == "sh", nil
	}
	if strings.HasPrefix(string(head), "#") { // is read by such scripts
		return true, nil
	}
	return slices.ContainsFunc(helpers, func(helper string) bool {
		return name == helper || strings.HasSuffix(helper, "-") && strings.HasPrefix(name, helper)
	}), nil
}
