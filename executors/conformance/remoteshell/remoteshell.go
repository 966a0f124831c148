//go:build unix

// Package remoteshell is an executor for tests: shell environments that keep their job folder where the agent does not
// look, as containers do. So what is done by Exec alone can be tested wherever there is a shell.
package remoteshell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/shell"
)

// Executor makes such environments.
type Executor struct {
	*shell.Executor
	// Root is the folder that job folders are in, each in one with its environment's name: the shell executor's Jobs.
	Root string
	// Wrap changes each environment that is handed out; nil: none.
	Wrap func(executors.Environment) executors.Environment
}

// New makes one. c.Jobs is the folder for job folders; the agent's is another.
func New(c shell.Config) (*Executor, error) {
	inner, err := shell.New(c)
	if err != nil {
		return nil, err
	}
	return &Executor{Executor: inner, Root: c.Jobs}, nil
}

// Prepare makes the folder that the job folder will be in.
func (x *Executor) Prepare(ctx context.Context, spec executors.Spec, trace io.Writer) (executors.Environment, error) {
	if err := os.Mkdir(filepath.Join(x.Root, spec.Name), 0o700); err != nil {
		return nil, fmt.Errorf("make the environment: %w", err)
	}
	inner, err := x.Executor.Prepare(ctx, x.elsewhere(spec), trace)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(filepath.Join(x.Root, spec.Name)))
	}
	return x.environment(inner, spec), nil
}

// Recover finds the environment by that folder.
func (x *Executor) Recover(ctx context.Context, spec executors.Spec) (executors.Environment, error) {
	if _, err := os.Stat(filepath.Join(x.Root, spec.Name)); err != nil {
		return nil, executors.ErrNotFound
	}
	inner, err := x.Executor.Recover(ctx, x.elsewhere(spec))
	if errors.Is(err, executors.ErrNotFound) { // nothing was launched
		inner, err = x.Executor.Prepare(ctx, x.elsewhere(spec), io.Discard)
	}
	if err != nil {
		return nil, err
	}
	return x.environment(inner, spec), nil
}

// Sweep kills what runs in environments that are not to be kept, and removes them.
func (x *Executor) Sweep(ctx context.Context, keep func(name string) bool) error {
	errs := []error{x.Executor.Sweep(ctx, keep)}
	entries, err := os.ReadDir(x.Root)
	errs = append(errs, err)
	for _, e := range entries {
		if !keep(e.Name()) {
			errs = append(errs, os.RemoveAll(filepath.Join(x.Root, e.Name())))
		}
	}
	return errors.Join(errs...)
}

func (x *Executor) elsewhere(spec executors.Spec) executors.Spec {
	spec.Folder = filepath.Join(x.Root, spec.Name, "job")
	return spec
}

func (x *Executor) environment(inner executors.Environment, spec executors.Spec) executors.Environment {
	var v executors.Environment = &environment{inner, filepath.Join(x.Root, spec.Name)}
	if x.Wrap != nil {
		v = x.Wrap(v)
	}
	return v
}

type environment struct {
	executors.Environment
	dir string
}

// LocalFolder says that there is none.
func (v *environment) LocalFolder() (string, bool) { return "", false }

// Destroy also removes the job folder.
func (v *environment) Destroy(ctx context.Context) error {
	if err := v.Kill(ctx); err != nil {
		return err
	}
	if err := os.RemoveAll(v.dir); err != nil {
		return fmt.Errorf("destroy: %w", err)
	}
	return nil
}
