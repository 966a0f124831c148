//go:build unix

package archive

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"time"
)

// folder makes a folder.
func (u *unpacker) folder(e item) error {
	_, base, err := u.enter(&e, folderKind)
	if err != nil || base == "." {
		return err // what the folder itself is like is not the archive's business
	}
	if _, err := u.tree.enter(e.name, e.mode|0o700); err != nil {
		return err
	}
	u.late[e.name] = e
	return nil
}

// widened remembers the mode of a folder that was there before and that the archive may say nothing of.
func (u *unpacker) widened(name string, mode fs.FileMode) {
	if _, known := u.late[name]; !known {
		u.late[name] = item{name: name, mode: mode}
	}
}

// finishFolders gives folders their modes and times, the inner ones first.
func (u *unpacker) finishFolders() error {
	list := make([]string, 0, len(u.late))
	for name := range u.late {
		list = append(list, name)
	}
	slices.Sort(list)
	var errs []error
	for _, name := range slices.Backward(list) {
		e := u.late[name]
		in, err := u.tree.enter(path.Dir(name), 0o777)
		if err == nil {
			err = u.finishFolder(in, path.Base(name), e)
		}
		if err != nil && len(errs) < 10 {
			errs = append(errs, fmt.Errorf("folder %q: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

func (u *unpacker) finishFolder(in *folder, base string, e item) error {
	info, err := in.Lstat(base)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return errors.New("it was replaced meanwhile")
	}
	if u.givesAway(e) {
		_ = in.Lchown(base, e.uid, e.gid) // as gitlab-runner: as far as it may
	}
	if info.Mode().Perm() != e.mode {
		if err := in.Chmod(base, e.mode); err != nil {
			return err
		}
	}
	if e.modified.IsZero() {
		return nil
	}
	return in.Chtimes(base, time.Time{}, e.modified)
}
