//go:build unix

package job

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"strings"
	"syscall"
	"time"

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

// writeFileVariables writes the files of file variables, anew for each script: the one before may have changed them.
func (j *Job) writeFileVariables() error {
	files := j.vars.Files()
	if len(files) > 0 { // a script may have removed the folder
		if err := os.MkdirAll(j.tempDir, j.folderMode(0o700)); err != nil {
			return fmt.Errorf("make the folder for temporary files: %w", err)
		}
	}
	for _, v := range files {
		name := j.vars.File(v.Key)
		// A link that a script left must not be followed.
		err := remove(name)
		var f *os.File
		if err == nil {
			f, err = os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, j.fileMode(0o600))
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
	step    bool // a step of the job: the runner's own scripts go around it
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
	if c.step {
		s.Before, s.After = j.Spec.Settings.PreBuildScript, j.Spec.Settings.PostBuildScript
	}
	if j.settings.sections && j.payload.Features.TraceSections {
		s.Section = c.section
	}
	j.vars.Winning(func(key, value string) { s.Exports = append(s.Exports, shell.Export{Key: key, Value: value}) })
	for _, kv := range j.sources.ScriptEnvironment() {
		s.Exports = append(s.Exports, shell.Export{Key: kv[0], Value: kv[1]})
	}
	s.Exports = append(s.Exports, shell.Export{Key: "GITLAB_ENV", Value: path.Join(j.tempDir, environmentFile)})
	text, leftOut := s.Text()
	if len(leftOut) > 0 && !j.leftOutTold {
		j.leftOutTold = true
		j.out.warn("These variables are not set, because shells do not take their names: " + strings.Join(leftOut, ", "))
	}
	stdin, err := unnamedFile(text, j.tempDir)
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
	conn, err := j.dialScript(ctx)
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

// dialScript reaches the place where scripts run, as often as EXECUTOR_JOB_SECTION_ATTEMPTS allows. Only this is repeated:
// once a script may have begun it is not begun again.
func (j *Job) dialScript(ctx context.Context) (conn *net.UnixConn, err error) {
	attempts := 1
	if j.Spec.SectionAttempts {
		attempts = j.settings.sectionAttempts
	}
	for range attempts {
		dial, cancel := context.WithTimeout(ctx, socketPatience)
		conn, err = serve.Dial(dial, j.Spec.ScriptSocket, j.Spec.ScriptToken)
		cancel()
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	return conn, err
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
