//go:build unix

package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/git"
	"github.com/switchyard-ci/switchyard/job/process"
	"github.com/switchyard-ci/switchyard/job/serve"
	"github.com/switchyard-ci/switchyard/job/shell"
)

const (
	// environmentFile is what $GITLAB_ENV points to.
	environmentFile    = "gitlab_runner_env"
	maxEnvironmentFile = 16 << 20

	// socketPatience is how long the container of the user's script may take to answer.
	socketPatience = 30 * time.Second
)

// prepare is the stage prepare_script.
func (j *Job) prepare(ctx context.Context) error {
	here, err := os.Hostname()
	if err != nil {
		here = "unknown host"
	}
	if j.Spec.Hostname == "" || j.Spec.Hostname == here {
		j.out.say(fmt.Sprintf("Running on %s...\n", here))
	} else {
		j.out.say(fmt.Sprintf("Running on %s via %s...\n", here, j.Spec.Hostname))
	}
	if !path.IsAbs(j.Spec.BuildsDir) {
		return fmt.Errorf("the builds folder %q is not an absolute path", j.Spec.BuildsDir)
	}
	for _, dir := range []string{filepath.Dir(j.projectDir), j.Spec.BuildsDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make the builds folder: %w", err)
		}
	}
	if err := os.MkdirAll(j.tempDir, 0o700); err != nil {
		return fmt.Errorf("make the folder for temporary files: %w", err)
	}
	if err := remove(path.Join(j.tempDir, environmentFile)); err != nil {
		return err
	}
	if s := j.settings.strategy; (s == git.Fetch || s == git.Clone) && shell.Look("git", j.searchPath()) == "" {
		return &failure{
			reason: runnerapi.ReasonConfiguration,
			message: "git was not found in " + j.searchPath() + ": install git where jobs run, " +
				"or set GIT_STRATEGY to none or empty for jobs that need no sources",
		}
	}
	// Hooks run here even where scripts run elsewhere.
	if j.Spec.ScriptSocket == "" || len(j.payload.Hooks) > 0 {
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
	if j.settings.cleanUp {
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
	if s := j.settings.strategy; s == git.Fetch || s == git.Clone {
		err = errors.Join(err, os.RemoveAll(path.Join(j.tempDir, "git-template")))
	}
	for _, v := range j.vars.Files() {
		err = errors.Join(err, remove(j.vars.File(v.Key)))
	}
	j.tidy = err == nil
	return err
}

// remove removes a file that may not exist.
func remove(name string) error {
	if err := syscall.Unlink(name); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return &fs.PathError{Op: "remove", Path: name, Err: err}
	}
	return nil
}

// writeFileVariables writes the files of file variables, anew for each script: the one before may have changed them.
func (j *Job) writeFileVariables() error {
	files := j.vars.Files()
	if len(files) > 0 { // a script may have removed the folder
		if err := os.MkdirAll(j.tempDir, 0o700); err != nil {
			return fmt.Errorf("make the folder for temporary files: %w", err)
		}
	}
	for _, v := range files {
		name := j.vars.File(v.Key)
		// A link that a script left must not be followed.
		err := remove(name)
		var f *os.File
		if err == nil {
			f, err = os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		}
		if err == nil {
			_, err = f.WriteString(v.Value)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			return fmt.Errorf("write the file of variable %s: %w", v.Key, err)
		}
	}
	return nil
}

// commands are one script to run in a shell.
type commands struct {
	list    []string
	dir     string
	section string
	notice  string
	here    bool // in this environment even if scripts run elsewhere
}

// runScript runs commands in a shell of their own.
func (j *Job) runScript(ctx context.Context, c commands) error {
	if err := j.writeFileVariables(); err != nil {
		return err
	}
	assignments, err := j.assignments()
	if err != nil {
		return err
	}
	s := shell.Script{
		Assignments: assignments, Dir: c.dir, Notice: c.notice, Commands: c.list,
		Trace: j.settings.debugTrace, CheckExitCodes: j.settings.checkExitCodes,
	}
	if j.settings.sections && j.payload.Features.TraceSections {
		s.Section = c.section
	}
	j.vars.Winning(func(key, value string) { s.Exports = append(s.Exports, shell.Export{Key: key, Value: value}) })
	s.Exports = append(s.Exports, shell.Export{Key: "GITLAB_ENV", Value: path.Join(j.tempDir, environmentFile)})
	text, leftOut := s.Text()
	if len(leftOut) > 0 && !j.leftOutTold {
		j.leftOutTold = true
		j.out.warn("These variables are not set, because shells do not take their names: " + strings.Join(leftOut, ", "))
	}
	stdin, err := scriptFile(text, j.tempDir)
	if err != nil {
		return fmt.Errorf("write the script: %w", err)
	}
	defer func() { _ = stdin.Close() }()

	var code int
	if j.Spec.ScriptSocket != "" && !c.here {
		code, err = j.runThere(ctx, stdin)
	} else {
		code, err = j.runHere(ctx, process.Command{
			Path: j.shell.Path, Argv: j.shell.Argv, Env: j.Environment, Dir: j.Spec.BuildsDir,
			Stdin: stdin, Stdout: j.out.write, Stderr: j.out.write,
		})
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		return err
	}
	if code != 0 {
		return exited(code)
	}
	return nil
}

// assignments reads what scripts wrote to $GITLAB_ENV.
func (j *Job) assignments() ([]string, error) {
	notRegular := &failure{message: fmt.Sprintf("$GITLAB_ENV must be a regular file of at most %d bytes", maxEnvironmentFile)}
	f, err := os.OpenFile(path.Join(j.tempDir, environmentFile), os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case errors.Is(err, syscall.ELOOP):
		return nil, notRegular
	case err != nil:
		return nil, fmt.Errorf("read $GITLAB_ENV: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read $GITLAB_ENV: %w", err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxEnvironmentFile {
		return nil, notRegular
	}
	b, err := io.ReadAll(io.LimitReader(f, maxEnvironmentFile))
	if err != nil {
		return nil, fmt.Errorf("read $GITLAB_ENV: %w", err)
	}
	return shell.Assignments(b), nil
}

// runHere runs a program as a child and returns its exit code. If ctx ends, every process of the job is stopped.
func (j *Job) runHere(ctx context.Context, c process.Command) (int, error) {
	p, err := j.Group.Start(c)
	if err != nil {
		return 0, err
	}
	end := make(chan struct{})
	ended := false
	go func() {
		defer close(end)
		select {
		case <-p.Done():
			ended = true
		case <-ctx.Done():
			ended = j.Group.StopAll(j.Spec.KillGrace, patience)
		}
	}()
	if err := j.out.copyUntil(end); err != nil {
		return 0, err
	}
	if !ended {
		return 0, errors.New("processes that were killed did not end")
	}
	return p.Exit().Code, nil
}

// runThere runs the shell where the script belongs, in another container.
func (j *Job) runThere(ctx context.Context, stdin *os.File) (int, error) {
	dial, cancel := context.WithTimeout(ctx, socketPatience)
	defer cancel()
	conn, err := serve.Dial(dial, j.Spec.ScriptSocket, j.Spec.ScriptToken)
	if err != nil {
		return 0, err
	}
	r, err := serve.Start(conn, serve.Command{
		Shells: j.Spec.Shells, Login: j.Spec.Login, Dir: "/", KillWithClient: true,
	}, stdin, j.out.write, j.out.write)
	if err != nil {
		return 0, fmt.Errorf("start the script: %w", err)
	}
	defer r.Close()
	end := make(chan struct{})
	go func() {
		defer close(end)
		select {
		case <-r.Done():
			return
		case <-ctx.Done():
		}
		for _, s := range []struct {
			signal syscall.Signal
			wait   time.Duration
		}{{syscall.SIGTERM, j.Spec.KillGrace}, {syscall.SIGKILL, patience}} {
			if err := r.Signal(s.signal, true); err != nil {
				j.Log.Warn("a signal did not reach the script", "error", err)
			}
			t := time.NewTimer(s.wait)
			select {
			case <-r.Done():
				t.Stop()
				return
			case <-t.C:
			}
		}
	}()
	if err := j.out.copyUntil(end); err != nil {
		return 0, err
	}
	select {
	case <-r.Done():
		exit, err := r.Exit()
		return exit.Code, err
	default:
		return 0, errors.New("the script was killed and did not end")
	}
}

// runGit runs git for the sources.
func (j *Job) runGit(ctx context.Context, argv, env []string, dir string) (int, []byte, error) {
	j.out.said = j.out.said[:0]
	code, err := j.runHere(ctx, process.Command{
		Path: shell.Look("git", j.searchPath()), Argv: argv, Env: env, Dir: dir, Stdout: j.out.write, Stderr: j.out.write,
	})
	return code, j.out.said, err
}

// fill writes text to f and goes back to its beginning.
func fill(f *os.File, text []byte) error {
	_, err := f.Write(text)
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = f.Close()
	}
	return err
}
