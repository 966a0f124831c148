package localfleet

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/registry"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
)

// Options describe a fleet; the zero value, with a JobBinary, is one agent with one slot and a runner that takes
// everything.
type Options struct {
	// Dir is where the fleet makes its folder, which Close removes; empty means the system's folder for temporary files.
	Dir string
	// Agents is their number, Slots that of each of them; 0 means 1.
	Agents, Slots int
	// JobBinary is the absolute path of switchyard-job.
	JobBinary string
	// Environ is what jobs begin with, in the form of os.Environ; nil means that of this process.
	Environ []string
	// BuildsDir is where jobs work; empty means below the fleet's folder. It must be absolute, and is not removed.
	BuildsDir string
	// CacheDir is where the caches of jobs are; empty means below the fleet's folder. It must be absolute, and is not
	// removed. Fleets may share it.
	CacheDir string
	// Docker lets jobs run in containers; BuildsDir and CacheDir have no meaning then. Nil means on this host.
	Docker *Docker
	// KillGrace is the time that jobs have between SIGTERM and SIGKILL; 0 means the executor's own.
	KillGrace time.Duration

	// Coordinator are the embedded GitLab's options. URL and Dir are the fleet's to set, and Logger if it is nil.
	Coordinator coordinator.Options
	// Prepare is called with the embedded GitLab before Runners are added to it, for example to add projects; may be nil.
	Prepare func(gitlab *coordinator.Coordinator) error
	// Runners are those of the control plane; none means one instance runner that takes jobs without tags.
	Runners []Runner

	// PingPeriod, StopAfter and LostAfter are the control plane's; 0 means its defaults.
	PingPeriod, StopAfter, LostAfter time.Duration
	// TracePace is how long output of a job waits at most until it is sent to GitLab; 0 means what GitLab asks for.
	TracePace time.Duration

	// Logger gets what all parts have to say; nil discards it.
	Logger *slog.Logger
}

// Runner is a registration in the embedded GitLab that the control plane serves.
type Runner struct {
	// Name is the runner's in the control plane; empty means "local", with a number from the second on.
	Name string
	coordinator.RunnerOptions
	// Limit is how many jobs it may have at once, 0 for no limit; OutputLimit that of a trace in bytes, 0 for
	// DefaultOutputLimit.
	Limit       int
	OutputLimit int64
	// Settings are what its jobs are run with.
	Settings registry.Settings
	// CheckInterval and RequestsPerMinute are the poller's; 0 means its defaults.
	CheckInterval     time.Duration
	RequestsPerMinute int
}

// DefaultOutputLimit is how much of a job's output is kept, in bytes.
const DefaultOutputLimit = 100 << 20

func (o *Options) complete() error {
	if !filepath.IsAbs(o.JobBinary) {
		return fmt.Errorf("local fleet: the path of switchyard-job, %q, is not absolute", o.JobBinary)
	}
	if _, err := os.Stat(o.JobBinary); err != nil {
		return fmt.Errorf("local fleet: look for switchyard-job: %w", err)
	}
	if o.Agents < 0 || o.Slots < 0 {
		return errors.New("local fleet: a negative number of agents or slots")
	}
	o.Agents, o.Slots = max(o.Agents, 1), max(o.Slots, 1)
	if o.Environ == nil {
		o.Environ = os.Environ()
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Coordinator.Logger == nil {
		o.Coordinator.Logger = o.Logger
	}
	o.Runners = slices.Clone(o.Runners)
	if len(o.Runners) == 0 {
		o.Runners = []Runner{{RunnerOptions: coordinator.RunnerOptions{RunUntagged: true}}}
	}
	for i := range o.Runners {
		r := &o.Runners[i]
		if r.Name == "" {
			r.Name = "local"
			if i > 0 {
				r.Name = fmt.Sprintf("local-%d", i+1)
			}
		}
		if r.Description == "" {
			r.Description = r.Name
		}
		if r.OutputLimit == 0 {
			r.OutputLimit = DefaultOutputLimit
		}
	}
	return nil
}

// loopback is where everything listens that jobs need not reach.
const loopback = "127.0.0.1"

// withoutProxy sees to it that jobs reach the embedded GitLab directly: git, unlike Go, asks a proxy for this host too.
func withoutProxy(environ []string, host string) []string {
	exempt := []string{host}
	for _, e := range environ {
		key, value, _ := strings.Cut(e, "=")
		if strings.EqualFold(key, "no_proxy") && value != "" {
			exempt = append(exempt, value)
		}
	}
	hosts := strings.Join(exempt, ",")
	environ = slices.DeleteFunc(slices.Clone(environ), func(e string) bool {
		key, _, _ := strings.Cut(e, "=")
		return strings.EqualFold(key, "no_proxy")
	})
	return append(environ, "no_proxy="+hosts, "NO_PROXY="+hosts)
}
