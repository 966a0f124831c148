package coordinator

import (
	"crypto/sha1"
	"encoding/hex"
	"slices"
	"strings"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator/glob"
)

// cacheDigest is the part of a cache's key that depends on files (Gitlab::Ci::Pipeline::Seed::Build::Cache): the SHA-1 of
// the sorted ids, of the files' contents or of the last commits that changed them. Empty if there are none.
func (f *commitFiles) cacheDigest(patterns []string, commits bool) (string, error) {
	var ids []string
	for _, p := range patterns {
		found, err := f.ids(p, commits)
		if err != nil {
			return "", err
		}
		ids = append(ids, found...)
	}
	if len(ids) == 0 {
		return "", nil
	}
	slices.Sort(ids)
	sum := sha1.Sum([]byte(strings.Join(slices.Compact(ids), "-")))
	return hex.EncodeToString(sum[:]), nil
}

// ids are those of the files that a pattern means, or of the last commit that changed one of them.
func (f *commitFiles) ids(pattern string, commits bool) ([]string, error) {
	if commits {
		id, err := f.lastCommit(pattern)
		if id == "" || err != nil {
			return nil, err
		}
		return []string{id}, nil
	}
	blobs, err := f.blobs()
	if err != nil {
		return nil, err
	}
	if !strings.Contains(pattern, "*") {
		if id, ok := blobs[pattern]; ok {
			return []string{id}, nil
		}
		return nil, nil
	}
	p, err := glob.Include(pattern)
	if err != nil {
		return nil, err
	}
	var ids []string
	for path, id := range blobs {
		if p.Match(path) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
