package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/client"

	"github.com/switchyard-ci/switchyard/executors"
)

// Exec runs a command in the helper container.
func (v *environment) Exec(ctx context.Context, c executors.Command) (int, error) {
	if len(c.Argv) == 0 {
		return 0, errors.New("run a command in the helper container: there is none")
	}
	code, err := v.exec(ctx, c)
	if err != nil && ctx.Err() != nil {
		return 0, ctx.Err()
	}
	if err != nil {
		return 0, fmt.Errorf("run %s in the helper container: %w", c.Argv[0], err)
	}
	return code, nil
}

func (v *environment) exec(ctx context.Context, c executors.Command) (int, error) {
	api := v.executor.client
	helper := v.helperID()
	if helper == "" {
		return 0, errNotRunning
	}
	made, err := api.ExecCreate(ctx, helper, client.ExecCreateOptions{
		Cmd: c.Argv, AttachStdin: c.Stdin != nil, AttachStdout: true, AttachStderr: true,
	})
	if err != nil {
		return 0, err
	}
	ended, forget := v.executor.watcher.exec(made.ID)
	defer forget()
	stream, err := api.ExecAttach(ctx, made.ID, client.ExecAttachOptions{})
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	if c.Stdin != nil {
		// A Read that blocks cannot be interrupted, so nobody waits for this one; it ends with its reader.
		go func() {
			_, _ = io.Copy(stream.Conn, c.Stdin)
			_ = stream.CloseWrite()
		}()
	}
	if err := copyOut(ctx, c, &stream); err != nil {
		return 0, err
	}
	return v.exitCode(ctx, made.ID, ended)
}

// copyOut passes on what the process writes until nobody can write any more or ctx ends.
func copyOut(ctx context.Context, c executors.Command, stream *client.ExecAttachResult) error {
	stdout, stderr := c.Stdout, c.Stderr
	if stdout == nil {
		stdout = io.Discard
	}
	if stderr == nil {
		stderr = io.Discard
	}
	stop := context.AfterFunc(ctx, stream.Close)
	defer stop()
	if _, err := stdcopy.StdCopy(stdout, stderr, stream.Reader); err != nil {
		return fmt.Errorf("lost sight of it: %w", err)
	}
	return ctx.Err()
}

// exitCode is that of a process whose output has ended. It may still run if it has closed its output: then the engine's
// events tell of its end.
func (v *environment) exitCode(ctx context.Context, id string, ended <-chan int) (int, error) {
	for {
		r, err := v.executor.client.ExecInspect(ctx, id, client.ExecInspectOptions{})
		if err != nil {
			return 0, fmt.Errorf("lost sight of it: %w", err)
		}
		if !r.Running {
			if r.ExitCode == 0 && v.killed() { // of what went with its container the engine may not know the code
				return 128 + int(syscall.SIGKILL), nil
			}
			return v.started(r)
		}
		select {
		case code := <-ended:
			if code != unknown {
				return code, nil
			}
		case <-v.done:
			return 0, fmt.Errorf("lost sight of it: %w", v.err)
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
}

// started tells a process that ended from one that never began: the latter has no process id.
func (v *environment) started(r client.ExecInspectResult) (int, error) {
	if r.PID == 0 && (r.ExitCode == 126 || r.ExitCode == 127) {
		return 0, fmt.Errorf("it cannot be started (%d)", r.ExitCode)
	}
	return r.ExitCode, nil
}
