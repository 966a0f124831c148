package snapshot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// repository is where the user's repository keeps things. Paths are absolute.
type repository struct {
	top, objects, index string
	// prefix is the path in it of the folder by which it was found, with a slash at the end; empty for the root.
	prefix string
}

// find looks for the repository that dir is in.
func find(ctx context.Context, dir string) (repository, error) {
	out, err := git(ctx, dir, nil, "rev-parse", "--path-format=absolute", "--show-toplevel", "--show-prefix", "--git-path", "objects", "--git-path", "index")
	if err != nil {
		if _, missing := os.Stat(dir); missing != nil {
			return repository{}, fmt.Errorf("read the working tree: %w", missing)
		}
		if strings.Contains(err.Error(), "not a git repository (or any") {
			return repository{}, fmt.Errorf("%s: %w", dir, ErrNoRepository)
		}
		return repository{}, fmt.Errorf("read the repository of %s: %w", dir, err)
	}
	lines := strings.Split(out, "\n")
	if len(lines) != 4 {
		return repository{}, fmt.Errorf("read the repository of %s: git rev-parse said %q (a line break in its path?)", dir, out)
	}
	return repository{top: lines[0], prefix: lines[1], objects: lines[2], index: lines[3]}, nil
}

// stage reads the working tree below dir into an index and an object directory of their own. It returns the environment
// of a git that uses both.
func (r repository) stage(ctx context.Context, dir, scratch, objects, head string) ([]string, error) {
	index := filepath.Join(scratch, "index")
	env := []string{
		"GIT_INDEX_FILE=" + index,
		"GIT_OBJECT_DIRECTORY=" + objects,
		"GIT_ALTERNATE_OBJECT_DIRECTORIES=" + r.objects,
	}
	// The user's index knows which files have not changed: without it git would read every one of them.
	err := copyIndex(r.index, index)
	if errors.Is(err, fs.ErrNotExist) && head != "" {
		_, err = git(ctx, r.top, env, "read-tree", head)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("copy the index of %s: %w", r.top, err)
	}
	// A monitor would be a process that stays, a split index would be written next to the user's.
	args := []string{"-c", "core.fsmonitor=false", "-c", "core.splitIndex=false", "add", "--all", "--", "."}
	if _, err := git(ctx, dir, env, args...); err != nil {
		return nil, fmt.Errorf("read the working tree %s: %w", dir, err)
	}
	return env, nil
}

// copyIndex copies an index with its time of modification, by which git tells which of its entries it cannot trust.
func copyIndex(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close(), os.Chtimes(to, info.ModTime(), info.ModTime()))
}

// describe finds what else is known of the project. s.Ref must be known.
func (r repository) describe(ctx context.Context, s *Snapshot) error {
	out, err := git(ctx, r.top, nil, "for-each-ref", "--format=%(refname) %(symref)",
		"refs/remotes/origin/HEAD", "refs/heads/main", "refs/heads/master")
	if err != nil {
		return fmt.Errorf("read the branches of %s: %w", r.top, err)
	}
	there := map[string]string{}
	for line := range strings.Lines(out) {
		name, target, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		there[name] = target
	}
	if branch, ok := strings.CutPrefix(there["refs/remotes/origin/HEAD"], "refs/remotes/origin/"); ok {
		s.DefaultBranch = branch
	} else {
		s.DefaultBranch = s.Ref
		for _, name := range []string{"master", "main"} {
			if _, ok := there["refs/heads/"+name]; ok {
				s.DefaultBranch = name
			}
		}
		if s.Tag && s.DefaultBranch == s.Ref {
			s.DefaultBranch = DefaultRef
		}
	}
	// Without any of these git config fails, which says nothing new.
	out, _ = git(ctx, r.top, nil, "config", "-z", "--get-regexp", `^(user\.(name|email)|remote\.origin\.url)$`)
	for entry := range strings.SplitSeq(out, "\x00") {
		key, value, _ := strings.Cut(entry, "\n")
		switch key {
		case "user.name":
			s.UserName = value
		case "user.email":
			s.UserEmail = value
		case "remote.origin.url":
			s.Origin = remotePath(value)
		}
	}
	return nil
}

// remotePath is the project's path in the address of a remote: "group/name" of https://host/group/name.git,
// ssh://git@host:22/group/name and git@host:group/name.git; empty for a local one.
func remotePath(address string) string {
	path := ""
	if u, err := url.Parse(address); err == nil && u.Host != "" {
		path = u.Path
	} else if host, rest, ok := strings.Cut(address, ":"); ok && !strings.ContainsAny(host, "/\\") && !strings.HasPrefix(rest, "//") {
		path = rest
	}
	return strings.TrimSuffix(strings.Trim(path, "/"), ".git")
}
