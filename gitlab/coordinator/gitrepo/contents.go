package gitrepo

import (
	"context"
	"fmt"
	"strings"
)

// Blobs returns the ids of a commit's files by their paths, with slashes; submodules are not among them.
func (r *Repo) Blobs(ctx context.Context, commit string) (map[string]string, error) {
	out, err := run(ctx, cleanEnv(), r.dir, nil, "ls-tree", "-r", "-z", commit)
	if err != nil {
		return nil, fmt.Errorf("list the files of %s: %w", commit, err)
	}
	blobs := map[string]string{}
	for _, line := range paths(out) { // <mode> <type> <id>\t<path>
		head, path, _ := strings.Cut(line, "\t")
		if fields := strings.Fields(head); len(fields) == 3 && fields[1] == "blob" {
			blobs[path] = fields[2]
		}
	}
	return blobs, nil
}

// LastCommit returns the id of the newest commit, from the given one backwards, that changed a path; the path may be a
// pattern of git's. It is empty if there is none.
func (r *Repo) LastCommit(ctx context.Context, commit, path string) (string, error) {
	out, err := run(ctx, cleanEnv(), r.dir, nil, "rev-list", "-1", commit, "--", path)
	if err != nil {
		return "", fmt.Errorf("find the last commit of %q: %w", path, err)
	}
	return strings.TrimSpace(string(out)), nil
}
