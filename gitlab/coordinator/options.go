package coordinator

import (
	"fmt"
	"log/slog"
	"time"
)

// Options are the settings of a [Coordinator]; the zero value is a GitLab with its defaults.
type Options struct {
	// URL is the base of all addresses in job payloads ("http://127.0.0.1:8080"), see [Coordinator.SetURL].
	URL string
	// Dir is where repositories, artifacts and long traces are kept, made if it does not exist; Close removes what the
	// coordinator put there. Empty takes a new temporary folder.
	Dir string

	// Hold is how long a job request is held when nothing has changed, as Workhorse does
	// (-apiCiLongPollingDuration). 0 means 50 s, less than 0 holds none.
	Hold time.Duration
	// LegacyCommit hands out jobs as running at once, even to runners that know two-phase commit (GitLab without the
	// flag allow_runner_job_acknowledgement).
	LegacyCommit bool
	// AckExpiry is how long a job that was handed out by two-phase commit waits for its runner, after the claim and
	// after each keep-alive. 0 means 2 min.
	AckExpiry time.Duration
	// TraceInterval is what runners are told as the time between two pieces of a trace that no one watches, 0 means
	// 60 s; WatchedTraceInterval while someone does, 0 means 3 s. Both are sent in whole seconds.
	TraceInterval, WatchedTraceInterval time.Duration
	// AcceptDelay is how long a final update with a checksum is answered by 202, as while GitLab moves a live trace to
	// its store. 0 answers 200 at once.
	AcceptDelay time.Duration
	// MaxTrace is the largest trace in bytes (GitLab: ci_jobs_trace_size_limit), 0 means 100 MiB; a job that sends more
	// is dropped with trace_size_exceeded.
	MaxTrace int64
	// TraceMemory is how many bytes of a trace stay in memory; longer ones move to a file. 0 means 256 KiB.
	TraceMemory int
	// MaxArtifact is the largest file in bytes that a job may upload (GitLab: max_artifacts_size), 0 means 100 MiB.
	MaxArtifact int64
	// DirectDownload redirects runners that ask for it (direct_download=true) to an address of its own for the file, as a
	// GitLab with an object store does.
	DirectDownload bool
	// Registry is the host, with its port, of a container registry that takes the tokens of jobs; empty means none.
	Registry string
	// RegistrationToken lets runners register themselves by POST /runners; empty refuses it.
	RegistrationToken string
	// RunnerTokenTTL is how long the token of a runner is good for (GitLab: runner_token_expiration_interval); 0 is for ever.
	RunnerTokenTTL time.Duration

	// DecoratePayload may change the payload of a job before it is sent: add fields that do not exist yet, make it
	// large. It is called without a lock, concurrently.
	DecoratePayload func(jobID int64, payload map[string]any) error

	// Logger gets what the coordinator has to say; nil discards it.
	Logger *slog.Logger
}

// The defaults of [Options].
const (
	DefaultHold                 = 50 * time.Second
	DefaultAckExpiry            = 2 * time.Minute
	DefaultTraceInterval        = 60 * time.Second
	DefaultWatchedTraceInterval = 3 * time.Second
	DefaultMaxTrace             = 100 << 20
	DefaultTraceMemory          = 256 << 10
	DefaultMaxArtifact          = 100 << 20
)

func (o *Options) complete() error {
	if o.AckExpiry < 0 || o.TraceInterval < 0 || o.WatchedTraceInterval < 0 || o.AcceptDelay < 0 || o.RunnerTokenTTL < 0 || o.MaxTrace < 0 || o.TraceMemory < 0 || o.MaxArtifact < 0 {
		return fmt.Errorf("coordinator options: a negative duration or size")
	}
	setDefault(&o.Hold, DefaultHold)
	setDefault(&o.AckExpiry, DefaultAckExpiry)
	setDefault(&o.TraceInterval, DefaultTraceInterval)
	setDefault(&o.WatchedTraceInterval, DefaultWatchedTraceInterval)
	setDefault(&o.MaxTrace, DefaultMaxTrace)
	setDefault(&o.TraceMemory, DefaultTraceMemory)
	setDefault(&o.MaxArtifact, DefaultMaxArtifact)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

func setDefault[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}
