//go:build unix

package job

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/git"
	"github.com/switchyard-ci/switchyard/job/serve"
	"github.com/switchyard-ci/switchyard/job/shell"
)

// prepare is the stage prepare_script.
func (j *Job) prepare(ctx context.Context) error {
	here := j.here()
	if j.Spec.Hostname == "" || j.Spec.Hostname == here {
		j.out.say(fmt.Sprintf("Running on %s...\n", here))
	} else {
		j.out.say(fmt.Sprintf("Running on %s via %s...\n", here, j.Spec.Hostname))
	}
	if j.Spec.SharedFiles {
		syscall.Umask(0)
	}
	if !path.IsAbs(j.Spec.BuildsDir) {
		return fmt.Errorf("the builds folder %q is not an absolute path", j.Spec.BuildsDir)
	}
	var err error
	for _, dir := range []string{filepath.Dir(j.projectDir), j.Spec.BuildsDir} {
		if err = os.MkdirAll(dir, j.folderMode(0o755)); err != nil {
			return fmt.Errorf("make the builds folder: %w", err)
		}
	}
	if err := os.MkdirAll(j.tempDir, j.folderMode(0o700)); err != nil {
		return fmt.Errorf("make the folder for temporary files: %w", err)
	}
	if err := remove(path.Join(j.tempDir, environmentFile)); err != nil {
		return err
	}
	if s := j.sources.Strategy; (s == git.Fetch || s == git.Clone) && shell.Look("git", j.searchPath()) == "" {
		return &failure{
			reason: runnerapi.ReasonConfiguration,
			message: "git was not found in " + j.searchPath() + ": install git where jobs run, " +
				"or set GIT_STRATEGY to none or empty for jobs that need no sources",
		}
	}
	// Hooks run here even where scripts run elsewhere.
	runner := &j.Spec.Settings
	if j.Spec.ScriptSocket == "" || len(j.payload.Hooks) > 0 || runner.PreGetSourcesScript != "" || runner.PostGetSourcesScript != "" {
		if j.shell, err = shell.Find(j.Spec.Shells, j.Spec.Login, j.searchPath()); err != nil {
			return err
		}
	}
	if j.Spec.ScriptSocket == "" {
		return nil
	}
	// The script's user may be another, and /dev/stdout must still be writable for it.
	if err := unix.Fchmod(int(j.out.write.Fd()), 0o666); err != nil {
		return fmt.Errorf("open the job's output to the script's user: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, socketPatience)
	defer cancel()
	j.out.flush()
	conn, err := serve.Dial(ctx, j.Spec.ScriptSocket, j.Spec.ScriptToken)
	if err != nil {
		return err
	}
	return conn.Close()
}

// here is the name of the host or container that this process runs in.
func (j *Job) here() string {
	name, err := os.Hostname()
	if err != nil {
		return "unknown host"
	}
	return name
}

// searchPath is where programs that this process starts itself are looked for.
func (j *Job) searchPath() string {
	for _, kv := range slices.Backward(j.Environment) {
		if p, ok := strings.CutPrefix(kv, "PATH="); ok {
			return p
		}
	}
	return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

// cleanUp is the stage cleanup_file_variables.
func (j *Job) cleanUp(ctx context.Context) error {
	if j.sources.Options.CleanUp {
		if err := j.sources.CleanUp(ctx); err != nil {
			return err
		}
	}
	return j.removeTemporary()
}

// removeTemporary removes what must not outlive the job. It is done in the cleanup stage, or after all stages if it does not
// come to that.
func (j *Job) removeTemporary() error {
	if j.vars == nil || j.tidy {
		return nil
	}
	err := remove(path.Join(j.tempDir, environmentFile))
	if s := j.sources.Strategy; s == git.Fetch || s == git.Clone {
		err = errors.Join(err, os.RemoveAll(path.Join(j.tempDir, "git-template")))
	}
	for _, v := range j.vars.Files() {
		err = errors.Join(err, remove(j.vars.File(v.Key)))
	}
	j.tidy = err == nil
	return err
}

// folderMode and fileMode are the modes of what is made for the user's scripts: where they may run as another user, everybody
// in the environment may use it.
func (j *Job) folderMode(own fs.FileMode) fs.FileMode {
	if j.Spec.SharedFiles {
		return 0o777
	}
	return own
}

func (j *Job) fileMode(own fs.FileMode) fs.FileMode {
	if j.Spec.SharedFiles {
		return 0o666
	}
	return own
}

// remove removes a file that may not exist.
func remove(name string) error {
	if err := syscall.Unlink(name); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}
