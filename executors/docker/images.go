package docker

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// image is one that the engine has.
type image struct {
	id       string
	platform *ocispec.Platform // if the job asked for one
	ports    []int             // exposed for TCP
	env      []string
}

// onPlatform has a container be made for the platform that the job asked for.
func (i image) onPlatform(o *client.ContainerCreateOptions) { o.Platform = i.platform }

type images struct{ executor *Executor }

func newImages(e *Executor) *images { return &images{e} }

func (m *images) pullHelper(ctx context.Context, name string) error { return nil }

// get brings an image into the engine.
func (m *images) get(ctx context.Context, p *preparation, asked runnerapi.Image, name, section string, out io.Writer) (image, error) {
	r, err := m.executor.client.ImageInspect(ctx, name)
	if err != nil {
		return image{}, err
	}
	fmt.Fprintf(out, "Using docker image %s for %s ...\n", r.ID, name)
	found := image{id: r.ID}
	if r.Config != nil {
		found.env = r.Config.Env
		for port := range r.Config.ExposedPorts {
			_ = port
		}
	}
	slices.Sort(found.ports)
	return found, nil
}
