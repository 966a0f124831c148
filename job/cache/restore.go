//go:build unix

package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/archive"
)

const protectedSuffix = "-protected"

// restore extracts a cache, or the first of its fallbacks that can be extracted.
func (r *run) restore(ctx context.Context, c runnerapi.Cache, first key) error {
	keys := []key{first}
	for _, user := range c.FallbackKeys {
		if user == "" {
			continue
		}
		if k, ok := r.key("extraction", user, nil); ok {
			keys = append(keys, k)
		}
	}
	if user := r.Value("CACHE_FALLBACK_KEY"); user != "" {
		// Only GitLab gives keys that suffix, to keep apart what protected refs trust.
		allowed := func(human string) bool {
			if strings.HasSuffix(human, protectedSuffix) {
				r.Warn(fmt.Sprintf("CACHE_FALLBACK_KEY %q not allowed to end in %q", human, protectedSuffix))
				return false
			}
			return true
		}
		if k, ok := r.key("extraction", user, allowed); ok {
			keys = append(keys, k)
		}
	}
	for _, k := range keys {
		r.Notice(fmt.Sprintf("Checking cache for %s...", k.human))
		err := r.restoreKey(ctx, k)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err == nil {
			r.Notice("Successfully extracted cache")
			return nil
		}
		r.Warn(err.Error())
		r.Warn("Failed to extract cache")
		if r.Flag("FF_CLEAN_UP_FAILED_CACHE_EXTRACT") {
			r.cleanUp(c.Paths)
		}
	}
	return nil
}

// restoreKey extracts the cache of one key.
func (r *run) restoreKey(ctx context.Context, k key) error {
	if err := r.store.adopt(k.former, k.name); err != nil {
		r.Warn("take over the cache of the key before it was hashed: " + err.Error())
	}
	if r.Remote {
		err := r.download(ctx, k)
		switch {
		case err == nil || ctx.Err() != nil:
		case errors.Is(err, errMissing) || r.store.find(k.name) == nil:
			return err
		default:
			r.Warn(err.Error())
			r.Warn("The cache could not be downloaded. The local version of it is extracted instead.")
		}
	} else {
		r.Say("No URL provided, cache will not be downloaded from shared cache server. Instead a local version of cache will be extracted.")
	}
	f, info, err := r.store.open(k.name)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New("Cache file does not exist")
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	root, err := os.OpenRoot(r.ProjectDir)
	if err != nil {
		return fmt.Errorf("open the project folder: %w", err)
	}
	defer func() { _ = root.Close() }()
	_, err = archive.Unpack(ctx, f, info.Size(), root, archive.Limits{}, r.Warn)
	if err == nil || ctx.Err() != nil {
		return err
	}
	if !errors.Is(err, archive.ErrHostile) && !errors.Is(err, archive.ErrCorrupt) {
		return fmt.Errorf("extract the cache: %w", err) // the archive is not to blame
	}
	err = fmt.Errorf("the cache is not used: %w", err)
	if dropErr := r.store.drop(k.name, info); dropErr != nil {
		return fmt.Errorf("%w; it could not be removed: %w", err, dropErr)
	}
	return fmt.Errorf("%w; the local copy is removed", err)
}

// cleanUp removes the cache's paths, of which an archive that failed may have extracted a part.
func (r *run) cleanUp(paths []string) {
	root, err := os.OpenRoot(r.ProjectDir)
	if err != nil {
		r.Warn("open the project folder: " + err.Error())
		return
	}
	defer func() { _ = root.Close() }()
	for _, p := range paths {
		expanded, err := r.Expand(p)
		if err == nil && filepath.IsAbs(expanded) {
			expanded, err = filepath.Rel(r.ProjectDir, expanded)
		}
		if err != nil {
			r.Warn(fmt.Sprintf("%s is not removed: %v", p, err))
			continue
		}
		name := path.Clean(expanded)
		if name == "." || !filepath.IsLocal(name) {
			r.Warn(fmt.Sprintf("%s is not removed: it is not within the project folder", p))
			continue
		}
		r.Say("Removing " + p)
		if err := root.RemoveAll(name); err != nil {
			r.Warn(fmt.Sprintf("%s is not removed: %v", p, err))
		}
	}
}
