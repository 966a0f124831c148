//go:build unix

package shell

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	osuser "os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// user is one that jobs run as.
type user struct {
	name, home string
	uid, gid   int
	credential *syscall.Credential
}

// lookUp finds the users of run_as.
func lookUp(names []string) ([]user, error) {
	if len(names) > 0 && os.Geteuid() != 0 {
		return nil, fmt.Errorf("run_as is %s: only an agent that runs as root can run jobs as other users", strings.Join(names, ", "))
	}
	users := make([]user, 0, len(names))
	for _, name := range names {
		found, err := osuser.Lookup(name)
		if err != nil {
			return nil, fmt.Errorf("run_as names %q: %w: make the user (useradd --create-home %s) or name another", name, err, name)
		}
		u := user{name: found.Username, home: found.HomeDir}
		if u.uid, err = strconv.Atoi(found.Uid); err == nil {
			u.gid, err = strconv.Atoi(found.Gid)
		}
		if err != nil {
			return nil, fmt.Errorf("run_as names %q: %w", name, err)
		}
		if u.uid == 0 {
			return nil, fmt.Errorf("run_as names %q, which is root: name a user without privileges, or leave run_as out", name)
		}
		u.credential = &syscall.Credential{Uid: uint32(u.uid), Gid: uint32(u.gid)} //nolint:gosec // as the system gave them
		groups, err := found.GroupIds()
		if err != nil {
			return nil, fmt.Errorf("run_as names %q: %w", name, err)
		}
		for _, g := range groups {
			id, err := strconv.ParseUint(g, 10, 32)
			if err != nil {
				return nil, fmt.Errorf("run_as names %q: %w", name, err)
			}
			u.credential.Groups = append(u.credential.Groups, uint32(id))
		}
		users = append(users, u)
	}
	return users, nil
}

// folder is the user's own below one that all share.
func (u *user) folder(shared string) string { return filepath.Join(shared, u.name) }

// ownFolders makes the user's folders, closed to others.
func (u *user) ownFolders(shared ...string) error {
	for _, dir := range shared {
		own := u.folder(dir)
		if err := os.Mkdir(own, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("make a folder for %s: %w", u.name, err)
		}
		info, err := os.Lstat(own)
		if err != nil {
			return fmt.Errorf("make a folder for %s: %w", u.name, err)
		}
		if !info.IsDir() {
			return fmt.Errorf("make a folder for %s: %s is there and is no folder: remove it", u.name, own)
		}
		if err := os.Lchown(own, u.uid, u.gid); err != nil {
			return fmt.Errorf("make a folder for %s: %w", u.name, err)
		}
	}
	return nil
}

// take gives a job folder to the user: what the agent has written there by now is the job's to read.
func (u *user) take(jobFolder string) error {
	// The way to it must be open, which shows nothing of what is there.
	if err := os.Chmod(filepath.Dir(jobFolder), 0o711); err != nil { // #nosec G302 -- to pass through, not to read
		return err
	}
	root, err := os.OpenRoot(jobFolder)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	return fs.WalkDir(root.FS(), ".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return root.Lchown(path, u.uid, u.gid)
	})
}

// environ is environ as a login of the user has it.
func (u *user) environ(environ []string) []string {
	own := []string{"HOME=" + u.home, "USER=" + u.name, "LOGNAME=" + u.name}
	kept := slices.DeleteFunc(slices.Clone(environ), func(kv string) bool {
		key, _, _ := strings.Cut(kv, "=")
		switch key {
		case "HOME", "USER", "LOGNAME", "MAIL", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK":
			return true
		}
		return strings.HasPrefix(key, "SUDO_")
	})
	return append(kept, own...)
}

// openTo opens the way to job folders to a user and makes sure that it can be gone.
func (e *Executor) openTo(u user) error {
	for _, dir := range []string{filepath.Dir(e.config.Jobs), e.config.Jobs} {
		info, err := os.Stat(dir)
		if err == nil && info.Mode().Perm()&0o001 == 0 {
			err = os.Chmod(dir, info.Mode().Perm()|0o011)
		}
		if err != nil {
			return fmt.Errorf("shell executor: run_as: open the way to the jobs: %w", err)
		}
	}
	c := exec.Command("sh", "-c", `cd "$1" && cd "$2"`, "sh", e.config.Jobs, e.config.BuildsDir)
	c.Dir = "/"
	c.SysProcAttr = &syscall.SysProcAttr{Credential: u.credential}
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("shell executor: run_as: the user %s cannot reach %s or %s (%w: %s): choose folders for data and builds_dir "+
			"that every user may pass through", u.name, e.config.Jobs, e.config.BuildsDir, err, strings.TrimSpace(string(out)))
	}
	return nil
}
