package docker

import (
	"context"
	"errors"

	"github.com/moby/moby/client"
)

// Altered has containers be made of something else than the settings say.
func Altered(o *Options, alter func(kind string, o *client.ContainerCreateOptions)) { o.alter = alter }

// RemoveShared removes the volumes that jobs of this agent share.
func (e *Executor) RemoveShared(ctx context.Context) error {
	self, err := e.identity()
	if err != nil {
		return err
	}
	found, err := e.client.VolumeList(ctx, client.VolumeListOptions{
		Filters: make(client.Filters).Add("label", labelAgent+"="+self.id()),
	})
	if err != nil {
		return err
	}
	var errs []error
	for _, v := range found.Items {
		_, err := e.client.VolumeRemove(ctx, v.Name, client.VolumeRemoveOptions{Force: true})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Leftovers lists what the engine has of this agent's jobs: all that is one job's own.
func (e *Executor) Leftovers(ctx context.Context) ([]string, error) {
	self, err := e.identity()
	if err != nil {
		return nil, err
	}
	filters := make(client.Filters).Add("label", labelAgent+"="+self.id(), labelName)
	containers, err := e.client.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: filters})
	if err != nil {
		return nil, err
	}
	volumes, err := e.client.VolumeList(ctx, client.VolumeListOptions{Filters: filters})
	if err != nil {
		return nil, err
	}
	networks, err := e.client.NetworkList(ctx, client.NetworkListOptions{Filters: filters})
	if err != nil {
		return nil, err
	}
	var left []string
	for _, c := range containers.Items {
		left = append(left, "container "+c.Names[0])
	}
	for _, v := range volumes.Items {
		left = append(left, "volume "+v.Name)
	}
	for _, n := range networks.Items {
		left = append(left, "network "+n.Name)
	}
	return left, nil
}

// Foreign are the containers on the engine that are not this agent's, by their ids.
func (e *Executor) Foreign(ctx context.Context) (map[string]bool, error) {
	self, err := e.identity()
	if err != nil {
		return nil, err
	}
	list, err := e.client.ContainerList(ctx, client.ContainerListOptions{All: true})
	if err != nil {
		return nil, err
	}
	foreign := make(map[string]bool)
	for _, c := range list.Items {
		if c.Labels[labelAgent] != self.id() {
			foreign[c.ID] = true
		}
	}
	return foreign, nil
}

// BinaryVolume is the name of the volume with the program of a helper image.
func BinaryVolume(image string) string { return binaryVolume(image) }

// Client is the executor's.
func (e *Executor) Client() *client.Client { return e.client }
