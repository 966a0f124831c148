//go:build unix

// Package git puts a job's sources into its project folder by calling the git binary.
//
// Credentials: what is written to .git/config is the URL without them, and a credential helper that answers with the
// job's own CI_JOB_TOKEN variable, so that git commands in the user's script work while the job lives. git fetch itself
// gets an Authorization header for that server only, by the environment of its own process (GIT_CONFIG_COUNT): not in
// argv, not in a file, not in the script's environment, and readable by no other user. A header rather than a helper saves
// a refused request and two processes.
//
// .git/config and the hooks are written anew for each job: a job could leave commands in them that the next one, perhaps
// of a protected branch, would run. gitlab-runner does so too, but not on its shell executor by default.
package git

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Sources is one job's way to its sources.
type Sources struct {
	Options

	// Dir is the project folder, Temp the folder beside it for what must not be in it.
	Dir, Temp string
	// URL may hold credentials; if it holds none and Token is set, it is read as user gitlab-ci-token.
	URL, Token   string
	ObjectFormat string // sha1 (also if empty) or sha256
	SHA, Ref     string
	Refspecs     []string
	Depth        int // 0: all history
	UserAgent    string
	CAFile       string // checks the server's certificate, unless empty

	// Environment is the base of git's environment, in the form of os.Environ.
	Environment []string

	// Notice prints a line that says what is done now, Warn one that warns.
	Notice, Warn func(text string)
	// Run runs git with these arguments in dir, its output going to the trace, and returns its exit code and the end of
	// what it said.
	Run func(ctx context.Context, argv, env []string, dir string) (code int, said []byte, err error)
}

// ExitError says that git itself failed; what it had to say is in the trace.
type ExitError struct {
	Command string
	Code    int
	damaged bool
}

func (e *ExitError) Error() string { return fmt.Sprintf("git %s: exit code %d", e.Command, e.Code) }

// Check returns what is wrong with the payload's part, before anything is touched.
func (s *Sources) Check() error {
	if s.Strategy == None || s.Strategy == Empty {
		return nil
	}
	switch s.ObjectFormat {
	case "", "sha1", "sha256":
	default:
		return fmt.Errorf("git_info.repo_object_format: %q is not supported: it can be sha1 or sha256", s.ObjectFormat)
	}
	if !isHash(s.SHA) {
		return fmt.Errorf("git_info.sha: %q is not the name of a commit", s.SHA)
	}
	for i, r := range s.Refspecs {
		if r == "" || r[0] == '-' {
			return fmt.Errorf("git_info.refspecs[%d]: %q is not a refspec", i, r)
		}
	}
	if _, err := s.remote(); err != nil {
		return err
	}
	return nil
}

func isHash(s string) bool {
	return (len(s) == 40 || len(s) == 64) && strings.Trim(s, "0123456789abcdef") == ""
}

// Get puts the sources in place. A working copy that turns out to be damaged is removed and got again, once.
func (s *Sources) Get(ctx context.Context) error {
	switch s.Strategy {
	case None:
		s.Notice("Skipping Git repository setup")
		return s.without(nil)
	case Empty:
		s.Notice("Skipping Git repository setup and creating an empty build directory")
		return s.without(removeTree(s.Dir))
	}
	r, err := s.remote()
	if err != nil {
		return err
	}
	err = s.get(ctx, r, s.Strategy == Clone)
	if exit, ok := errors.AsType[*ExitError](err); ok && exit.damaged && ctx.Err() == nil {
		s.Warn("The working copy of an earlier job is damaged. It is removed and fetched anew.")
		err = s.get(ctx, r, true)
	}
	if err != nil {
		return err
	}
	s.Notice("Skipping Git submodules setup")
	return nil
}

func (s *Sources) without(err error) error {
	if err == nil {
		err = os.MkdirAll(s.Dir, 0o755)
	}
	if err != nil {
		return fmt.Errorf("make the project folder: %w", err)
	}
	s.Notice("Skipping Git checkout")
	s.Notice("Skipping Git submodules setup")
	return nil
}

func (s *Sources) get(ctx context.Context, r remote, anew bool) error {
	if anew {
		if err := removeTree(s.Dir); err != nil {
			return fmt.Errorf("remove the old working copy: %w", err)
		}
	}
	if s.Depth > 0 {
		s.Notice(fmt.Sprintf("Fetching changes with git depth set to %d...", s.Depth))
	} else {
		s.Notice("Fetching changes...")
	}
	_, err := os.Lstat(filepath.Join(s.Dir, ".git"))
	fresh := errors.Is(err, fs.ErrNotExist)
	if err := Clean(s.Dir); err != nil {
		return err
	}
	parent := filepath.Dir(s.Dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return fmt.Errorf("make the project folder: %w", err)
	}
	template, err := s.writeTemplate(r)
	if err != nil {
		return err
	}
	base := s.environment(nil)
	initialize := []string{"init", "--template", template}
	if s.ObjectFormat == "sha256" {
		initialize = append(initialize, "--object-format", s.ObjectFormat)
	}
	if err := s.git(ctx, fresh, base, parent, append(initialize, s.Dir)...); err != nil {
		return err
	}
	if fresh {
		s.Notice("Created fresh repository.")
	}

	fetch := slices.Concat([]string{"fetch", "origin", "--no-recurse-submodules"}, s.Refspecs)
	if s.Depth > 0 {
		fetch = append(fetch, "--depth", strconv.Itoa(s.Depth))
	}
	fetch = append(fetch, s.FetchFlags...)
	if _, err := os.Lstat(filepath.Join(s.Dir, ".git", "shallow")); err == nil && s.Depth <= 0 {
		fetch = append(fetch, "--unshallow")
	}
	if err := s.git(ctx, fresh, s.environment(r.secrets), s.Dir, fetch...); err != nil {
		return err
	}
	if !s.Checkout {
		s.Notice("Skipping Git checkout")
		return nil
	}
	s.Notice(fmt.Sprintf("Checking out %s as detached HEAD (ref is %s)...", s.SHA[:8], s.Ref))
	if err := s.git(ctx, fresh, base, s.Dir, "-c", "submodule.recurse=false", "checkout", "-f", "-q", s.SHA); err != nil {
		return err
	}
	if len(s.CleanFlags) > 0 && !fresh {
		if err := s.git(ctx, fresh, base, s.Dir, append([]string{"clean"}, s.CleanFlags...)...); err != nil {
			return err
		}
	}
	s.warnOfLFS()
	return nil
}

// ClearWorktree deletes all files, tracked or not, after sources could not be got into them.
func (s *Sources) ClearWorktree(ctx context.Context) error {
	s.Notice("Deleting tracked and untracked files...")
	if _, err := os.Lstat(filepath.Join(s.Dir, ".git")); err != nil {
		return nil //nolint:nilerr // there is nothing to clear
	}
	base := s.environment(nil)
	if err := s.git(ctx, true, base, s.Dir, "rm", "-rf", "--ignore-unmatch", "--quiet", "."); err != nil {
		return err
	}
	return s.git(ctx, true, base, s.Dir, "clean", "-ffdx")
}

// CleanUp brings the working copy back to the checked out commit (FF_ENABLE_JOB_CLEANUP).
func (s *Sources) CleanUp(ctx context.Context) error {
	switch s.Strategy {
	case None:
		s.Notice("Skipping build directory cleanup step")
		return nil
	case Clone, Empty:
		if err := removeTree(s.Dir); err != nil {
			return fmt.Errorf("clean up the project folder: %w", err)
		}
		return nil
	}
	base := s.environment(nil)
	if len(s.CleanFlags) > 0 {
		if err := s.git(ctx, true, base, s.Dir, append([]string{"clean"}, s.CleanFlags...)...); err != nil {
			return err
		}
	}
	return s.git(ctx, true, base, s.Dir, "reset", "--hard")
}

// git runs one command. fresh says that the repository was made by this job, so no fault is another's.
func (s *Sources) git(ctx context.Context, fresh bool, env []string, dir string, args ...string) error {
	code, said, err := s.Run(ctx, append([]string{"git"}, args...), env, dir)
	name := args[0]
	if name == "-c" {
		name = args[2]
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("git %s: %w", name, err)
	}
	if code != 0 {
		return &ExitError{Command: name, Code: code, damaged: !fresh && damaged(string(said))}
	}
	return nil
}

// damaged says whether git complains about the local repository rather than about the server.
func damaged(said string) bool {
	for _, sign := range []string{
		"not a git repository", "bad object", "corrupt", "loose object", "object file", "missing blob", "missing tree",
		"missing commit", "unable to read tree", "unable to read sha1", "bad tree object", "bad config", "invalid index",
		"index file", "index uses", "bad signature", "packfile", "inflate:", "broken link", "reference broken", "cannot lock ref",
		"unable to resolve reference", "shallow file has changed", "did not send all necessary objects", "invalid object",
		"File exists", "is not a valid object", "garbage at end", "could not parse", "unexpected line in .git/packed-refs",
		"attempt to reinitialize repository with different hash", "your current branch appears to be broken",
	} {
		if strings.Contains(said, sign) {
			return true
		}
	}
	return false
}

// remote is where sources come from.
type remote struct {
	url     string      // without credentials
	host    string      // scheme and host of an HTTP server, or nothing
	user    string      // for the credential helper
	secrets [][2]string // git configuration for the fetch alone
}

func (s *Sources) remote() (remote, error) {
	u, err := url.Parse(s.URL)
	if err != nil || s.URL == "" || s.URL[0] == '-' {
		// Without err: it holds the URL, which holds the token.
		return remote{}, errors.New("git_info.repo_url: not a URL")
	}
	if u.Scheme != "http" && u.Scheme != "https" {
		return remote{url: s.URL}, nil
	}
	if u.Host == "" {
		return remote{}, errors.New("git_info.repo_url: it names no host")
	}
	r := remote{user: "gitlab-ci-token"}
	password := s.Token
	if u.User != nil {
		if p, ok := u.User.Password(); ok {
			r.user, password = u.User.Username(), p
		}
		u.User = nil
	}
	r.url = u.String()
	r.host = (&url.URL{Scheme: u.Scheme, Host: u.Host}).String()
	if password != "" {
		basic := base64.StdEncoding.EncodeToString([]byte(r.user + ":" + password))
		r.secrets = [][2]string{{"http." + r.host + "/.extraHeader", "Authorization: Basic " + basic}}
	}
	return r, nil
}

// shortest is the length from which on a password is taken for a secret: nobody said that it is one, and hiding a short
// word would hide much else.
const shortest = 8

// Secrets are what of the URL must not be seen in a trace.
func (s *Sources) Secrets() []string {
	r, err := s.remote()
	if err != nil {
		return nil
	}
	var secrets []string
	for _, c := range r.secrets {
		secrets = append(secrets, strings.TrimPrefix(c[1], "Authorization: Basic "))
	}
	if u, err := url.Parse(s.URL); err == nil && u.User != nil {
		if p, ok := u.User.Password(); ok && len(p) >= shortest {
			secrets = append(secrets, p)
		}
	}
	return secrets
}

// warnOfLFS says that large files are not fetched, if the sources have some.
func (s *Sources) warnOfLFS() {
	const most = 1 << 20
	file, err := os.OpenFile(filepath.Join(s.Dir, ".gitattributes"), os.O_RDONLY|nonblock, 0)
	if err != nil {
		return
	}
	defer func() { _ = file.Close() }()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() > most {
		return
	}
	b := make([]byte, most)
	n, _ := file.Read(b)
	if strings.Contains(string(b[:n]), "filter=lfs") {
		s.Warn("The repository uses Git LFS, which is not supported yet: its large files are pointers.")
	}
}
