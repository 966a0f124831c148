// Package docker runs jobs in containers of a Docker Engine, near or far: the agent's own over a socket, another host's
// over TLS or SSH. All of it goes through the engine's API, so the three do not differ.
//
// A job has a helper container (git and switchyard-job), where the job folder is and where switchyard-job runs the stages,
// and a build container of the user's image, where `switchyard-job serve` runs the user's scripts. Between them are
// volumes: builds, caches, and a folder with the server's socket. Services are containers beside. All of them are in a
// network of the job's own unless the settings name one. Everything bears labels by which an agent finds what is its.
//
// Neither the agent nor, with live-restore, the engine is needed for a job to go on.
package docker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path"
	"path/filepath"
	"sync"
	"time"

	"github.com/moby/moby/client"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/executors/docker/helper"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/internal/helperimage"
)

const (
	// Name is GitLab's name of this executor.
	Name = "docker"
	// DefaultBuildsDir is where builds are in the containers.
	DefaultBuildsDir = "/builds"
	// DefaultCacheDir is where caches are in the containers.
	DefaultCacheDir = "/cache"
	// DefaultKillGrace is the time between SIGTERM and SIGKILL.
	DefaultKillGrace = 10 * time.Second

	// Places in the containers that are not the user's.
	ownDir     = "/opt/switchyard"
	binDir     = ownDir + "/bin"    // build container: the program, read-only
	socketDir  = ownDir + "/socket" // both
	jobFolder  = ownDir + "/job"    // helper container only
	socketPath = socketDir + "/serve.sock"
	tokenPath  = socketDir + "/token"
	jobBinary  = binDir + "/switchyard-job"

	minAPIVersion = "1.40"
)

// Options are what the executor is made with.
type Options struct {
	// Config is the agent's section executors.docker. It must not change afterwards.
	Config *config.Config
	// Data is a folder of this agent's own on its host, an absolute path. A file in it tells the containers of this agent
	// from those of others that use the same engine.
	Data string
	// BuildsDir and CacheDir are absolute paths in the containers; empty means the defaults.
	BuildsDir string
	CacheDir  string
	// KillGrace is the time between SIGTERM and SIGKILL; 0 means DefaultKillGrace.
	KillGrace time.Duration
	// Programs is the folder of the agent's program: the helper image's file is there unless the settings name another.
	Programs string
	// Home is where .docker/config.json with the credentials of registries is looked for; empty means nowhere.
	Home string
	// Environ has DOCKER_HOST and its kin, in the form of os.Environ.
	Environ []string
	// SSHOptions are given to ssh if the engine is reached by it, before the host's name.
	SSHOptions []string
	Log        *slog.Logger

	// alter changes what a container is made of; for tests.
	alter func(kind string, o *client.ContainerCreateOptions)
}

// Executor makes environments in one engine.
type Executor struct {
	options    Options
	settings   *config.Config
	containers *config.Containers
	client     *client.Client
	helper     *helper.Helper
	watcher    *watcher
	hostname   string
	log        *slog.Logger

	mu        sync.Mutex
	self      *identity
	engine    *engine
	installed map[string]*installation
}

// New checks the options. The engine is not asked yet.
func New(o Options) (*Executor, error) {
	if o.Config == nil {
		o.Config = &config.Config{}
	}
	containers, err := config.New(o.Config)
	if err != nil {
		return nil, fmt.Errorf("docker executor: %w", err)
	}
	if !filepath.IsAbs(o.Data) {
		return nil, fmt.Errorf("docker executor: data is %q: it must be an absolute path", o.Data)
	}
	if o.BuildsDir == "" {
		o.BuildsDir = DefaultBuildsDir
	}
	if o.CacheDir == "" {
		o.CacheDir = DefaultCacheDir
	}
	for _, p := range []struct{ name, path string }{{"builds_dir", o.BuildsDir}, {"cache_dir", o.CacheDir}} {
		if !path.IsAbs(p.path) || path.Clean(p.path) != p.path || p.path == "/" {
			return nil, fmt.Errorf("docker executor: %s is %q: it must be an absolute path in the containers, and not /", p.name, p.path)
		}
	}
	if o.KillGrace == 0 {
		o.KillGrace = DefaultKillGrace
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	hostname, err := os.Hostname()
	if err != nil {
		return nil, fmt.Errorf("docker executor: %w", err)
	}
	c, err := connect(o)
	if err != nil {
		return nil, fmt.Errorf("docker executor: %w", err)
	}
	source := helper.Source{Image: o.Config.HelperImage, File: o.Config.HelperImageFile}
	if source.File == "" {
		source.File = filepath.Join(o.Programs, helperimage.FileName)
	}
	e := &Executor{
		options: o, settings: o.Config, containers: containers, client: c, hostname: hostname, log: o.Log,
		helper: helper.New(c, source), installed: make(map[string]*installation),
	}
	e.watcher = newWatcher(c, o.Log)
	return e, nil
}

// Close ends the executor's connections to the engine. Its environments must not be used any more.
func (e *Executor) Close() error {
	e.watcher.close()
	return e.client.Close()
}

// Name returns "docker".
func (e *Executor) Name() string { return Name }

// Features returns what jobs can rely on here.
func (e *Executor) Features() executors.Features {
	return executors.Features{
		Runner: runnerapi.Features{
			Variables: true, Image: true, Services: true, ServiceVariables: true, ServiceMultipleAliases: true,
			ImageExecutorOpts: true, ServiceExecutorOpts: true,
		},
		Shell:         "bash",
		SurvivesAgent: true,
		GPUs:          e.settings.GPUs,
	}
}

// Check asks the engine who it is, and makes sure that the helper image and the volume with switchyard-job are there.
func (e *Executor) Check(ctx context.Context) error {
	if _, err := e.identity(); err != nil {
		return fmt.Errorf("docker executor: %w", err)
	}
	if _, err := e.inquire(ctx); err != nil {
		return fmt.Errorf("docker executor: %w", err)
	}
	image, err := e.helper.Ensure(ctx, e.pullHelper)
	if err != nil {
		return fmt.Errorf("docker executor: %w", err)
	}
	if _, err := e.install(ctx, image); err != nil {
		return fmt.Errorf("docker executor: %w", err)
	}
	return nil
}

// failure is an error for the user with the reason that GitLab is told.
func failure(reason runnerapi.FailureReason, format string, args ...any) error {
	return &executors.Error{Reason: reason, Err: fmt.Errorf(format, args...)}
}

var errNoEngine = errors.New("the Docker engine does not answer")
