package docker

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"

	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/internal/helperimage"
)

// helperBinary is switchyard-job in the helper image.
const helperBinary = helperimage.JobBinary

// objectName is what the names of a job's containers, volumes and network begin with. The environment's own name is unique
// among an agent's jobs only.
func objectName(self *identity, name string) string { return name + "-" + self.id()[:8] }

func (p *preparation) objects() string { return objectName(p.self, p.spec.Name) }

func containerName(objects, kind string) string { return objects + "-" + kind }

// startHelper makes and starts the helper container; h is told of what it says.
func (p *preparation) startHelper(ctx context.Context, h *handshake) error {
	parts := p.aide
	parts.Config.Entrypoint = []string{helperBinary}
	parts.Config.Cmd = []string{
		"hold", "--open", strings.Join(append([]string{socketDir}, p.mounted.open...), ":"), "--socket", socketPath, "--token-file", tokenPath,
	}
	parts.Config.User = "0:0"
	if p.mounted.shared {
		parts.Config.Labels[labelShared] = "true"
	}
	parts.Config.OpenStdin, parts.Config.StdinOnce, parts.Config.AttachStdin, parts.Config.AttachStdout = true, true, true, true
	p.setHostname(&parts)
	parts.Host.Binds = p.mounted.binds
	parts.Host.Mounts = append(p.mounted.forHelper(), p.socketMount())
	parts.Host.ExtraHosts = append(parts.Host.ExtraHosts, p.env.hosts...)
	id, err := p.create(ctx, kindHelper, containerName(p.objects(), kindHelper), p.helperImage, parts, nil)
	if err != nil {
		return err
	}
	p.env.setHelper(id)
	if err := h.attach(ctx, id); err != nil {
		return err
	}
	return p.startContainer(ctx, kindHelper, id)
}

// startBuild makes and starts the container of the user's image.
func (p *preparation) startBuild(ctx context.Context) error {
	if err := p.createBuild(ctx); err != nil {
		return err
	}
	return p.runBuild(ctx)
}

func (p *preparation) createBuild(ctx context.Context) error {
	parts := p.build
	parts.Config.Cmd = []string{
		jobBinary, "serve", "--socket", socketPath, "--token-file", tokenPath, "--grace", p.executor.options.KillGrace.String(),
	}
	// An entrypoint may lose arguments (sh -c): the program understands these, too.
	parts.Config.Env = append(p.environment(), "SWITCHYARD_SERVE_SOCKET="+socketPath, "SWITCHYARD_SERVE_TOKEN_FILE="+tokenPath)
	p.setHostname(&parts)
	parts.Host.Binds = p.mounted.binds
	parts.Host.Mounts = append(slices.Clone(p.mounted.mounts), p.socketMount(), mount.Mount{
		Type: mount.TypeVolume, Source: p.binary, Target: binDir, ReadOnly: true, VolumeOptions: &mount.VolumeOptions{NoCopy: true},
	})
	parts.Host.ExtraHosts = append(parts.Host.ExtraHosts, p.env.hosts...)
	parts.Endpoint.Aliases = []string{"build"}
	id, err := p.create(ctx, kindBuild, containerName(p.objects(), kindBuild), p.buildImage.id, parts, p.buildImage.onPlatform)
	if err != nil {
		return err
	}
	p.env.setBuild(id)
	return nil
}

func (p *preparation) runBuild(ctx context.Context) error {
	return p.startContainer(ctx, kindBuild, p.env.buildID())
}

func (p *preparation) startContainer(ctx context.Context, kind, id string) error {
	if _, err := p.executor.client.ContainerStart(ctx, id, client.ContainerStartOptions{}); err != nil {
		return &startError{kind, err}
	}
	return nil
}

// startError is a container's that could not be started.
type startError struct {
	kind string
	err  error
}

func (e *startError) Error() string { return fmt.Sprintf("start the %s container: %v", e.kind, e.err) }
func (e *startError) Unwrap() error { return e.err }

// setHostname gives a container the name of the slot, as gitlab-runner does, where a container may have one.
func (p *preparation) setHostname(parts *config.Parts) {
	if parts.Config.Hostname == "" {
		const longest = 63
		name := slotName(p.spec)
		parts.Config.Hostname = name[:min(len(name), longest)]
	}
	if p.env.networkMode.IsContainer() || parts.Host.NetworkMode.IsContainer() {
		parts.Config.Hostname = ""
	}
}
