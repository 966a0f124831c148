//go:build unix

// Package git puts a job's sources into its project folder by calling the git binary (2.30 or later).
//
// Credentials: what is written to .git/config is the URL without them, and a credential helper that answers with the
// job's own CI_JOB_TOKEN variable, so that git commands in the user's script work while the job lives, in submodules of the
// same GitLab too. git fetch itself gets an Authorization header for that server only, by the environment of its own
// process: not in argv, not in a file, not in the script's environment, and readable by no other user. A header rather
// than a helper saves a refused request and two processes.
//
// .git/config and the hooks are written anew for each job, those of submodules too: a job could leave commands in them
// that the next one, perhaps of a protected branch, would run. gitlab-runner does so too, but not on its shell executor
// by default.
//
// Processes are what getting sources costs, so what git would do without the network and without the index is done here:
// making the repository, writing its configuration, and finding out whether there is maintenance to do, whether
// large files are used and whether there are submodules.
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
)

// Sources is one job's way to its sources. It is used by one goroutine at a time.
type Sources struct {
	Options

	// Dir is the project folder, Temp the folder beside it for what must not be in it.
	Dir, Temp string
	// URL may hold credentials; if it holds none and Token is set, it is read as user gitlab-ci-token.
	URL, Token string
	// CloneURL replaces scheme and host of URL, unless empty. Credentials stay those of URL.
	CloneURL     string
	ObjectFormat string // sha1 (also if empty) or sha256
	SHA, Ref     string
	Refspecs     []string
	Depth        int // 0: all history
	UserAgent    string
	CAFile       string // checks the certificate of this GitLab, unless empty
	// CorrelationID is the X-Request-Id of the request that got the job; it is sent to this GitLab unless empty.
	CorrelationID string
	// SharedFiles: the user's scripts may run as another user, so folders are made for all. The umask of this process and
	// of git must leave that so.
	SharedFiles bool

	// Environment is the base of git's environment, in the form of os.Environ.
	Environment []string

	// Notice prints a line that says what is done now, Warn one that warns. Say, unless nil, prints a line as git would.
	Notice, Warn, Say func(text string)
	// Run runs git with these arguments in dir, its output going to the trace, and returns its exit code and the end of
	// what it said.
	Run func(ctx context.Context, argv, env []string, dir string) (code int, said []byte, err error)

	// worktrees are the folders, below Dir, that submodules were in when the job came.
	worktrees []string
}

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
	return err
}

func (s *Sources) without(err error) error {
	if err == nil {
		err = os.MkdirAll(s.Dir, s.mode())
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
	cloned, fresh, err := false, true, error(nil)
	if s.Strategy == Clone && s.NativeClone {
		cloned, err = s.clone(ctx, r)
	}
	if err == nil && !cloned {
		fresh, err = s.fetch(ctx, r)
	}
	if err != nil {
		return err
	}
	if s.Checkout {
		err = s.checkOut(ctx, r, fresh)
		if exit, ok := errors.AsType[*ExitError](err); ok && cloned && exit.Command == "checkout" {
			// The branch has moved on, and its clone is too shallow for this job's commit.
			if fresh, err = s.fetch(ctx, r); err == nil {
				err = s.checkOut(ctx, r, fresh)
			}
		}
	} else {
		s.Notice("Skipping Git checkout")
	}
	if err != nil {
		return err
	}
	if !s.submodules() {
		s.Notice("Skipping Git submodules setup")
		return nil
	}
	return s.getSubmodules(ctx, r, fresh)
}

// fetch makes the repository, or cleans the one that is there, and fetches into it. fresh says that it was made.
func (s *Sources) fetch(ctx context.Context, r remote) (fresh bool, err error) {
	if s.Depth > 0 {
		s.Notice(fmt.Sprintf("Fetching changes with git depth set to %d...", s.Depth))
	} else {
		s.Notice("Fetching changes...")
	}
	if fresh, err = s.lay(r); err != nil {
		return fresh, err
	}
	s.tellCorrelation()
	args := slices.Concat([]string{"fetch", "origin", "--no-recurse-submodules"}, s.Refspecs)
	if s.Depth > 0 {
		args = append(args, "--depth", strconv.Itoa(s.Depth))
	}
	args = append(args, s.FetchFlags...)
	if info, err := os.Lstat(filepath.Join(s.Dir, ".git", "shallow")); err == nil && info.Size() > 0 && s.Depth <= 0 {
		args = append(args, "--unshallow")
	}
	return fresh, s.git(ctx, fresh, s.fetching(r, filepath.Join(s.Dir, ".git")), s.Dir, args...)
}

// fetching is the environment of commands that fetch into these repositories.
func (s *Sources) fetching(r remote, repositories ...string) []string {
	config := slices.Concat(r.secrets(), s.correlation(r), r.rewrites())
	if s.CAFile != "" {
		for _, host := range r.hosts {
			config = append(config, [2]string{"http." + host + ".sslCAInfo", s.CAFile})
		}
	}
	if !slices.ContainsFunc(repositories, needsMaintenance) {
		config = append(config, [2]string{"maintenance.auto", "false"}, [2]string{"gc.auto", "0"})
	}
	return s.environment(config...)
}

func (s *Sources) correlates() bool { return s.Correlate && s.CorrelationID != "" }

func (s *Sources) tellCorrelation() {
	if s.correlates() {
		s.Notice("Gitaly correlation ID: " + s.CorrelationID)
	}
}

func (s *Sources) correlation(r remote) [][2]string {
	var list [][2]string
	if s.correlates() {
		for _, host := range r.hosts {
			list = append(list, [2]string{"http." + host + "/.extraHeader", "X-Gitaly-Correlation-ID: " + s.CorrelationID})
		}
	}
	return list
}

// checkOut puts the job's commit into the project folder, and takes out what is not of it.
func (s *Sources) checkOut(ctx context.Context, r remote, fresh bool) error {
	s.Notice(fmt.Sprintf("Checking out %s as detached HEAD (ref is %s)...", s.SHA[:8], s.Ref))
	env := s.environment()
	if hasPromised(filepath.Join(s.Dir, ".git")) {
		env = s.fetching(r, filepath.Join(s.Dir, ".git")) // it fetches what is missing
	}
	if err := s.force(ctx, fresh, env, "-c", "submodule.recurse=false", "checkout", "-f", "-q", s.SHA); err != nil {
		return err
	}
	if !fresh {
		if err := s.detachOldSubmodules(); err != nil {
			return err
		}
		if len(s.CleanFlags) > 0 {
			if err := s.force(ctx, fresh, s.environment(), append([]string{"clean"}, s.CleanFlags...)...); err != nil {
				return err
			}
		}
	}
	return s.pullLFS(ctx, r, fresh)
}

// ClearWorktree deletes all files, tracked or not, after sources could not be got into them. Submodules' files go too, their
// repositories stay.
func (s *Sources) ClearWorktree(context.Context) error {
	s.Notice("Deleting tracked and untracked files...")
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.Name() != ".git" {
			err = errors.Join(err, removeTree(filepath.Join(s.Dir, e.Name())))
		}
	}
	// Without an index the next checkout writes every file.
	for _, name := range []string{"index", "index.lock"} {
		if e := os.RemoveAll(filepath.Join(s.Dir, ".git", name)); e != nil && !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	if err != nil {
		return fmt.Errorf("clear the project folder: %w", err)
	}
	return nil
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
	r, err := s.remote()
	if err != nil {
		return err
	}
	repository := filepath.Join(s.Dir, ".git")
	switch absent, err := s.inspect(repository); {
	case err != nil:
		return fmt.Errorf("clean up the project folder: %w", err)
	case absent:
		return nil
	}
	// Filters and hooks of the job's own must not run any more.
	if err := errors.Join(s.tidy(repository, r), s.configure(repository, r)); err != nil {
		return fmt.Errorf("clean up the project folder: %w", err)
	}
	env := s.environment()
	if len(s.CleanFlags) > 0 {
		if err := s.force(ctx, false, env, append([]string{"clean"}, s.CleanFlags...)...); err != nil {
			return err
		}
	}
	if err := s.force(ctx, false, env, "reset", "--hard"); err != nil {
		return err
	}
	if !s.submodules() {
		return nil
	}
	had, err := modules(repository)
	if err != nil {
		return fmt.Errorf("look for submodules: %w", err)
	}
	if err := s.checkSubmodules(had); err != nil || len(had) == 0 {
		return err
	}
	return s.cleanSubmodules(ctx, false, env)
}
