//go:build unix

package datadir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/switchyard-ci/switchyard/internal/durable"
)

// placeName is a file that says which folder it was written in: "INODE PATH\n".
const placeName = "place"

// Place tells the folder from every other one on its host, copies of it included: where it is and what it is. It stays the
// same for as long as the folder is not moved.
func (d *Dir) Place() (string, error) {
	inode, err := inodeOf(d.path)
	if err != nil {
		return "", fmt.Errorf("data folder: %w", err)
	}
	return d.path + "\x00" + inode, nil
}

// CopyOf is the path of the folder that this one was copied from, if that is still where it was; "" if there is none. A
// folder that was moved has left nothing behind, so it is no copy, nor is one on another host, where nobody can tell. It is
// what was found by Open.
func (d *Dir) CopyOf() string { return d.copyOf }

// look finds out whether the folder is a copy, and notes its place if it is not.
func (d *Dir) look() error {
	inode, err := inodeOf(d.path)
	if err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	file := filepath.Join(d.path, placeName)
	b, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("data folder: %w", err)
	}
	d.place = inode + " " + d.path + "\n"
	if string(b) == d.place {
		return nil
	}
	noted, path, _ := strings.Cut(strings.TrimSuffix(string(b), "\n"), " ")
	if noted != inode {
		if there, err := inodeOf(path); err == nil && there == noted {
			d.copyOf = path
			return nil
		}
	}
	return d.Settle()
}

// Settle makes a copy a folder of its own: the next Open finds no original.
func (d *Dir) Settle() error {
	if err := durable.WriteFile(filepath.Join(d.path, placeName), []byte(d.place), 0o600); err != nil {
		return fmt.Errorf("note where the data folder is: %w", err)
	}
	return nil
}

func inodeOf(path string) (string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return strconv.FormatUint(s.Ino, 10), nil
	}
	return "0", nil
}
