package git

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// ExitError says that git itself failed; what it had to say is in the trace.
type ExitError struct {
	Command string
	Code    int
	damaged bool
	said    string
}

func (e *ExitError) Error() string { return fmt.Sprintf("git %s: exit code %d", e.Command, e.Code) }

// git runs one command. fresh says that the repository was made by this job, so no fault is another's.
func (s *Sources) git(ctx context.Context, fresh bool, env []string, dir string, args ...string) error {
	code, said, err := s.Run(ctx, append([]string{"git"}, args...), env, dir)
	name := args[0]
	switch name {
	case "-c":
		name = args[2]
	case "submodule", "lfs":
		name += " " + args[1]
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("git %s: %w", name, err)
	}
	if code != 0 {
		return &ExitError{Command: name, Code: code, damaged: !fresh && damaged(string(said)), said: string(said)}
	}
	return nil
}

// force runs a command that removes files. If folders are in its way that may not be written to, they are opened.
func (s *Sources) force(ctx context.Context, fresh bool, env []string, args ...string) error {
	err := s.git(ctx, fresh, env, s.Dir, args...)
	if exit, ok := errors.AsType[*ExitError](err); ok && !fresh && strings.Contains(exit.said, "Permission denied") {
		openFolders(s.Dir)
		err = s.git(ctx, fresh, env, s.Dir, args...)
	}
	return err
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
		"dubious ownership", "unsafe repository", "expected object", "unresolved deltas", "error in object: unshallow",
	} {
		if strings.Contains(said, sign) {
			return true
		}
	}
	return false
}
