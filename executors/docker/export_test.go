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

// BinaryVolume is the name of the volume with the program of a helper image.
func BinaryVolume(image string) string { return binaryVolume(image) }

// Client is the executor's.
func (e *Executor) Client() *client.Client { return e.client }
