package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/switchyard-ci/switchyard/executors"
)

// firstWords is how long a service that cannot be reached may take to say something that explains why.
const firstWords = 5 * time.Second

// userDefined says whether the job's network is one in which containers find one another by name.
func (p *preparation) userDefined() bool { return p.mode().IsUserDefined() }

func (p *preparation) mode() container.NetworkMode {
	if name := p.networkName(); name != "" {
		return container.NetworkMode(name)
	}
	return container.NetworkMode(p.executor.settings.NetworkMode)
}

// locate finds out where a service is reached. In networks without names the job's containers get its address as a host.
func (p *preparation) locate(ctx context.Context, s *service) error {
	switch mode := p.mode(); {
	case mode.IsUserDefined():
		s.address = s.id[:12]
	case mode.IsHost() || mode.IsContainer():
		s.address = "127.0.0.1"
	case mode.IsNone():
	default:
		r, err := p.executor.client.ContainerInspect(ctx, s.id, client.ContainerInspectOptions{})
		if err != nil {
			return fmt.Errorf("service %s: %w", s.title, err)
		}
		if r.Container.NetworkSettings == nil {
			return nil
		}
		for _, endpoint := range r.Container.NetworkSettings.Networks {
			if endpoint.IPAddress.IsValid() {
				s.address = endpoint.IPAddress.String()
			}
		}
		if s.address != "" {
			for _, alias := range s.aliases {
				p.env.hosts = append(p.env.hosts, alias+":"+s.address)
			}
		}
	}
	return nil
}

// awaitServices waits until all services can be reached, or have been given up: the job goes on without them.
func (p *preparation) awaitServices(ctx context.Context) {
	limit, ok := p.executor.containers.WaitForServices()
	if !ok || p.mode().IsNone() {
		return
	}
	p.out.say(fmt.Sprintf("Waiting for services to be up and running (timeout %d seconds)...", int(limit.Seconds())))
	var all sync.WaitGroup
	for _, s := range p.services {
		all.Go(func() {
			said, why := p.awaitService(ctx, s, limit)
			if why != nil && ctx.Err() == nil {
				p.lament(ctx, s, why, said)
			}
		})
	}
	all.Wait()
}

// whileAlive returns a context that ends when the service's container does.
func (s *service) whileAlive(ctx context.Context, limit time.Duration) (context.Context, func()) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		select {
		case <-s.dead:
			cancel()
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		cancel()
		<-ended
	}
}

// awaitService returns what the search for the service has said, and why it was not reached.
func (p *preparation) awaitService(ctx context.Context, s *service, limit time.Duration) (said string, why error) {
	ports, err := s.ports(append(p.environment(s.definition.Variables...), s.pulled.env...))
	name := s.containerName(p.objects())
	if err == nil && len(ports) == 0 {
		err = fmt.Errorf("service %q has no exposed ports", name)
	}
	if err == nil && s.address == "" {
		err = fmt.Errorf("service %q has no address in the network %q", name, p.mode())
	}
	if err != nil {
		p.awaitWords(ctx, s)
		return "", err
	}
	searching, stop := s.whileAlive(ctx, limit+firstWords)
	defer stop()
	list := make([]string, len(ports))
	for i, port := range ports {
		list[i] = strconv.Itoa(port)
	}
	in, hold := io.Pipe() // the search ends with its input
	defer hold.Close()
	var words bytes.Buffer
	out := &limitedWriter{w: &words, left: maxSaid}
	code, err := p.env.Exec(searching, executors.Command{
		Argv:  []string{helperBinary, "reach", "--timeout", limit.String(), s.address, strings.Join(list, ",")},
		Stdin: in, Stdout: ignoring{out}, Stderr: ignoring{out},
	})
	text := strings.TrimSpace(words.String())
	select {
	case <-s.dead:
		return text, fmt.Errorf("service %q ended with exit code %d", name, s.code)
	default:
	}
	switch {
	case err != nil:
		return text, fmt.Errorf("service %q health check: %w", name, err)
	case code != 0:
		return text, fmt.Errorf("service %q timeout", name)
	}
	return "", nil
}

// ignoring is a writer that takes everything.
type ignoring struct{ w io.Writer }

func (i ignoring) Write(b []byte) (int, error) {
	_, _ = i.w.Write(b)
	return len(b), nil
}

// awaitWords waits until the service has said something or has ended.
func (p *preparation) awaitWords(ctx context.Context, s *service) {
	ctx, stop := s.whileAlive(ctx, firstWords)
	defer stop()
	r, err := p.executor.client.ContainerLogs(ctx, s.id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Follow: true})
	if err != nil {
		return
	}
	defer r.Close()
	_, _ = r.Read(make([]byte, 1))
}

// lament tells the user of a service that was not reached, in gitlab-runner's form.
func (p *preparation) lament(ctx context.Context, s *service, why error, said string) {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s*** WARNING:%s Service %s probably didn't start properly.\n\nHealth check error:\n%s\n",
		yellow, normal, s.containerName(p.objects()), strings.TrimSpace(why.Error()))
	if said != "" {
		fmt.Fprintf(&b, "\nHealth check container logs:\n%s\n", said)
	}
	logs, err := p.executor.logs(ctx, s.id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Timestamps: true})
	if err != nil {
		logs = err.Error()
	}
	fmt.Fprintf(&b, "\nService container logs:\n%s\n\n%s*********%s\n\n", logs, yellow, normal)
	_, _ = io.WriteString(p.out, b.String())
}

// followServices shows what services say while the job is prepared, if the job asks for it, until the returned function is
// called. While the job runs its trace has one writer, which is not here.
func (p *preparation) followServices(ctx context.Context) (stop func()) {
	if !p.enabled(debugServices) {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	for _, s := range p.services {
		all.Go(func() {
			out := &prefixed{w: p.out, before: grey + "[service:" + strings.Join(s.aliases, "-") + "] ", after: normal}
			defer out.close()
			r, err := p.executor.client.ContainerLogs(ctx, s.id, client.ContainerLogsOptions{
				ShowStdout: true, ShowStderr: true, Timestamps: true, Follow: true,
			})
			if err == nil {
				defer r.Close()
				_, err = stdcopy.StdCopy(out, out, r)
			}
			if err != nil && !errors.Is(err, context.Canceled) && ctx.Err() == nil {
				p.out.warn(fmt.Sprintf("error streaming logs for container %s: %v", s.containerName(p.objects()), err))
			}
		})
	}
	return func() {
		cancel()
		all.Wait()
		p.out.say("(" + debugServices + ": the logs of services are shown up to here, not while the job runs)")
	}
}
