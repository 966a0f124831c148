//go:build unix

// Package cache is the bodies of the stages restore_cache and archive_cache: keys, policies, local archives below the cache
// folder and copies of them in an object store, which is reached by URLs that somebody else signs.
//
// A cache is a convenience: whatever is wrong with one is a warning in the trace that says what, and the job goes on without
// it. Archives are not trusted: a refused or corrupt one is removed from this machine.
//
// The behaviour is gitlab-runner's (shells/abstract.go, commands/helpers/cache_*.go). What differs on purpose: a cache that
// could not be uploaded does not stay behind as if it had been; if the object store cannot be reached, an older local copy
// is better than nothing; a broken download is resumed.
package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
	"github.com/switchyard-ci/switchyard/job/transfer"
)

const defaultTimeout = 10 * time.Minute

// Stage is what both stages need to know. Its functions are called by one goroutine at a time, and only until the method
// returns that calls them.
type Stage struct {
	// ProjectDir is the project folder, CacheDir where local archives are: <cache_dir>/<group>/<project>. CacheDir is made if it
	// is missing; empty means that there are no caches.
	ProjectDir, CacheDir string
	// Remote: archives are in an object store too. Sign asks for the URL of one; op is that of folder.CacheRequest. It is given
	// 30 s. An answer with Error, and an error, are warnings.
	Remote bool
	Sign   func(ctx context.Context, op, key string) (folder.CacheAnswer, error)
	// MaxUploaded is the greatest archive that is uploaded, in bytes; 0 is no limit.
	MaxUploaded int64

	// JobName and Ref make the key of a cache that has none.
	JobName, Ref string
	// Expand replaces references to variables, Value returns one's value or "", Flag says whether a feature flag is on.
	Expand func(text string) (string, error)
	Value  func(key string) string
	Flag   func(name string) bool
	// Git lists untracked files, see archive.Wanted; nil if there is no git.
	Git func(ctx context.Context) ([]byte, error)

	// CA is PEM that is trusted in addition to the system's certificates; it may be empty.
	CA        string
	UserAgent string
	// Lines is where the words for the trace go.
	Lines transfer.Lines

	wait func(context.Context, time.Duration) error // of tests
}

// PolicyError says that a cache's policy is none. gitlab-runner fails the job for it.
type PolicyError struct{ Policy, Key string }

func (e *PolicyError) Error() string {
	return fmt.Sprintf("unknown cache policy %s for %s: it can be pull, push or pull-push", e.Policy, e.Key)
}

// Restores says whether Restore would do anything.
func Restores(caches []runnerapi.Cache) bool {
	return slices.ContainsFunc(caches, hasContent)
}

// Archives says whether Archive would do anything.
func Archives(caches []runnerapi.Cache, jobSucceeded bool) bool {
	return slices.ContainsFunc(caches, func(c runnerapi.Cache) bool { return hasContent(c) && wanted(c.When, jobSucceeded) })
}

// Restore extracts the caches into the project folder, those with `policy: push` excepted. Its error is context.Cause(ctx)
// if ctx ended, or the first *PolicyError; everything else is a warning.
func (s *Stage) Restore(ctx context.Context, caches []runnerapi.Cache) error {
	return s.each(ctx, "extraction", caches, func(r *run, c runnerapi.Cache) error {
		if !hasContent(c) {
			return nil
		}
		k, ok := r.key("extraction", c.Key, nil)
		if !ok {
			return nil
		}
		if ok, err := s.allows(c.Policy, "pull", k); !ok {
			if err == nil {
				r.Notice(fmt.Sprintf("Not downloading cache %s due to policy", k.human))
			}
			return err
		}
		return r.restore(ctx, c, k)
	})
}

// Archive packs the caches that a job of this end keeps, those with `policy: pull` excepted, and uploads them if they are
// remote. Its error is context.Cause(ctx) if ctx ended, or the first *PolicyError; everything else is a warning.
func (s *Stage) Archive(ctx context.Context, caches []runnerapi.Cache, jobSucceeded bool) error {
	return s.each(ctx, "archiving", caches, func(r *run, c runnerapi.Cache) error {
		if !hasContent(c) || !wanted(c.When, jobSucceeded) {
			return nil
		}
		k, ok := r.key("archiving", c.Key, nil)
		if !ok {
			return nil
		}
		if ok, err := s.allows(c.Policy, "push", k); !ok {
			if err == nil {
				r.Notice(fmt.Sprintf("Not uploading cache %s due to policy", k.human))
			}
			return err
		}
		return r.archive(ctx, c, k)
	})
}

// run is one stage while it runs.
type run struct {
	*Stage
	transfer.Lines
	store   *store
	client  *transfer.Client // nil if caches are local
	timeout time.Duration
	meter   time.Duration
}

func (s *Stage) each(ctx context.Context, what string, caches []runnerapi.Cache, do func(*run, runnerapi.Cache) error) error {
	r := &run{Stage: s, Lines: s.Lines.Serial()}
	if s.CacheDir == "" {
		r.Notice("Skipping cache " + what + " due to unset cache directory")
		return nil
	}
	var err error
	if r.store, err = openStore(s.CacheDir); err != nil {
		r.Warn(err.Error())
		return nil
	}
	defer r.store.close()
	if s.Remote {
		r.client, err = transfer.New(transfer.Options{CA: s.CA, Value: s.Value, UserAgent: s.UserAgent, ResponseHeader: responseTimeout})
		if err != nil {
			r.Warn(err.Error())
			return nil
		}
		defer r.client.Close()
	}
	r.timeout = defaultTimeout
	if v := s.Value("CACHE_REQUEST_TIMEOUT"); v != "" {
		if n, err := strconv.Atoi(v); err != nil || n < 1 || n > 1<<20 {
			r.Warn(fmt.Sprintf("CACHE_REQUEST_TIMEOUT: expected minutes, got %q, using %v", v, defaultTimeout))
		} else {
			r.timeout = time.Duration(n) * time.Minute
		}
	}
	if v := s.Value("TRANSFER_METER_FREQUENCY"); v != "" {
		var ok bool
		if r.meter, ok = transfer.Frequency(v); !ok {
			r.Warn(fmt.Sprintf("TRANSFER_METER_FREQUENCY: expected a duration such as 5s, got %q", v))
		}
	}

	var first error
	for _, c := range caches {
		err := do(r, c)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// allows says whether a cache's policy lets it be pulled or pushed.
func (s *Stage) allows(policy, what string, k key) (bool, error) {
	policy, err := s.Expand(policy)
	if err != nil {
		return false, errors.Join(&PolicyError{Policy: policy, Key: k.human}, err)
	}
	switch policy {
	case "", "pull-push":
		return true, nil
	case "pull", "push":
		return policy == what, nil
	}
	return false, &PolicyError{Policy: policy, Key: k.human}
}

func hasContent(c runnerapi.Cache) bool { return len(c.Paths) > 0 || c.Untracked }

// wanted says whether a cache with this `when` is kept of a job that ended so.
func wanted(when string, jobSucceeded bool) bool {
	switch when {
	case "always":
		return true
	case "on_failure":
		return !jobSucceeded
	}
	return jobSucceeded
}

// expandAll expands references in each text.
func (s *Stage) expandAll(texts []string) ([]string, error) {
	expanded := make([]string, len(texts))
	for i, t := range texts {
		var err error
		if expanded[i], err = s.Expand(t); err != nil {
			return nil, fmt.Errorf("%s: %w", strings.TrimSpace(t), err)
		}
	}
	return expanded, nil
}
