//go:build unix

package cache

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"
)

const (
	// archiveName is the name of every archive, whatever its format: gitlab-runner's.
	archiveName = "cache.zip"
	temporary   = "archive_"
	// abandoned is how long nothing was written to a temporary file of which nobody is going to make an archive.
	abandoned = 24 * time.Hour
)

// store is the folder of local archives. Jobs at the same time may use it: an archive is whole or not there.
type store struct{ root *os.Root }

func openStore(dir string) (*store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the cache folder: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the cache folder: %w", err)
	}
	return &store{root}, nil
}

func (s *store) close() { _ = s.root.Close() }

func file(name string) string { return path.Join(name, archiveName) }

// find returns what is known of an archive; nil if there is none.
func (s *store) find(name string) fs.FileInfo {
	info, err := s.root.Lstat(file(name))
	if err != nil || !info.Mode().IsRegular() {
		return nil
	}
	return info
}

// open opens an archive for reading. It satisfies fs.ErrNotExist if there is none.
func (s *store) open(name string) (*os.File, fs.FileInfo, error) {
	if s.find(name) == nil {
		return nil, nil, fmt.Errorf("open the cache: %w", fs.ErrNotExist)
	}
	f, err := s.root.Open(file(name))
	if err != nil {
		return nil, nil, fmt.Errorf("open the cache: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		_ = f.Close()
		return nil, nil, fmt.Errorf("open the cache: %w", err)
	}
	return f, info, nil
}

// drop removes an archive unless it is another one by now.
func (s *store) drop(name string, was fs.FileInfo) error {
	now := s.find(name)
	if now == nil || !os.SameFile(now, was) {
		return nil
	}
	return s.root.Remove(file(name))
}

// adopt gives an archive a new name if there is none of that name.
func (s *store) adopt(former, name string) error {
	if former == "" || s.find(name) != nil || s.find(former) == nil {
		return nil
	}
	if err := s.root.MkdirAll(name, 0o700); err != nil {
		return fmt.Errorf("make the cache's folder: %w", err)
	}
	return s.root.Rename(file(former), file(name))
}

// fresh is an archive that is being made.
type fresh struct {
	*os.File
	store *store
	temp  string
	name  string
}

// create begins a new archive.
func (s *store) create(name string) (*fresh, error) {
	if err := s.root.MkdirAll(name, 0o700); err != nil {
		return nil, fmt.Errorf("make the cache's folder: %w", err)
	}
	s.tidy(name)
	temp := path.Join(name, temporary+rand.Text())
	f, err := s.root.OpenFile(temp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("make the cache's file: %w", err)
	}
	return &fresh{File: f, store: s, temp: temp, name: name}, nil
}

// keep closes the file and puts it in its place. If modified is not zero, that is its time.
func (f *fresh) keep(modified time.Time) error {
	err := f.Close()
	if err == nil && !modified.IsZero() {
		err = f.store.root.Chtimes(f.temp, time.Now(), modified)
	}
	if err == nil {
		err = f.store.root.Rename(f.temp, file(f.name))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("keep the cache's file: %w", err), f.store.root.Remove(f.temp))
	}
	return nil
}

// discard closes and removes the file.
func (f *fresh) discard() {
	_ = f.Close()
	_ = f.store.root.Remove(f.temp)
}

// tidy removes what processes left behind that were killed.
func (s *store) tidy(name string) {
	dir, err := s.root.Open(name)
	if err != nil {
		return
	}
	defer func() { _ = dir.Close() }()
	entries, _ := dir.ReadDir(1000)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), temporary) {
			continue
		}
		if info, err := e.Info(); err == nil && time.Since(info.ModTime()) > abandoned {
			_ = s.root.Remove(path.Join(name, e.Name()))
		}
	}
}
