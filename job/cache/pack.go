//go:build unix

package cache

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/archive"
)

// archive makes and uploads the archive of one cache.
func (r *run) archive(ctx context.Context, c runnerapi.Cache, k key) error {
	r.Notice(fmt.Sprintf("Creating cache %s...", k.human))
	made, err := r.create(ctx, c, k)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	switch {
	case err != nil:
		r.Warn(err.Error())
		r.Warn("Failed to create cache")
	case made:
		r.Notice("Created cache")
	}
	return nil
}

// create is false without an error if there was nothing to archive.
func (r *run) create(ctx context.Context, c runnerapi.Cache, k key) (made bool, err error) {
	if err := r.store.adopt(k.former, k.name); err != nil {
		r.Warn("take over the cache of the key before it was hashed: " + err.Error())
	}
	paths, err := r.expandAll(c.Paths)
	if err != nil {
		return false, err
	}
	selected, err := archive.Select(ctx, r.ProjectDir, archive.Wanted{Paths: paths, Untracked: c.Untracked, Git: r.Git})
	if err != nil {
		return false, fmt.Errorf("find the files of the cache: %w", err)
	}
	for _, m := range selected.Messages {
		if m.Warning {
			r.Warn(m.Text)
		} else {
			r.Say(m.Text)
		}
	}
	if len(selected.Names) == 0 {
		r.Warn("No files to cache.")
		return false, nil
	}
	root, err := os.OpenRoot(r.ProjectDir)
	if err != nil {
		return false, fmt.Errorf("open the project folder: %w", err)
	}
	defer func() { _ = root.Close() }()
	if info := r.store.find(k.name); info != nil && !changed(root, selected.Names, info.ModTime()) {
		if k.former == "" || !r.Remote || r.exists(ctx, k) {
			r.Say("Archive is up to date!")
			return true, nil
		}
		// It came from where it was before keys were hashed.
		return true, r.upload(ctx, k)
	}
	if err := r.pack(ctx, root, selected.Names, k); err != nil {
		return false, err
	}
	if !r.Remote {
		r.Say("No URL provided, cache will not be uploaded to shared cache server. Cache will be stored only locally.")
		return true, nil
	}
	return true, r.upload(ctx, k)
}

// changed says whether any of the files is newer than the archive: gitlab-runner's rule.
func changed(root *os.Root, names []string, archived time.Time) bool {
	for _, name := range names {
		if info, err := root.Lstat(name); err != nil || archived.Before(info.ModTime()) {
			return true
		}
	}
	return false
}

func (r *run) pack(ctx context.Context, root *os.Root, names []string, k key) error {
	f, err := r.store.create(k.name)
	if err != nil {
		return err
	}
	if _, err := archive.Pack(ctx, f.File, r.format(), archive.Level(r.Value("CACHE_COMPRESSION_LEVEL")), root, names, r.Warn); err != nil {
		f.discard()
		return fmt.Errorf("pack the cache: %w", err)
	}
	return f.keep(time.Time{})
}

func (r *run) format() archive.Format {
	v := r.Value("CACHE_COMPRESSION_FORMAT")
	switch f := archive.Format(strings.ToLower(v)); f {
	case "":
	case archive.Zip, archive.ZipZstd, archive.TarZstd:
		return f
	default:
		r.Warn(fmt.Sprintf("CACHE_COMPRESSION_FORMAT: expected zip, tarzstd or zipzstd, got %q, using zip", v))
	}
	return archive.Zip
}
