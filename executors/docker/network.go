package docker

import (
	"context"
	"fmt"
	"strconv"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// networkVariable has the name of the job's own network, as with gitlab-runner's FF_NETWORK_PER_BUILD.
const networkVariable = "CI_BUILD_NETWORK_NAME"

// mtuOption is the bridge driver's.
const mtuOption = "com.docker.network.driver.mtu"

// networkName is the name of the job's own network; empty if the settings name another.
func (p *preparation) networkName() string {
	if p.executor.settings.NetworkMode != "" {
		return ""
	}
	return networkName(p.objects())
}

func networkName(objects string) string { return objects + "-network" }

func (p *preparation) createNetwork(ctx context.Context) error {
	name := p.networkName()
	if name == "" {
		return nil
	}
	o := client.NetworkCreateOptions{Driver: "bridge", Labels: with(p.labels, kindNetwork)}
	if s := p.executor.settings; s.EnableIPv6 {
		o.EnableIPv6 = &s.EnableIPv6
	}
	if mtu := p.executor.settings.NetworkMTU; mtu > 0 {
		o.Options = map[string]string{mtuOption: strconv.Itoa(mtu)}
	}
	ctx, cancel, err := steady(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	if _, err := p.executor.client.NetworkCreate(ctx, name, o); err != nil {
		return fmt.Errorf("create the job's network: %w", err)
	}
	p.env.networkMode = container.NetworkMode(name)
	return nil
}
