package docker

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"golang.org/x/sync/errgroup"

	"github.com/switchyard-ci/switchyard/executors"
)

// environment is one job's containers.
type environment struct {
	executor    *Executor
	self        *identity
	name        string
	network     string // the job's own, or empty
	networkMode container.NetworkMode
	volumes     []string // those that go with the job
	hosts       []string // names of services where no network knows them
	place       executors.Place

	mu       sync.Mutex
	helper   string
	build    string
	services map[string]*service
	others   []string // services of an environment that was recovered
	leaving  bool     // what ends now is meant to

	once sync.Once
	done chan struct{}
	err  error
}

func newEnvironment(e *Executor, self *identity, name string) *environment {
	return &environment{executor: e, self: self, name: name, services: make(map[string]*service), done: make(chan struct{})}
}

func (v *environment) setHelper(id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.helper = id
}

func (v *environment) setBuild(id string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.build = id
}

func (v *environment) setService(id string, s *service) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.services[id] = s
}

func (v *environment) helperID() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.helper
}

func (v *environment) buildID() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.build
}

// containers are all that there are.
func (v *environment) containers() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	var ids []string
	for _, id := range append([]string{v.helper, v.build}, v.others...) {
		if id != "" {
			ids = append(ids, id)
		}
	}
	for id := range v.services {
		ids = append(ids, id)
	}
	return ids
}

// kind is what a container is to the job.
func (v *environment) kind(id string) (kind string, s *service) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch id {
	case v.helper:
		return kindHelper, nil
	case v.build:
		return kindBuild, nil
	}
	return kindService, v.services[id]
}

// Job says where things are.
func (v *environment) Job() executors.Place { return v.place }

// LocalFolder returns false: the job folder is in the helper container, for engines near and far alike.
func (v *environment) LocalFolder() (string, bool) { return "", false }

func (v *environment) Done() <-chan struct{} { return v.done }

func (v *environment) Err() error {
	select {
	case <-v.done:
		return v.err
	default:
		return nil
	}
}

func (v *environment) end(why error) {
	v.once.Do(func() {
		v.err = why
		close(v.done)
	})
}

// quit has the environment not take notice any more of what ends.
func (v *environment) quit() {
	v.mu.Lock()
	v.leaving = true
	v.mu.Unlock()
	v.executor.watcher.leave(v)
}

// diedError says that one of the two containers which a job cannot do without has ended.
type diedError struct {
	kind, name string
	code       int // -1 if it is not known
	oom        bool
	removed    bool
	detail     string
}

func (e *diedError) Error() string {
	text := "the " + e.kind + " container " + e.name
	switch {
	case e.removed:
		text += " was removed"
	case e.oom:
		text += " ran out of memory and was killed"
	case e.code >= 0:
		text += fmt.Sprintf(" ended with exit code %d", e.code)
	default:
		text += " does not run any more"
	}
	if e.detail != "" {
		text += ": " + e.detail
	}
	return text
}

// happened takes note of a container's end.
func (v *environment) happened(ctx context.Context, id string, removed bool, code int) {
	kind, s := v.kind(id)
	if s != nil {
		s.died(code)
		return
	}
	v.mu.Lock()
	leaving := v.leaving
	v.mu.Unlock()
	if kind == kindService || leaving {
		return
	}
	d := &diedError{kind: kind, name: containerName(objectName(v.self, v.name), kind), code: code, removed: removed}
	if !removed {
		if r, err := v.executor.client.ContainerInspect(ctx, id, client.ContainerInspectOptions{}); err == nil && r.Container.State != nil {
			d.oom, d.detail = r.Container.State.OOMKilled, r.Container.State.Error
		}
	}
	v.end(d)
}

// look finds out what has become of the containers while nobody listened. An engine that does not answer says nothing.
func (v *environment) look(ctx context.Context) {
	for _, id := range v.containers() {
		r, err := v.executor.client.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
		switch {
		case gone(err):
			v.happened(ctx, id, true, -1)
		case err != nil || r.Container.State == nil:
			return
		case r.Container.State.Status == container.StateExited || r.Container.State.Status == container.StateDead:
			v.happened(ctx, id, false, r.Container.State.ExitCode)
		}
	}
}

// Kill ends all processes of the job. The helper's end first: switchyard-job would take the end of the container of the
// script for the job's.
func (v *environment) Kill(ctx context.Context) error {
	v.mu.Lock()
	v.leaving = true
	helper := v.helper
	v.mu.Unlock()
	if helper != "" {
		if err := v.kill(ctx, helper); err != nil {
			return err
		}
	}
	var g errgroup.Group
	for _, id := range v.containers() {
		if id != helper {
			g.Go(func() error { return v.kill(ctx, id) })
		}
	}
	return g.Wait()
}

// kill kills a container. The engine answers when it has ended.
func (v *environment) kill(ctx context.Context, id string) error {
	_, err := v.executor.client.ContainerKill(ctx, id, client.ContainerKillOptions{Signal: "SIGKILL"})
	if err == nil || gone(err) || notRunning(err) {
		return nil
	}
	return fmt.Errorf("kill the job's containers: %w", err)
}

// killed says whether the containers are about to end, or have ended, because of Kill or Destroy.
func (v *environment) killed() bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.leaving
}

// Destroy removes the containers and what else is the job's only.
func (v *environment) Destroy(ctx context.Context) error {
	v.quit()
	var g errgroup.Group
	for _, id := range v.containers() {
		g.Go(func() error { return v.executor.removeContainer(ctx, id) })
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("remove the job's containers: %w", err)
	}
	return v.executor.removeRest(ctx, v.network, v.volumes)
}

var errNotRunning = errors.New("the environment has no helper container")
