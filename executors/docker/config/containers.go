package config

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Containers is a checked and parsed Config: what it says of each kind of container. It does not change and may be used
// concurrently.
type Containers struct {
	config *Config

	build, service                limits
	devices                       []container.DeviceMapping
	servicesDevices               map[string][]container.DeviceMapping
	deviceRequests, serviceDevice []container.DeviceRequest
	ulimits                       []*container.Ulimit
	dns                           []netip.Addr
	mac                           network.HardwareAddr
	volumes                       []Volume
}

// New checks and parses c, which must not change afterwards. The error is that of Check.
func New(c *Config) (*Containers, error) {
	var k checker
	k.refused(c)
	k.plain(c)
	k.images(c)
	parsed := &Containers{
		config:          c,
		build:           k.limits("", c.Memory, c.MemorySwap, c.MemoryReservation, c.CPUs),
		service:         k.limits("service_", c.ServiceMemory, c.ServiceMemorySwap, c.ServiceMemoryReservation, c.ServiceCPUs),
		devices:         k.devices("devices", c.Devices),
		servicesDevices: make(map[string][]container.DeviceMapping),
		deviceRequests:  k.gpus("gpus", c.GPUs),
		serviceDevice:   k.gpus("service_gpus", c.ServiceGPUs),
		ulimits:         k.ulimits(c.Ulimit),
		dns:             k.dns(c.DNS),
		mac:             k.mac(c.MacAddress),
		volumes:         k.volumes(c.Volumes),
	}
	for pattern, devices := range c.ServicesDevices {
		parsed.servicesDevices[pattern] = k.devices("services_devices", devices)
	}
	if err := errors.Join(k.errs...); err != nil {
		return nil, err
	}
	return parsed, nil
}

// Config returns what c was made of.
func (c *Containers) Config() *Config { return c.config }

// Parts are what the settings say of one container. The caller completes them: Config's Image, Cmd and Env and its own
// labels, Host's NetworkMode and mounts, the name of the network that Endpoint is for.
type Parts struct {
	Config   *container.Config
	Host     *container.HostConfig
	Endpoint *network.EndpointSettings
	// Notices are for the job's trace.
	Notices []string
}

// Build returns the parts of a job's build container. The image's name has its variables replaced already; expand does so
// for the rest. The error is for the user: a user that is not allowed, or options that are not known.
func (c *Containers) Build(image runnerapi.Image, expand func(string) string) (Parts, error) {
	options, err := ImageOptions(image)
	if err != nil {
		return Parts{}, err
	}
	user, err := c.user(expand(options.User))
	if err != nil {
		return Parts{}, err
	}
	host := c.host(c.build)
	host.Privileged = c.config.Privileged && allowed(c.config.AllowedPrivilegedImages, image.Name)
	host.CapAdd = c.config.CapAdd
	host.Devices = c.devices
	host.DeviceRequests = c.deviceRequests
	host.DeviceCgroupRules = c.config.DeviceCgroupRules
	host.GroupAdd = c.config.GroupAdd
	host.PidMode = container.PidMode(c.config.PidMode)
	host.IpcMode = container.IpcMode(c.config.IpcMode)
	host.OomScoreAdj = c.config.OomScoreAdjust
	host.Tmpfs = c.config.Tmpfs
	host.Sysctls = c.config.Sysctls
	host.VolumeDriver = c.config.VolumeDriver
	host.VolumesFrom = c.config.VolumesFrom
	host.ShmSize = c.config.ShmSize
	if c.config.OomKillDisable {
		host.OomKillDisable = &c.config.OomKillDisable
	}
	p := Parts{Config: &container.Config{Hostname: c.config.Hostname, User: user, Labels: c.labels(expand)}, Host: host, Endpoint: c.endpoint()}
	c.link(&p)
	p.Endpoint.MacAddress = c.mac
	c.entrypoint(&p, image)
	return p, nil
}

// Helper returns the parts of a job's helper container: all that restricts the build container, because hooks run in it,
// and nothing that gives more rights than an ordinary container has.
func (c *Containers) Helper(expand func(string) string) Parts {
	host := c.host(c.build)
	host.VolumeDriver = c.config.VolumeDriver
	host.VolumesFrom = c.config.VolumesFrom
	host.OomScoreAdj = c.config.OomScoreAdjust
	p := Parts{Config: &container.Config{Hostname: c.config.Hostname, Labels: c.labels(expand)}, Host: host, Endpoint: c.endpoint()}
	return p
}

// Service returns the parts of a service's container, as Build does for its own.
func (c *Containers) Service(image runnerapi.Image, expand func(string) string) (Parts, error) {
	options, err := ImageOptions(image)
	if err != nil {
		return Parts{}, err
	}
	privileged := c.config.Privileged
	if c.config.ServicesPrivileged != nil {
		privileged = *c.config.ServicesPrivileged
	}
	host := &container.HostConfig{
		Resources: container.Resources{
			Memory: c.service.memory, MemorySwap: c.service.swap, MemoryReservation: c.service.reservation, NanoCPUs: c.service.nanoCPUs,
			CgroupParent: c.config.ServiceCgroupParent, CpusetCpus: c.config.ServiceCpusetCPUs, CPUShares: c.config.ServiceCPUShares,
			DeviceRequests: c.serviceDevice, PidsLimit: c.pids(),
		},
		Privileged:  privileged && allowed(c.config.AllowedPrivilegedServices, image.Name),
		SecurityOpt: c.config.ServicesSecurityOpt,
		ShmSize:     c.config.ShmSize,
		Tmpfs:       c.config.ServicesTmpfs,
	}
	for _, pattern := range sortedKeys(c.servicesDevices) {
		if matches(pattern, image.Name) {
			host.Devices = append(host.Devices, c.servicesDevices[pattern]...)
		}
	}
	c.common(host)
	p := Parts{
		Config: &container.Config{User: expand(options.User), Cmd: image.Command, Labels: c.labels(expand)},
		Host:   host, Endpoint: c.endpoint(),
	}
	c.entrypoint(&p, image)
	return p, nil
}

// host is what build and helper containers have in common.
func (c *Containers) host(l limits) *container.HostConfig {
	host := &container.HostConfig{
		Resources: container.Resources{
			Memory: l.memory, MemorySwap: l.swap, MemoryReservation: l.reservation, NanoCPUs: l.nanoCPUs,
			CgroupParent: c.config.CgroupParent, CpusetCpus: c.config.CpusetCPUs, CpusetMems: c.config.CpusetMems,
			CPUShares: c.config.CPUShares, PidsLimit: c.pids(), Ulimits: c.ulimits,
		},
		CapDrop:     c.config.CapDrop,
		SecurityOpt: c.config.SecurityOpt,
	}
	c.common(host)
	return host
}

// common is what all containers have in common.
func (c *Containers) common(host *container.HostConfig) {
	host.DNS = c.dns
	host.DNSSearch = c.config.DNSSearch
	host.ExtraHosts = slices.Clone(c.config.ExtraHosts)
	host.Runtime = c.config.Runtime
	host.UsernsMode = container.UsernsMode(c.config.UsernsMode)
	host.NetworkMode = container.NetworkMode(c.config.NetworkMode)
	host.RestartPolicy = container.RestartPolicy{Name: container.RestartPolicyDisabled}
	// Services' logs are read back, which not every driver can.
	host.LogConfig = container.LogConfig{Type: "json-file", Config: c.config.LogOptions}
}

func (c *Containers) pids() *int64 {
	if c.config.PidsLimit == 0 {
		return nil
	}
	return &c.config.PidsLimit
}

func (c *Containers) endpoint() *network.EndpointSettings { return &network.EndpointSettings{} }

// link puts links where the engine wants them: with the container on the default bridge, with the network elsewhere.
func (c *Containers) link(p *Parts) {
	if container.NetworkMode(c.config.NetworkMode).IsUserDefined() {
		p.Endpoint.Links = c.config.Links
	} else {
		p.Host.Links = c.config.Links
	}
}

func (c *Containers) labels(expand func(string) string) map[string]string {
	labels := make(map[string]string, len(c.config.ContainerLabels))
	for key, value := range c.config.ContainerLabels {
		labels[key] = expand(value)
	}
	return labels
}

func (c *Containers) entrypoint(p *Parts, image runnerapi.Image) {
	switch {
	case len(image.Entrypoint) == 0:
	case c.config.DisableEntrypoint:
		p.Notices = append(p.Notices, "Entrypoint override disabled")
	default:
		p.Config.Entrypoint = image.Entrypoint
	}
}

// WaitForServices is how long services may take until they answer; ok is false if they are not waited for.
func (c *Containers) WaitForServices() (limit time.Duration, ok bool) {
	const defaultWait = 30 * time.Second
	switch seconds := c.config.WaitForServicesTimeout; {
	case seconds < 0:
		return 0, false
	case seconds == 0:
		return defaultWait, true
	default:
		return time.Duration(seconds) * time.Second, true
	}
}

// Services are those that every job gets, in GitLab's form.
func (c *Containers) Services() []runnerapi.Image {
	var images []runnerapi.Image
	for _, s := range c.config.Services {
		image := runnerapi.Image{Name: s.Name, Alias: s.Alias, Entrypoint: s.Entrypoint, Command: s.Command}
		for _, variable := range s.Environment {
			key, value, _ := strings.Cut(variable, "=")
			image.Variables = append(image.Variables, runnerapi.Variable{Key: key, Value: value})
		}
		images = append(images, image)
	}
	return images
}
