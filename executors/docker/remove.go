package docker

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"golang.org/x/sync/errgroup"
)

func notRunning(err error) bool { return errdefs.IsConflict(err) }

// removeContainer kills and removes a container with its anonymous volumes. One that is not there is removed.
func (e *Executor) removeContainer(ctx context.Context, id string) error {
	_, err := e.client.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: !e.settings.VolumeKeep})
	switch {
	case err == nil || gone(err):
		return nil
	case errdefs.IsConflict(err): // somebody else is removing it
		waiting, stop := context.WithCancel(ctx)
		defer stop()
		removed := e.client.ContainerWait(waiting, id, client.ContainerWaitOptions{Condition: container.WaitConditionRemoved})
		select {
		case <-removed.Result:
			return nil
		case waitErr := <-removed.Error:
			if gone(waitErr) {
				return nil
			}
			return errors.Join(err, waitErr)
		}
	}
	return err
}

// removeRest removes a job's network and volumes, which no container uses any more.
func (e *Executor) removeRest(ctx context.Context, network string, volumes []string) error {
	var g errgroup.Group
	if network != "" {
		g.Go(func() error { return e.removeNetwork(ctx, network) })
	}
	for _, volume := range volumes {
		g.Go(func() error {
			_, err := e.client.VolumeRemove(ctx, volume, client.VolumeRemoveOptions{Force: true})
			if err == nil || gone(err) {
				return nil
			}
			return fmt.Errorf("remove the volume %s: %w", volume, err)
		})
	}
	return g.Wait()
}

// removeNetwork removes a network; containers that others have put into it are taken out.
func (e *Executor) removeNetwork(ctx context.Context, name string) error {
	_, err := e.client.NetworkRemove(ctx, name, client.NetworkRemoveOptions{})
	if err == nil || gone(err) {
		return nil
	}
	found, inspectErr := e.client.NetworkInspect(ctx, name, client.NetworkInspectOptions{})
	if gone(inspectErr) {
		return nil
	}
	if inspectErr == nil {
		for id := range found.Network.Containers {
			if _, err := e.client.NetworkDisconnect(ctx, name, client.NetworkDisconnectOptions{Container: id, Force: true}); err != nil && !gone(err) {
				e.log.Warn("a container stays in a job's network", "network", name, "container", id, "err", err)
			}
		}
		if _, err = e.client.NetworkRemove(ctx, name, client.NetworkRemoveOptions{}); err == nil || gone(err) {
			return nil
		}
	}
	return fmt.Errorf("remove the network %s: %w", name, err)
}

// belongings is all that bears the name of an environment.
type belongings struct {
	containers map[string]found // by id
	networks   []string         // ids
	volumes    []string
	shared     bool // builds are in a folder of the engine's host
}

// found is a container that bears the name of an environment.
type found struct {
	kind  string
	fresh bool // it has never been started
}

// list finds what this agent has made, by environment. name limits it to one; empty means all.
func (e *Executor) list(ctx context.Context, self *identity, name string) (map[string]*belongings, error) {
	all := make(map[string]*belongings)
	of := func(labels map[string]string) *belongings {
		b := all[labels[labelName]]
		if b == nil {
			b = &belongings{containers: make(map[string]found)}
			all[labels[labelName]] = b
		}
		return b
	}
	containers, err := e.client.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: mine(self, name)})
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	for _, c := range containers.Items {
		b := of(c.Labels)
		b.containers[c.ID] = found{c.Labels[labelType], c.State == container.StateCreated}
		b.shared = b.shared || c.Labels[labelShared] == "true"
	}
	networks, err := e.client.NetworkList(ctx, client.NetworkListOptions{Filters: mine(self, name)})
	if err != nil {
		return nil, fmt.Errorf("list networks: %w", err)
	}
	for _, n := range networks.Items {
		b := of(n.Labels)
		b.networks = append(b.networks, n.ID)
	}
	volumes, err := e.client.VolumeList(ctx, client.VolumeListOptions{Filters: mine(self, name)})
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	for _, v := range volumes.Items {
		b := of(v.Labels)
		b.volumes = append(b.volumes, v.Name)
	}
	return all, nil
}

// remove removes all that bears the name of an environment.
func (e *Executor) remove(ctx context.Context, self *identity, name string) error {
	found, err := e.list(ctx, self, name)
	if err != nil {
		return err
	}
	b := found[name]
	if b == nil {
		return nil
	}
	return e.removeAll(ctx, b)
}

func (e *Executor) removeAll(ctx context.Context, b *belongings) error {
	var g errgroup.Group
	for id := range b.containers {
		g.Go(func() error { return e.removeContainer(ctx, id) })
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("remove containers: %w", err)
	}
	var errs []error
	for _, id := range b.networks {
		errs = append(errs, e.removeRest(ctx, id, nil))
	}
	return errors.Join(append(errs, e.removeRest(ctx, "", b.volumes))...)
}

// Sweep removes what this agent has made in this engine for jobs that it does not hold.
func (e *Executor) Sweep(ctx context.Context, keep func(name string) bool) error {
	self, err := e.identity()
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	found, err := e.list(ctx, self, "")
	if err != nil {
		return fmt.Errorf("sweep: %w", err)
	}
	var g errgroup.Group
	g.SetLimit(atOnce)
	for name, b := range found {
		if keep(name) {
			continue
		}
		e.log.Warn("removing what is left of a job that this agent does not hold any more", "name", name, "containers", len(b.containers))
		g.Go(func() error {
			if err := e.removeAll(ctx, b); err != nil {
				return fmt.Errorf("sweep %s: %w", name, err)
			}
			return nil
		})
	}
	return g.Wait()
}
