// Package pull brings the images of a job into a Docker Engine: pull policies, platforms and credentials as in gitlab-runner,
// retries where the network is to blame, progress in the job's trace, and reasons for GitLab where it fails.
package pull

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/docker/auth"
	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Of gitlab-runner: how often a pull is tried, and how long it waits between.
const (
	attempts = 3
	minPause = 2 * time.Second
	maxPause = 10 * time.Second
)

// progressEvery is how often a pull says in the trace how far it is.
const progressEvery = 5 * time.Second

// Engine is what is asked of an engine; *client.Client is one.
type Engine interface {
	// ClientVersion is the version of the API that is spoken.
	ClientVersion() string
	// ImageInspect returns what the engine knows of an image.
	ImageInspect(ctx context.Context, image string, options ...client.ImageInspectOption) (client.ImageInspectResult, error)
	// ImagePull starts a pull and returns what the engine says meanwhile.
	ImagePull(ctx context.Context, image string, options client.ImagePullOptions) (client.ImagePullResponse, error)
}

// Options are what a Puller is made with.
type Options struct {
	Engine Engine
	// Config has pull_policy and allowed_pull_policies.
	Config *config.Config
	// Credentials are where those of registries come from.
	Credentials auth.Sources
	// Secrets is told the secrets of credentials before they are used, for whoever masks the trace; it may be nil, as what
	// is written here does not have them. It may be called concurrently.
	Secrets func([]string)
	Log     *slog.Logger
}

// Puller gets the images of one job. It may be used concurrently.
type Puller struct {
	options   Options
	log       *slog.Logger
	min, max  time.Duration // pauses between attempts
	every     time.Duration // between lines of progress
	mu        sync.Mutex
	inFlight  map[string]chan struct{} // held by whoever gets the image
	available map[string]string        // IDs of images that the job has already
}

// New returns a puller for one job.
func New(o Options) *Puller {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Puller{
		options: o, log: o.Log, min: minPause, max: maxPause, every: progressEvery,
		inFlight: make(map[string]chan struct{}), available: make(map[string]string),
	}
}

// Request is one image to get. Variables in it are replaced already.
type Request struct {
	// Image is a name with an optional tag or digest, or the ID of an image that the engine has.
	Image string
	// Platform is like linux/arm64 or arm64; empty means the engine's own.
	Platform string
	// Policies are the job's pull_policy; empty means those of the settings.
	Policies []string
}

// Get returns the image, which the engine has then. It says in trace what it does. An image that the job has got before is
// not pulled again.
//
// The error is an *executors.Error with gitlab-runner's reason, or the cause of ctx's end.
func (p *Puller) Get(ctx context.Context, r Request, trace io.Writer) (client.ImageInspectResult, error) {
	var none client.ImageInspectResult
	name, err := normalize(r.Image)
	if err != nil {
		return none, failure(runnerapi.ReasonConfiguration, err)
	}
	platform, err := parsePlatform(r.Platform)
	if err != nil {
		return none, failure(runnerapi.ReasonConfiguration, fmt.Errorf("image %q: %w", r.Image, err))
	}
	policies, err := p.policies(r.Policies)
	if err != nil {
		return none, failure(runnerapi.ReasonConfiguration, fmt.Errorf("invalid pull policy for image %q: %w", r.Image, err))
	}
	key := name + "\n" + r.Platform
	leave, err := p.enter(ctx, key)
	if err != nil {
		return none, err
	}
	defer leave()
	say(trace, "Using effective pull policy of %s for container %s", policies, r.Image)
	one := &pulling{Puller: p, request: r, name: name, key: key, platform: platform, trace: trace}
	var last error
	for i, policy := range policies {
		if i > 0 {
			say(trace, "Attempt #%d: Trying %q pull policy", i+1, policy)
		}
		image, err := one.by(ctx, policy)
		if err == nil {
			p.use(key, r.Image, image, trace)
			return image, nil
		}
		if ctx.Err() != nil {
			return none, context.Cause(ctx)
		}
		say(trace, "WARNING: Failed to pull image with policy %q: %v", policy, err)
		last = err
	}
	reason := runnerapi.ReasonRunnerSystem
	if typed, ok := errors.AsType[*executors.Error](last); ok {
		reason = typed.Reason
	}
	return none, failure(reason, fmt.Errorf("failed to pull image %q with specified policies %s: %w", r.Image, policies, last))
}

// enter waits until nobody else gets the same image for this job.
func (p *Puller) enter(ctx context.Context, key string) (leave func(), err error) {
	p.mu.Lock()
	lock, ok := p.inFlight[key]
	if !ok {
		lock = make(chan struct{}, 1)
		p.inFlight[key] = lock
	}
	p.mu.Unlock()
	select {
	case lock <- struct{}{}:
		return func() { <-lock }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (p *Puller) used(key, id string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.available[key] == id
}

func (p *Puller) use(key, asked string, image client.ImageInspectResult, trace io.Writer) {
	p.mu.Lock()
	p.available[key] = image.ID
	p.mu.Unlock()
	switch {
	case asked == image.ID:
	case len(image.RepoDigests) > 0:
		say(trace, "Using docker image %s for %s with digest %s ...", image.ID, asked, image.RepoDigests[0])
	default:
		say(trace, "Using docker image %s for %s ...", image.ID, asked)
	}
}

// policies are those to try: the job's or the settings', as far as the settings allow them.
func (p *Puller) policies(job []string) ([]config.PullPolicy, error) {
	own, source := []config.PullPolicy(p.options.Config.PullPolicy), "Runner config"
	if len(own) == 0 {
		own, source = []config.PullPolicy{config.PullAlways}, "Runner config (default)"
	}
	allowed := p.options.Config.AllowedPullPolicies
	if len(allowed) == 0 {
		allowed = own
	}
	asked := own
	if len(job) > 0 {
		asked, source = nil, "GitLab pipeline config"
		for _, policy := range job {
			asked = append(asked, config.PullPolicy(policy))
		}
	}
	var effective []config.PullPolicy
	for _, policy := range asked {
		if slices.Contains(allowed, policy) {
			effective = append(effective, policy)
		}
	}
	if len(effective) == 0 {
		return nil, fmt.Errorf("pull_policy (%v) defined in %s is not one of the allowed_pull_policies (%v)", asked, source, allowed)
	}
	return effective, nil
}

// pulling is the getting of one image.
type pulling struct {
	*Puller
	request   Request
	name, key string
	platform  *ocispec.Platform
	trace     io.Writer
	secrets   *strings.Replacer // nil without credentials
}

func (p *pulling) by(ctx context.Context, policy config.PullPolicy) (client.ImageInspectResult, error) {
	found, err := p.inspect(ctx)
	missing := errdefs.IsNotFound(err)
	switch {
	case err != nil && !missing:
		return found, fmt.Errorf("ask the engine for the image: %w", err)
	case !missing && p.used(p.key, found.ID):
		return found, nil
	case policy == config.PullNever:
		return found, err
	case !missing && found.ID == p.request.Image:
		return found, nil
	case !missing && policy == config.PullIfNotPresent:
		say(p.trace, "Using locally found image version due to %q pull policy", policy)
		return found, nil
	case imageID.MatchString(p.name):
		return found, failure(runnerapi.ReasonConfiguration, fmt.Errorf("the engine has no image %s, and no registry has images by their ID: name it", p.name))
	}
	credential, err := p.credential(ctx)
	if err != nil {
		return found, err
	}
	if err := p.pull(ctx, credential); err != nil {
		return found, err
	}
	found, err = p.inspect(ctx)
	if err != nil {
		return found, failure(Classify(err.Error()), fmt.Errorf("inspecting image %q after pull: %w", p.request.Image, err))
	}
	return found, nil
}

// inspect returns the image for the wanted platform; one for another is as good as none.
func (p *pulling) inspect(ctx context.Context) (client.ImageInspectResult, error) {
	var options []client.ImageInspectOption
	if p.platform != nil && inspectsPlatforms(p.options.Engine.ClientVersion()) {
		options = append(options, client.ImageInspectWithPlatform(p.platform))
	}
	found, err := p.options.Engine.ImageInspect(ctx, p.name, options...)
	if err == nil && !matches(p.platform, found) {
		return client.ImageInspectResult{}, errdefs.ErrNotFound.WithMessage(fmt.Sprintf(
			"the engine has %s for %s/%s only, not for %s", p.request.Image, found.Os, found.Architecture, p.request.Platform))
	}
	return found, err
}

func (p *pulling) credential(ctx context.Context) (*auth.Credential, error) {
	found, err := p.options.Credentials.Find(ctx, p.name, p.trace)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, failure(runnerapi.ReasonRunnerSystem, err)
	}
	if found == nil {
		p.log.Debug("no credentials for an image", "image", p.request.Image)
		return nil, nil
	}
	p.secrets = hide(found.Secrets())
	if p.options.Secrets != nil {
		p.options.Secrets(found.Secrets())
	}
	say(p.trace, "Authenticating with credentials from %s", found.Source)
	return found, nil
}

// pull tries it until it works, fails for another reason than the network, or has been tried often enough.
func (p *pulling) pull(ctx context.Context, credential *auth.Credential) error {
	options := client.ImagePullOptions{}
	var err error
	if options.RegistryAuth, err = credential.Encode(); err != nil {
		return failure(runnerapi.ReasonRunnerSystem, err)
	}
	if p.platform != nil {
		options.Platforms = []ocispec.Platform{*p.platform}
		say(p.trace, "Pulling docker image %s for platform %s ...", p.request.Image, p.request.Platform)
	} else {
		say(p.trace, "Pulling docker image %s ...", p.request.Image)
	}
	for attempt := 1; ; attempt++ {
		err := p.once(ctx, options)
		if err == nil {
			return nil
		}
		if text := err.Error(); p.secrets != nil && p.secrets.Replace(text) != text {
			err = errors.New(p.secrets.Replace(text))
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		reason := Classify(err.Error())
		if attempt == attempts || reason != runnerapi.ReasonExternalDependency {
			return failure(reason, err)
		}
		say(p.trace, "WARNING: Failed to pull image %q (attempt #%d), retrying: %v", p.request.Image, attempt, err)
		if err := p.pause(ctx, attempt); err != nil {
			return err
		}
	}
}

func (p *pulling) once(ctx context.Context, options client.ImagePullOptions) error {
	answer, err := p.options.Engine.ImagePull(ctx, p.name, options)
	if err != nil {
		return err
	}
	defer answer.Close()
	shown := newProgress(p.trace, p.every)
	for message, err := range answer.JSONMessages(ctx) {
		if err != nil {
			return err
		}
		if message.Error != nil {
			return message.Error
		}
		shown.message(message)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	shown.done()
	return nil
}

// pause waits between attempts: longer each time, and not in step with others that wait for the same registry.
func (p *Puller) pause(ctx context.Context, attempt int) error {
	most := min(p.min<<attempt, p.max)
	timer := time.NewTimer(p.min + rand.N(most-p.min+1))
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// hide replaces secrets that an engine or a registry repeats in an error. Short ones would be found everywhere.
func hide(secrets []string) *strings.Replacer {
	const least = 4
	var pairs []string
	for _, secret := range secrets {
		if len(secret) >= least {
			pairs = append(pairs, secret, "[MASKED]")
		}
	}
	return strings.NewReplacer(pairs...)
}

var imageID = regexp.MustCompile(`^(sha256:)?[0-9a-f]{64}$`)

// normalize returns a name as the engine and registries know it: with a tag or a digest, of which the latter counts.
func normalize(image string) (string, error) {
	if imageID.MatchString(image) {
		return image, nil
	}
	named, err := reference.ParseDockerRef(image)
	if err != nil {
		return "", fmt.Errorf("image %q: %w: use NAME, NAME:TAG or NAME@sha256:…", image, err)
	}
	return reference.FamiliarString(named), nil
}

func failure(reason runnerapi.FailureReason, err error) error {
	return &executors.Error{Reason: reason, Err: err}
}

// say writes a line; whoever reads the trace is gone if it fails, and notices elsewhere.
func say(trace io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(trace, format+"\n", args...)
}
