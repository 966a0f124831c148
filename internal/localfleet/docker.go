package localfleet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"

	"github.com/moby/moby/client"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/docker"
	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/executors/shell"
)

// Docker lets jobs run in containers of the Docker Engine that DOCKER_HOST names, or of the default one. It must be on
// this host: jobs reach the embedded GitLab at the address that this host has in the engine's network.
type Docker struct {
	// Config are the executor's settings; nil means its defaults. It is not changed.
	Config *config.Config
	// Programs is the folder with the helper image's file.
	Programs string
	// CacheVolume is a volume of the engine with the jobs' caches, which is made if it does not exist and stays; empty means
	// that caches end with their jobs.
	CacheVolume string
	// Home is where .docker/config.json with the credentials of registries is looked for; empty means nowhere.
	Home string
}

// executor is the name of what runs the jobs.
func (o *Options) executor() string {
	if o.Docker != nil {
		return docker.Name
	}
	return shell.Name
}

// place makes what runs an agent's jobs, with the agent's folder for its data.
func (f *Fleet) place(data string) (executors.Executor, error) {
	o := f.options
	if o.Docker != nil {
		return docker.New(docker.Options{
			Config: o.Docker.settings(), Data: data, KillGrace: o.KillGrace, Programs: o.Docker.Programs, Home: o.Docker.Home,
			Environ: o.Environ, Log: o.Logger,
		})
	}
	builds, caches := o.BuildsDir, o.CacheDir
	if builds == "" {
		builds = filepath.Join(data, "builds")
	}
	if caches == "" {
		caches = filepath.Join(data, "cache")
	}
	return shell.New(shell.Config{
		Jobs: filepath.Join(data, "jobs"), BuildsDir: builds, CacheDir: caches, KillGrace: o.KillGrace, Environ: o.Environ, Log: o.Logger,
	})
}

// settings leaves no volume behind but that of the caches.
func (d *Docker) settings() *config.Config {
	var c config.Config
	if d.Config != nil {
		c = *d.Config
	}
	c.DisableCache = true
	if d.CacheVolume != "" {
		c.Volumes = append(slices.Clone(c.Volumes), d.CacheVolume+":"+docker.DefaultCacheDir)
	}
	return &c
}

// errNotHere says that jobs in containers could not reach this process.
var errNotHere = errors.New("the Docker Engine is not on this host, so that its containers cannot reach the embedded GitLab; " +
	"use an engine of this host, for example with DOCKER_HOST=unix:///var/run/docker.sock")

// dockerHost is the address at which containers of the engine reach this host: that of the gateway of the engine's own
// network, which every bridge of the engine can reach.
func dockerHost(ctx context.Context) (host string, err error) {
	c, err := client.New(client.FromEnv)
	if err != nil {
		return "", fmt.Errorf("find the Docker Engine: %w", err)
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	found, err := c.NetworkInspect(ctx, "bridge", client.NetworkInspectOptions{})
	if err != nil {
		return "", fmt.Errorf("ask the Docker Engine for the address of this host in its network: %w", err)
	}
	own, err := net.InterfaceAddrs()
	if err != nil {
		return "", fmt.Errorf("list the addresses of this host: %w", err)
	}
	for _, part := range found.Network.IPAM.Config {
		for _, a := range own {
			ip, err := netip.ParsePrefix(a.String())
			// An engine may not say which address of the network is its host's.
			if err == nil && ip.Addr().Is4() && (ip.Addr() == part.Gateway || !part.Gateway.IsValid() && part.Subnet.Contains(ip.Addr())) {
				return ip.Addr().String(), nil
			}
		}
	}
	return "", errNotHere
}
