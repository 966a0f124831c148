package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"time"

	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"golang.org/x/sync/errgroup"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/executors/docker/pull"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/variables"
)

const (
	// cleanUpPatience is how long a preparation that failed may take to remove what it has made.
	cleanUpPatience = time.Minute
	// attempts and retryPause are for an engine that cannot be reached.
	attempts   = 3
	retryPause = 2 * time.Second
	// atOnce is how many images are pulled at the same time for one job.
	atOnce = 4
)

// preparation is the making of one environment.
type preparation struct {
	executor *Executor
	self     *identity
	spec     executors.Spec
	out      *output
	puller   *pull.Puller
	vars     *variables.Set
	public   []runnerapi.Variable
	labels   map[string]string
	mounted  *volumes

	image    runnerapi.Image // of the build container; its name is the one that was decided on
	services []*service
	build    config.Parts
	aide     config.Parts

	helperImage string
	binary      string // the volume with switchyard-job
	buildImage  image
	env         *environment
}

// Prepare makes the containers of a job and waits until its scripts can be run. An engine that cannot be reached is tried
// again, as often and after the time that gitlab-runner has.
func (e *Executor) Prepare(ctx context.Context, spec executors.Spec, trace io.Writer) (executors.Environment, error) {
	self, err := e.identity()
	if err != nil {
		return nil, err
	}
	if spec.Job == nil {
		return nil, errors.New("prepare: there is no payload")
	}
	for attempt := 1; ; attempt++ {
		p := &preparation{executor: e, self: self, spec: spec}
		if err := p.readVariables(false); err != nil {
			return nil, err
		}
		p.out = &output{w: trace, masker: p.masker()}
		p.puller = p.newPuller()
		if attempt > 1 { // what the attempt before could not remove would be in the way
			err = e.remove(ctx, self, spec.Name)
		}
		var env executors.Environment
		if err == nil {
			env, err = p.make(ctx)
		}
		if err == nil {
			return env, nil
		}
		err = p.classify(err)
		if attempt == attempts || !errors.Is(err, errNoEngine) || ctx.Err() != nil {
			return nil, err
		}
		pause := retryPause + rand.N(retryPause) // #nosec G404 -- no secret depends on it
		p.out.say(fmt.Sprintf("ERROR: Preparation failed: %v", err))
		p.out.say(fmt.Sprintf("Will be retried in %v ...", pause.Round(time.Second)))
		p.out.flush()
		wait := time.NewTimer(pause)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return nil, context.Cause(ctx)
		}
	}
}

// make is one attempt.
func (p *preparation) make(ctx context.Context) (executors.Environment, error) {
	err := p.run(ctx)
	p.out.flush()
	if err == nil {
		err = p.out.err()
	}
	if err == nil {
		return p.env, nil
	}
	if p.env != nil { // something was made
		p.env.quit()
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpPatience)
		defer cancel()
		if cleanErr := p.executor.remove(clean, p.self, p.spec.Name); cleanErr != nil {
			p.executor.log.Error("what was made for a job is not all removed; the next sweep does it", "name", p.spec.Name, "err", cleanErr)
		}
	}
	return nil, err
}

// classify keeps errors for the user as they are and names the engine in others.
func (p *preparation) classify(err error) error {
	if lost(err) && !errors.Is(err, errNoEngine) {
		return p.executor.unreachable(err)
	}
	return err
}

func (p *preparation) run(ctx context.Context) error {
	if _, err := p.executor.inquire(ctx); err != nil {
		return err
	}
	if err := p.decide(); err != nil {
		return err
	}
	p.env = newEnvironment(p.executor, p.self, p.spec.Name)
	p.env.network = p.networkName()
	p.env.volumes = append(p.mounted.temporary, socketVolume(p.objects()))
	if err := p.fetch(ctx); err != nil {
		return err
	}
	// From here on what happens to the containers is heard.
	p.executor.watcher.join(ctx, p.env)
	if err := p.start(ctx); err != nil {
		return err
	}
	p.env.place = p.place()
	return nil
}

// decide settles what to make; nothing is made yet.
func (p *preparation) decide() error {
	c, j := p.executor.containers, p.spec.Job
	p.labels = p.executor.jobLabels(p.self, p.spec, p.vars.Get)
	var asked runnerapi.Image
	if j.Image != nil {
		asked = *j.Image
	}
	name, err := c.BuildImage(asked, p.expand, p.out)
	if err != nil {
		return err
	}
	p.image = asked
	p.image.Name = name
	p.out.say("Using Docker executor with image " + name + " ...")
	if p.build, err = c.Build(p.image, p.expand); err != nil {
		return err
	}
	p.aide = c.Helper(p.expand)
	for _, notice := range p.build.Notices {
		p.out.warn(notice)
	}
	if p.mounted, err = p.volumes(); err != nil {
		return err
	}
	if p.mounted.shared { // so the project is elsewhere
		if err := p.readVariables(true); err != nil {
			return err
		}
	}
	for _, notice := range p.mounted.notices {
		p.out.say(notice)
	}
	return p.decideServices()
}

// fetch brings images, the program's volume and the network, all at once. Each image's lines come together.
func (p *preparation) fetch(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.createNetwork(ctx) })
	g.Go(func() error {
		id, err := p.executor.helper.Ensure(ctx, p.executor.pullHelper)
		if err == nil {
			p.helperImage = id
			p.binary, err = p.executor.install(ctx, id)
		}
		return err
	})
	pulls := make(chan struct{}, atOnce)
	lanes := newLanes(p.out, len(p.services)+1)
	pull := func(lane int, work func(io.Writer) error) {
		g.Go(func() error {
			w := lanes.lane(lane)
			defer w.done()
			select {
			case pulls <- struct{}{}:
				defer func() { <-pulls }()
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			return work(w)
		})
	}
	for i, s := range p.services {
		pull(i, func(w io.Writer) (err error) {
			say(w, "Starting service "+s.title+"...")
			s.pulled, err = p.get(ctx, s.definition, s.image, w)
			return err
		})
	}
	pull(len(p.services), func(w io.Writer) (err error) {
		p.buildImage, err = p.get(ctx, p.image, p.image.Name, w)
		return err
	})
	return g.Wait()
}

// start makes and starts the containers. The user's starts when the services are there, as it may need them from its
// beginning; without services it starts beside the helper.
func (p *preparation) start(ctx context.Context) error {
	h := newHandshake(p)
	defer h.close()
	if len(p.services) == 0 {
		if err := together(ctx, func(ctx context.Context) error { return p.startHelper(ctx, h) }, p.startBuild); err != nil {
			return p.explain(ctx, err)
		}
		return h.wait(ctx)
	}
	starts := make([]func(context.Context) error, 0, len(p.services)+2)
	for _, s := range p.services {
		starts = append(starts, func(ctx context.Context) error { return p.startService(ctx, s) })
	}
	rest := []func(context.Context) error{
		func(ctx context.Context) error { return p.startHelper(ctx, h) }, p.createBuild,
	}
	if p.userDefined() {
		starts, rest = append(starts, rest...), nil
	}
	if err := together(ctx, starts...); err != nil {
		return p.explain(ctx, err)
	}
	for _, s := range p.services {
		if err := p.locate(ctx, s); err != nil {
			return err
		}
	}
	if err := together(ctx, rest...); err != nil {
		return p.explain(ctx, err)
	}
	stop := p.followServices(ctx)
	defer stop()
	p.awaitServices(ctx)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := p.runBuild(ctx); err != nil {
		return p.explain(ctx, err)
	}
	return h.wait(ctx)
}

// together runs functions at the same time and returns the first error.
func together(ctx context.Context, functions ...func(context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, f := range functions {
		g.Go(func() error { return f(ctx) })
	}
	return g.Wait()
}

// steady is for a request that makes something, which begins only if ctx has not ended and is then waited for: an engine
// goes on with one that its client has given up, and what it makes then nobody would remove.
func steady(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpPatience)
	return ctx, cancel, nil
}

// create makes a container of parts that are complete but for what is the same for all.
func (p *preparation) create(ctx context.Context, kind, name, image string, parts config.Parts, more func(*client.ContainerCreateOptions)) (string, error) {
	labels := with(p.labels, kind)
	maps.Copy(labels, parts.Config.Labels)
	parts.Config.Labels = labels
	parts.Config.Image = image
	o := client.ContainerCreateOptions{Name: name, Config: parts.Config, HostConfig: parts.Host}
	if mode := p.env.networkMode; mode != "" {
		o.HostConfig.NetworkMode = mode
	}
	if o.HostConfig.NetworkMode.IsUserDefined() || parts.Endpoint.MacAddress != nil && !o.HostConfig.NetworkMode.IsContainer() {
		key := string(o.HostConfig.NetworkMode)
		if key == "" {
			key = network.NetworkDefault
		}
		o.NetworkingConfig = &network.NetworkingConfig{EndpointsConfig: map[string]*network.EndpointSettings{key: parts.Endpoint}}
	}
	if more != nil {
		more(&o)
	}
	if alter := p.executor.options.alter; alter != nil {
		alter(kind, &o)
	}
	ctx, cancel, err := steady(ctx)
	if err != nil {
		return "", err
	}
	defer cancel()
	made, err := p.executor.client.ContainerCreate(ctx, o)
	if err != nil {
		return "", fmt.Errorf("create the %s container: %w", kind, err)
	}
	for _, warning := range made.Warnings {
		p.executor.log.Warn("the engine warns of a container", "name", name, "warning", warning)
	}
	return made.ID, nil
}

func (p *preparation) place() executors.Place {
	return p.executor.placeOf(p.self, p.spec.Name, p.mounted.shared, p.networkName())
}

// placeOf is what an environment's job is told.
func (e *Executor) placeOf(self *identity, name string, shared bool, network string) executors.Place {
	place := executors.Place{
		Folder: jobFolder, Binary: helperBinary, Hostname: e.hostname,
		BuildsDir: e.options.BuildsDir, CacheDir: e.options.CacheDir, SharedBuildsDir: shared,
		Shells: shells, ScriptSocket: socketPath, ScriptToken: self.token(name), KillGrace: e.options.KillGrace,
		SharedFiles: true, CustomBuildDir: true, SectionAttempts: true,
	}
	if network != "" {
		place.Environment = append(place.Environment, runnerapi.Variable{Key: networkVariable, Value: network, Public: true, Raw: true})
	}
	return place
}

// shells are looked for where and in the order in which gitlab-runner does it, and in PATH then.
var shells = []string{
	"/usr/local/bin/bash", "/usr/bin/bash", "/bin/bash", "/usr/local/bin/sh", "/usr/bin/sh", "/bin/sh", "/busybox/sh", "bash", "sh",
}
