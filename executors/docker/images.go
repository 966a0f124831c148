package docker

import (
	"context"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/switchyard-ci/switchyard/executors/docker/auth"
	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/executors/docker/pull"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// authVariable has credentials of registries.
const authVariable = "DOCKER_AUTH_CONFIG"

// image is one that the engine has.
type image struct {
	id       string
	platform *ocispec.Platform // if the job asked for one
	ports    []int             // exposed for TCP
	env      []string
}

// onPlatform has a container be made for the platform that the job asked for.
func (i image) onPlatform(o *client.ContainerCreateOptions) { o.Platform = i.platform }

// newPuller returns what gets the images of a job.
func (p *preparation) newPuller() *pull.Puller {
	e := p.executor
	return pull.New(pull.Options{
		Engine: e.client, Config: e.settings, Log: e.log,
		Credentials: auth.Sources{
			Variable: p.vars.Value(authVariable), Home: e.options.Home, Job: p.spec.Job.Credentials, Environ: e.options.Environ,
		},
	})
}

// get brings an image into the engine and says so in out.
func (p *preparation) get(ctx context.Context, asked runnerapi.Image, name string, out io.Writer) (image, error) {
	options, err := config.ImageOptions(asked)
	if err != nil {
		return image{}, err
	}
	options.Platform = p.expand(options.Platform)
	r, err := p.puller.Get(ctx, pull.Request{Image: name, Platform: options.Platform, Policies: asked.PullPolicy}, out)
	if err != nil {
		return image{}, err
	}
	found := image{id: r.ID}
	if options.Platform != "" {
		found.platform = &ocispec.Platform{OS: r.Os, Architecture: r.Architecture, Variant: r.Variant}
	}
	if r.Config != nil {
		found.env = r.Config.Env
		for port := range r.Config.ExposedPorts {
			found.ports = append(found.ports, portsOf(port)...)
		}
	}
	slices.Sort(found.ports)
	return found, nil
}

// portsOf reads what an image exposes: 80, 80/tcp or 8000-8010/tcp. Others than TCP are none.
func portsOf(text string) (ports []int) {
	const most = 20
	text, protocol, _ := strings.Cut(text, "/")
	if protocol != "" && !strings.EqualFold(protocol, "tcp") {
		return nil
	}
	first, last, isRange := strings.Cut(text, "-")
	from, err := strconv.Atoi(first)
	to := from
	if isRange && err == nil {
		to, err = strconv.Atoi(last)
	}
	if err != nil || from < 1 || to > 65535 {
		return nil
	}
	for port := from; port <= to && len(ports) < most; port++ {
		ports = append(ports, port)
	}
	return ports
}

// pullHelper pulls the helper image that an administrator has named.
func (e *Executor) pullHelper(ctx context.Context, name string) error {
	own := *e.settings
	own.PullPolicy, own.AllowedPullPolicies = config.PullPolicies{config.PullIfNotPresent}, nil
	_, err := pull.New(pull.Options{
		Engine: e.client, Config: &own, Log: e.log, Credentials: auth.Sources{Home: e.options.Home, Environ: e.options.Environ},
	}).Get(ctx, pull.Request{Image: name}, io.Discard)
	return err
}
