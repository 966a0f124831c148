//go:build unix

package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
)

// tree keeps the folders open that lead to where files are being unpacked. One goroutine uses it.
type tree struct {
	root *folder // not owned
	warn func(string)
	path []string // the names of the open folders, each in the one before
	open []*folder
	// opened is called with the path of a folder whose mode had to be widened, and with the mode it had.
	widened func(name string, mode fs.FileMode)
}

// close closes all.
func (t *tree) close() { t.leave(0) }

// leave closes the folders below the first keep ones.
func (t *tree) leave(keep int) {
	for _, f := range t.open[keep:] {
		f.release()
	}
	t.path, t.open = t.path[:keep], t.open[:keep]
}

// enter opens a folder, which is valid until the next call; who needs it longer holds it. What is missing on the way is
// made, the last one with mode. Links on the way are replaced by folders, never followed.
func (t *tree) enter(dir string, mode fs.FileMode) (*folder, error) {
	if dir == "." {
		return t.root, nil
	}
	shared, rest := 0, dir
	for shared < len(t.path) && rest != "" {
		first, after, _ := strings.Cut(rest, "/")
		if first != t.path[shared] {
			break
		}
		shared, rest = shared+1, after
	}
	t.leave(shared)
	for rest != "" {
		first, after, _ := strings.Cut(rest, "/")
		makeMode := fs.FileMode(0o777)
		if after == "" {
			makeMode = mode
		}
		sub, err := t.into(first, makeMode)
		if err != nil {
			return nil, fmt.Errorf("folder %q: %w", path.Join(append(t.path, first)...), err)
		}
		t.path, t.open = append(t.path, first), append(t.open, sub)
		rest = after
	}
	return t.here(), nil
}

func (t *tree) here() *folder {
	if len(t.open) == 0 {
		return t.root
	}
	return t.open[len(t.open)-1]
}

// into opens base in the folder that is open last.
func (t *tree) into(base string, mode fs.FileMode) (*folder, error) {
	in := t.here()
	info, err := in.Lstat(base)
	if err == nil && !info.IsDir() {
		t.warn(fmt.Sprintf("%s: replaced by a folder", path.Join(append(t.path, base)...)))
		err = in.Remove(base)
		if err == nil {
			err = fs.ErrNotExist
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		if err = in.Mkdir(base, mode); err == nil {
			info, err = in.Lstat(base)
		}
	}
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&0o700 != 0o700 {
		if err := in.Chmod(base, mode|0o700); err != nil {
			return nil, err
		}
		t.widened(path.Join(append(t.path, base)...), mode)
	}
	sub, err := in.OpenRoot(base)
	if err != nil {
		return nil, err
	}
	// OpenRoot follows a link within in: this is about one that has just taken the folder's place.
	if now, err := sub.Lstat("."); err != nil || !os.SameFile(info, now) {
		_ = sub.Close() // nothing was done in it
		return nil, errors.Join(err, errors.New("it was replaced meanwhile"))
	}
	return newFolder(sub), nil
}
