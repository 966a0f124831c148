package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// git runs git in dir and returns its output without the last newline. Its error has what git said.
func git(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	cmd.Env = append(Environ(os.Environ()), "GIT_OPTIONAL_LOCKS=0", "LC_ALL=C")
	cmd.Env = append(cmd.Env, env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	switch text := strings.TrimSpace(stderr.String()); {
	case err == nil:
		return strings.TrimSuffix(string(out), "\n"), nil
	case ctx.Err() != nil:
		return "", fmt.Errorf("git %s: %w", args[0], ctx.Err())
	case errors.Is(err, exec.ErrNotFound):
		return "", fmt.Errorf("git is needed to read the working tree: install git: %w", err)
	case text != "":
		return "", fmt.Errorf("git %s: %s: %w", args[0], text, err)
	}
	return "", fmt.Errorf("git %s: %w", args[0], err)
}

// elsewhere are the variables by which git is told to work on another repository than the one of its folder, as it
// happens in hooks.
var elsewhere = []string{
	"GIT_DIR", "GIT_WORK_TREE", "GIT_IMPLICIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY",
	"GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_QUARANTINE_PATH", "GIT_PREFIX", "GIT_COMMON_DIR", "GIT_NAMESPACE",
	"GIT_SHALLOW_FILE", "GIT_GRAFT_FILE",
}

// Environ returns an environment, in the form of os.Environ, without what would point git to another repository: a
// process of a hook has such variables.
func Environ(env []string) []string {
	kept := make([]string, 0, len(env))
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		if !slices.Contains(elsewhere, name) {
			kept = append(kept, e)
		}
	}
	return kept
}
