// Package gitrepo gives a project a repository of its own to serve without touching the user's: a private bare one that
// reads the user's objects as an alternate and has its own refs.
package gitrepo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

// Options says where the repositories are.
type Options struct {
	// Source is the user's repository: a work tree or a bare one. Nothing is written to it.
	Source string
	// Objects are further object directories (as in objects/info/alternates) to read from.
	Objects []string
	// Dir becomes the private repository; it must not exist.
	Dir string
	// DefaultBranch is what HEAD names; empty takes the branch of Source's HEAD, or main if that is detached.
	DefaultBranch string
}

// Repo is a served repository. All methods may be called concurrently.
type Repo struct {
	source  string
	dir     string
	shallow string // the source's list of shallow commits
	branch  string

	mu   sync.Mutex        // held while refs are changed
	refs map[string]string // refs/heads and refs/tags as last copied
	made map[string]string // those that SetMissing has made
}

// waitDelay is how long a stopped git may keep its pipes open.
const waitDelay = 5 * time.Second

// Open makes the private repository and reads Source's layout. It needs git 2.31 or newer.
func Open(ctx context.Context, o Options) (*Repo, error) {
	source, err := filepath.Abs(o.Source)
	if err != nil {
		return nil, fmt.Errorf("repository %s: %w", o.Source, err)
	}
	out, err := run(ctx, userEnv(), source, nil, "rev-parse", "--path-format=absolute",
		"--git-path", "objects", "--git-path", "shallow", "--show-object-format")
	if err != nil {
		return nil, fmt.Errorf("%s is no usable git repository: %w", source, err)
	}
	lines := strings.Split(strings.TrimSuffix(string(out), "\n"), "\n")
	if len(lines) != 3 {
		return nil, fmt.Errorf("git rev-parse in %s: unexpected output %q", source, out)
	}
	r := &Repo{source: source, dir: o.Dir, shallow: lines[1], branch: o.DefaultBranch, refs: map[string]string{}, made: map[string]string{}}
	if r.branch == "" {
		if r.branch, err = headBranch(ctx, source); err != nil {
			return nil, err
		}
	}
	if _, err := run(ctx, cleanEnv(), "", nil, "init", "--quiet", "--bare", "--template=", "--object-format="+lines[2], r.dir); err != nil {
		return nil, fmt.Errorf("make the served repository: %w", err)
	}
	if err := r.configure(append([]string{lines[0]}, o.Objects...)); err != nil {
		return nil, fmt.Errorf("set up the served repository: %w", err)
	}
	return r, nil
}

// headBranch is the branch of HEAD, or main.
func headBranch(ctx context.Context, source string) (string, error) {
	out, err := run(ctx, userEnv(), source, nil, "symbolic-ref", "--quiet", "--short", "HEAD")
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 1 {
		return "main", nil // HEAD is detached
	}
	if err != nil {
		return "", fmt.Errorf("find the default branch of %s: %w", source, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// config of the served repository: as on GitLab, any commit may be fetched by its id and partial clones work.
const config = `[uploadpack]
	allowAnySHA1InWant = true
	allowFilter = true
[gc]
	auto = 0
`

func (r *Repo) configure(objects []string) error {
	for i, o := range objects {
		if strings.ContainsAny(o, "\n\"") {
			return fmt.Errorf("object directory %q: line breaks and quotes are not possible in objects/info/alternates", o)
		}
		abs, err := filepath.Abs(o)
		if err != nil {
			return fmt.Errorf("object directory %s: %w", o, err)
		}
		objects[i] = abs
	}
	info := filepath.Join(r.dir, "objects", "info")
	if err := os.MkdirAll(info, 0o700); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(info, "alternates"), []byte(strings.Join(objects, "\n")+"\n"), 0o600); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(r.dir, "HEAD"), []byte("ref: refs/heads/"+r.branch+"\n"), 0o600); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(r.dir, "config"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(config)
	return errors.Join(err, f.Close())
}

// Dir is the private bare repository.
func (r *Repo) Dir() string { return r.dir }

// DefaultBranch is the branch that HEAD names; it need not exist.
func (r *Repo) DefaultBranch() string { return r.branch }

// Sync copies the user's branches and tags and the list of shallow commits.
func (r *Repo) Sync(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.syncShallow(); err != nil {
		return fmt.Errorf("copy the list of shallow commits: %w", err)
	}
	out, err := run(ctx, userEnv(), r.source, nil, "for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags")
	if err != nil {
		return fmt.Errorf("read the refs of %s: %w", r.source, err)
	}
	now := map[string]string{}
	for line := range strings.Lines(string(out)) {
		id, ref, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		now[ref] = id
	}
	if len(r.refs) == 0 && len(r.made) == 0 {
		if err := r.pack(now); err != nil {
			return fmt.Errorf("write the served refs: %w", err)
		}
		r.refs = now
		return nil
	}
	// What goes, goes first: "topic" cannot be in the way of "topic/one" in a step of its own.
	var gone, in bytes.Buffer
	for ref := range r.refs {
		if now[ref] == "" {
			fmt.Fprintf(&gone, "delete %s\n", ref)
		}
	}
	for ref := range r.made {
		if now[ref] != "" || inTheWay(ref, now) {
			fmt.Fprintf(&gone, "delete %s\n", ref)
			delete(r.made, ref)
		}
	}
	for ref, id := range now {
		if r.refs[ref] != id {
			fmt.Fprintf(&in, "update %s %s\n", ref, id)
		}
	}
	if err := r.update(ctx, &gone); err != nil {
		return err
	}
	if err := r.update(ctx, &in); err != nil {
		return err
	}
	r.refs = now
	return nil
}

// pack writes the first refs as git-pack-refs would: one file, where git update-ref takes a quarter of a millisecond for
// each of what may be many thousands.
func (r *Repo) pack(refs map[string]string) error {
	var text bytes.Buffer
	for _, ref := range slices.Sorted(maps.Keys(refs)) {
		fmt.Fprintf(&text, "%s %s\n", refs[ref], ref)
	}
	path := filepath.Join(r.dir, "packed-refs")
	if err := os.WriteFile(path+".new", text.Bytes(), 0o600); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}

// inTheWay says whether a ref cannot exist beside others because one is a folder of the other.
func inTheWay(ref string, others map[string]string) bool {
	for other := range others {
		if strings.HasPrefix(other, ref+"/") || strings.HasPrefix(ref, other+"/") {
			return true
		}
	}
	return false
}

// ValidName says whether git takes a name for a branch or a tag (git-check-ref-format).
func ValidName(name string) bool {
	if name == "" || name == "@" || strings.HasPrefix(name, "-") || strings.HasSuffix(name, ".") ||
		strings.Contains(name, "..") || strings.Contains(name, "@{") || strings.ContainsAny(name, " ~^:?*[\\\x7f") {
		return false
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part[0] == '.' || strings.HasSuffix(part, ".lock") {
			return false
		}
	}
	return !strings.ContainsFunc(name, func(r rune) bool { return r < ' ' })
}

// Set points a ref at a commit.
func (r *Repo) Set(ctx context.Context, ref, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.update(ctx, bytes.NewBufferString("update "+ref+" "+id+"\n"))
}

// SetMissing points a ref at a commit if the user's repository has no ref of that name; it stays until the user makes
// one, and the next SetMissing moves it.
func (r *Repo) SetMissing(ctx context.Context, ref, id string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refs[ref] != "" || r.made[ref] == id {
		return nil
	}
	if err := r.update(ctx, bytes.NewBufferString("update "+ref+" "+id+"\n")); err != nil {
		return err
	}
	r.made[ref] = id
	return nil
}

func (r *Repo) update(ctx context.Context, in *bytes.Buffer) error {
	if in.Len() == 0 {
		return nil
	}
	if _, err := run(ctx, cleanEnv(), r.dir, in, "update-ref", "--stdin"); err != nil {
		return fmt.Errorf("update the served refs: %w", err)
	}
	return nil
}

func (r *Repo) syncShallow() error {
	text, err := os.ReadFile(r.shallow)
	target := filepath.Join(r.dir, "shallow")
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if err != nil {
		return err
	}
	if old, err := os.ReadFile(target); err == nil && bytes.Equal(old, text) {
		return nil
	}
	if err := os.WriteFile(target+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(target+".new", target)
}

// Files lists the paths of a commit, sorted, with slashes.
func (r *Repo) Files(ctx context.Context, commit string) ([]string, error) {
	out, err := run(ctx, cleanEnv(), r.dir, nil, "ls-tree", "-r", "-z", "--name-only", commit)
	if err != nil {
		return nil, fmt.Errorf("list the files of %s: %w", commit, err)
	}
	return paths(out), nil
}

// Changed lists the paths that differ between two commits, sorted, with slashes; a renamed file is there with both names.
func (r *Repo) Changed(ctx context.Context, from, to string) ([]string, error) {
	out, err := run(ctx, cleanEnv(), r.dir, nil, "diff-tree", "-r", "-z", "--name-only", "--no-renames", from, to)
	if err != nil {
		return nil, fmt.Errorf("compare %s and %s: %w", from, to, err)
	}
	return paths(out), nil
}

// Head is the commit or tag object that a full ref name of the user's repository pointed at when refs were last copied;
// empty if there is none.
func (r *Repo) Head(ref string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.refs[ref]
}

func paths(out []byte) []string {
	names := strings.Split(string(out), "\x00")
	return slices.DeleteFunc(names, func(n string) bool { return n == "" })
}

// cleanEnv is the environment of git in the private repository: nothing of the user's configuration and no variable
// that could lead it elsewhere.
func cleanEnv() []string {
	env := []string{
		"GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL=" + os.DevNull, "GIT_TERMINAL_PROMPT=0", "GIT_NO_LAZY_FETCH=1",
		"GIT_DEFAULT_REF_FORMAT=files", "LC_ALL=C", "HOME=" + os.DevNull,
	}
	for _, key := range []string{"PATH", "TMPDIR", "SYSTEMROOT"} {
		if v, ok := os.LookupEnv(key); ok {
			env = append(env, key+"="+v)
		}
	}
	return env
}

// Env is the environment for a git that serves the repository.
func Env() []string { return cleanEnv() }

// userEnv is the environment of git in the user's repository: the user's configuration counts there (safe.directory),
// variables that would name another repository do not.
func userEnv() []string {
	env := slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "GIT_") })
	return append(env, "GIT_OPTIONAL_LOCKS=0", "GIT_TERMINAL_PROMPT=0", "LC_ALL=C")
}

// run runs git and returns its output; the error has what git said.
func run(ctx context.Context, env []string, dir string, stdin *bytes.Buffer, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir, cmd.Env, cmd.WaitDelay = dir, env, waitDelay
	if stdin != nil {
		cmd.Stdin = stdin
	}
	var out bytes.Buffer
	errText := tail{limit: 4096}
	cmd.Stdout, cmd.Stderr = &out, &errText
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		if said := strings.TrimSpace(errText.text.String()); said != "" {
			return nil, fmt.Errorf("git %s: %w: %s", args[0], err, said)
		}
		return nil, fmt.Errorf("git %s: %w", args[0], err)
	}
	return out.Bytes(), nil
}

// tail keeps the first bytes of a program's error output.
type tail struct {
	text  strings.Builder
	limit int
}

func (t *tail) Write(p []byte) (int, error) {
	t.text.Write(p[:min(len(p), t.limit-t.text.Len())])
	return len(p), nil
}
