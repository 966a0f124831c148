package docker

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/distribution/reference"
	"github.com/moby/moby/client"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// service is a container beside the job's.
type service struct {
	definition runnerapi.Image // its name is the one that was decided on
	image      string          // with a tag
	title      string          // name and version
	slug       string
	aliases    []string
	index      int
	pulled     image

	id      string
	address string // where the helper reaches it
	once    sync.Once
	dead    chan struct{}
	code    int // of the exit; read after dead
}

// died takes note of the container's end.
func (s *service) died(code int) {
	s.once.Do(func() {
		s.code = code
		close(s.dead)
	})
}

// decideServices says which services there are: the settings' first, then the job's. One that has no name of its own left
// is not made, as with gitlab-runner.
func (p *preparation) decideServices() error {
	c := p.executor.containers
	definitions := c.Services()
	own := len(definitions)
	definitions = append(slices.Clone(definitions), p.spec.Job.Services...)
	if err := c.CheckServices(len(definitions)); err != nil {
		return err
	}
	taken := make(map[string]bool)
	for i, d := range definitions {
		name := p.expand(d.Name)
		if i >= own {
			var err error
			if name, err = c.ServiceImage(d, p.expand, p.out); err != nil {
				return err
			}
		}
		d.Name, d.Alias = name, p.expand(d.Alias)
		s := newService(i, d)
		if s.title == "" {
			return failure(runnerapi.ReasonRunnerSystem, "invalid service image name: %s", d.Name)
		}
		fresh := false
		for _, alias := range s.aliases {
			if taken[alias] {
				p.out.warn("Service " + d.Name + " is already created. Ignoring.")
				continue
			}
			taken[alias], fresh = true, true
		}
		if !fresh {
			continue
		}
		if _, err := c.Service(d, p.expand); err != nil { // what is wrong with it comes before anything is made
			return err
		}
		p.services = append(p.services, s)
	}
	return nil
}

// newService names a service by its image as gitlab-runner does: registry.example.com:5000/group/name:tag is known as
// registry.example.com__group__name and registry.example.com-group-name, and by the aliases that the job gives it.
func newService(index int, d runnerapi.Image) *service {
	s := &service{definition: d, index: index, dead: make(chan struct{})}
	parts := reference.ReferenceRegexp.FindStringSubmatch(d.Name)
	if parts == nil {
		return s
	}
	name, tag, digest := parts[1], parts[2], parts[3]
	s.image = d.Name
	known := withoutPort(name)
	switch {
	case tag != "":
		s.title = known + ":" + tag
	case digest != "":
		s.title = known + "@" + digest
	default:
		s.image = name + ":latest"
		s.title = known + ":latest"
	}
	s.slug = strings.ReplaceAll(known, "/", "__")
	s.aliases = []string{s.slug}
	if other := strings.ReplaceAll(known, "/", "-"); other != s.slug {
		s.aliases = append(s.aliases, other)
	}
	s.aliases = append(s.aliases, strings.FieldsFunc(d.Alias, func(r rune) bool { return r == ',' || r == ' ' })...)
	return s
}

// withoutPort removes the port of an image's registry.
func withoutPort(name string) string {
	host, rest, has := strings.Cut(name, "/")
	if before, port, ok := strings.Cut(host, ":"); ok {
		if _, err := strconv.Atoi(port); err == nil {
			host = before
		}
	}
	if has {
		return host + "/" + rest
	}
	return host
}

// containerName is unique and says what it is.
func (s *service) containerName(objects string) string {
	const limit = 60
	slug := s.slug[max(0, len(s.slug)-limit):]
	return objects + "-" + strings.TrimLeft(slug, "_.-") + "-" + strconv.Itoa(s.index)
}

// ports are those by which it is seen whether the service is there: what the image exposes and the job declares, at most
// twenty, or the one that HEALTHCHECK_TCP_PORT names.
func (s *service) ports(env []string) ([]int, error) {
	for _, kv := range env {
		key, value, _ := strings.Cut(kv, "=")
		if !strings.EqualFold(key, "HEALTHCHECK_TCP_PORT") {
			continue
		}
		port, err := strconv.Atoi(value)
		if err != nil || port < 1 || port > 65535 {
			return nil, fmt.Errorf("invalid health check tcp port: %v", value)
		}
		return []int{port}, nil
	}
	const most = 20
	ports := slices.Clone(s.pulled.ports)
	var declared []struct {
		Number   int    `json:"number"`
		Protocol string `json:"protocol"`
	}
	if len(s.definition.Ports) > 0 && json.Unmarshal(s.definition.Ports, &declared) == nil {
		for _, d := range declared {
			if d.Number > 0 && d.Number < 65536 && !strings.EqualFold(d.Protocol, "udp") {
				ports = append(ports, d.Number)
			}
		}
	}
	slices.Sort(ports)
	ports = slices.Compact(ports)
	return ports[:min(len(ports), most)], nil
}

// startService makes and starts a service's container.
func (p *preparation) startService(ctx context.Context, s *service) error {
	parts, err := p.executor.containers.Service(s.definition, p.expand)
	if err != nil {
		return err
	}
	for _, notice := range parts.Notices {
		p.out.warn(notice)
	}
	parts.Config.Env = p.environment(s.definition.Variables...)
	parts.Host.Binds = p.mounted.binds
	parts.Host.Mounts = p.mounted.mounts
	parts.Endpoint.Aliases = s.aliases
	if s.id, err = p.create(ctx, kindService, s.containerName(p.objects()), s.pulled.id, parts, func(o *client.ContainerCreateOptions) {
		o.Config.Labels[labelPrefix+"service"] = s.title
		s.pulled.onPlatform(o)
	}); err != nil {
		return fmt.Errorf("service %s: %w", s.title, err)
	}
	p.env.setService(s.id, s)
	if err := p.startContainer(ctx, kindService, s.id); err != nil {
		return fmt.Errorf("service %s: %w", s.title, err)
	}
	return nil
}
