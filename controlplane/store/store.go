// Package store says what the control plane keeps on disk. There is one interface, one conformance suite
// (store/conformance) and one implementation per database; the state machines that use it are elsewhere.
//
// A job costs at most four commits: InsertJob, StartJob, FinishJob, DeleteJob. Each has reached the disk when it returns
// (fsync); implementations gather the writes of concurrent callers into one commit. Nothing is written per heartbeat or
// per trace chunk.
package store

import (
	"context"
	"errors"
	"time"
)

// Errors that callers branch on.
var (
	// ErrNotFound: there is no such row.
	ErrNotFound = errors.New("not found")
	// ErrExists: InsertJob was given a GitLab job that is already here.
	ErrExists = errors.New("already exists")
	// ErrStale: the row has another epoch or a later state than the caller thinks.
	ErrStale = errors.New("stale epoch or state")
	// ErrFull: the store's disk is full and nothing was written. Claim nothing more; the next write may succeed.
	ErrFull = errors.New("the store's disk is full")
	// ErrDamaged: the store's files do not hold together any more.
	ErrDamaged = errors.New("the store is damaged")
	// ErrFenced: another control plane has taken the store over. Nothing was written and nothing ever will be through this
	// one: stop claiming, stop.
	ErrFenced = errors.New("another control plane has taken over")
	// ErrClosed: the store was used after Close.
	ErrClosed = errors.New("the store is closed")
)

// JobState is how far a job has come in the store. It only grows; offered and accepted live in memory alone, because a
// job that was not started is offered again after a restart.
type JobState string

// The states of a job's row; a reported job has none.
const (
	JobClaimed  JobState = "claimed"
	JobStarted  JobState = "started"
	JobFinished JobState = "finished"
)

// Job is one job that GitLab gave to the control plane and that it has not reported yet.
type Job struct {
	// ID is the fleet's own: unique over all GitLab instances, never used again, also not after a restart.
	ID    int64
	Epoch int64
	State JobState

	Runner      string // registry name
	GitLabURL   string
	GitLabJobID int64
	Token       string // the job's; encrypted at rest
	Envelope    Envelope

	// Agent holds the current epoch; empty if nobody does.
	Agent  string
	Result *Result

	ClaimedAt  time.Time
	StartedAt  time.Time
	FinishedAt time.Time
}

// Envelope is what the fleet reads of a payload, kept until the job is reported.
type Envelope struct {
	ProjectID   int64         `json:"project_id"`
	ProjectPath string        `json:"project_path"`
	PipelineID  int64         `json:"pipeline_id"`
	JobName     string        `json:"job_name"`
	Stage       string        `json:"stage"`
	Ref         string        `json:"ref"`
	Protected   bool          `json:"protected"`
	Tag         bool          `json:"tag,omitempty"` // Ref is a tag
	Environment string        `json:"environment,omitempty"`
	Source      string        `json:"source,omitempty"` // of the pipeline
	User        string        `json:"user,omitempty"`   // login
	Queued      time.Duration `json:"queued,omitempty"` // how long it had waited in GitLab
	Timeout     time.Duration `json:"timeout"`
	DebugTrace  bool          `json:"debug_trace"`
	// StopAfter and LostAfter are the job's lease, S and L of the design, as they were when it was claimed: an agent may
	// have been told S, so they stay. 0: the job is older than leases of jobs.
	StopAfter time.Duration `json:"stop_after,omitempty"`
	LostAfter time.Duration `json:"lost_after,omitempty"`
	// ServerCA is the PEM of the chain that GitLab's connection showed, if TLS was used with a private CA.
	ServerCA string `json:"server_ca,omitempty"`
}

// Result is how a job ended.
type Result struct {
	State         string    `json:"state"` // success or failed
	FailureReason string    `json:"failure_reason,omitempty"`
	ExitCode      int       `json:"exit_code,omitempty"`
	Message       string    `json:"message,omitempty"`
	TraceLength   int64     `json:"trace_length"`
	TraceCRC32    uint32    `json:"trace_crc32"`
	StartedAt     time.Time `json:"started_at"`
	FinishedAt    time.Time `json:"finished_at"`
}

// NewJob is a claim's answer.
type NewJob struct {
	Runner      string
	GitLabURL   string
	GitLabJobID int64
	Token       string
	Envelope    Envelope
	// Payload is the body of GitLab's 201, encrypted at rest with a key of its own; deleted by StartJob's successor
	// DropPayload or with the row.
	Payload   []byte
	Agent     string // who gets the first offer; may be empty
	ClaimedAt time.Time
}

// Jobs keeps the jobs. All methods may be called concurrently.
type Jobs interface {
	// InsertJob stores a claimed job with epoch 1 and returns it with its ID. ErrExists if (GitLabURL, GitLabJobID) is here:
	// GitLab gave the same job twice; the returned Job is then the stored one.
	InsertJob(ctx context.Context, j NewJob) (Job, error)

	// Reoffer makes the next epoch of a claimed job and binds it to an agent (empty: to none yet). It returns the new epoch.
	// ErrStale if epoch is not the row's or the job has started.
	Reoffer(ctx context.Context, id, epoch int64, agent string) (int64, error)

	// StartJob moves a claimed job to started: from now on its epoch is final. ErrStale as above, or if it is finished;
	// repeating it with the same epoch is no error.
	StartJob(ctx context.Context, id, epoch int64, at time.Time) error

	// DropPayload deletes the payload of a started job. It may be written later, together with another commit; losing it
	// in a crash does no harm.
	DropPayload(id int64)

	// FinishJob stores the result of a started job, or of a claimed one that will never start (gone, failed before it began).
	// It deletes the payload. Repeating it keeps the first result and is no error.
	FinishJob(ctx context.Context, id, epoch int64, r Result) error

	// DeleteJob forgets a job: reported, or gone in GitLab. Deleting what is not there is no error.
	DeleteJob(ctx context.Context, id int64) error

	// Payload returns a job's payload. ErrNotFound if the job or its payload is gone, ErrStale if epoch is not the row's.
	Payload(ctx context.Context, id, epoch int64) ([]byte, error)

	// LoadJobs returns all jobs, ordered by ID: what a control plane that starts takes up again.
	LoadJobs(ctx context.Context) ([]Job, error)
}

// Agent is an enrolled agent.
type Agent struct {
	ID         string // UUID, in its certificate
	Name       string // unique in the fleet
	EnrolledAt time.Time
	// KeyDigest is the SHA-256 of the public key that it enrolled with: a repeated Enroll finds its agent by it.
	KeyDigest string
	TokenID   string // the join token that it used
	Removed   bool
}

// JoinToken is a token's public half. The secret half is stored as a digest only.
type JoinToken struct {
	ID           string
	SecretDigest []byte // SHA-256
	Uses         int    // how many agents may still enrol
	CreatedAt    time.Time
	ExpiresAt    time.Time
	Revoked      bool
}

// Agents keeps identities. All methods may be called concurrently.
type Agents interface {
	// AddJoinToken stores a token; ErrExists if its ID or secret is here. It forgets tokens that have expired long ago
	// (JoinTokenMemory).
	AddJoinToken(ctx context.Context, t JoinToken) error
	// EnrollAgent uses a token up by one and stores the agent under the wanted name or, if that is taken, under name-2,
	// name-3, …, in one transaction. If an agent with this key was enrolled by this token it is returned and nothing is used
	// up (also if it was removed since: see Removed). The error says by which rule the token is not good: ErrTokenUnknown, ErrTokenUsed, ErrTokenExpired, ErrTokenRevoked.
	EnrollAgent(ctx context.Context, secretDigest []byte, a Agent, now time.Time) (Agent, error)
	// Agent returns an agent, also a removed one. ErrNotFound.
	Agent(ctx context.Context, id string) (Agent, error)
	// Agents returns all agents, the removed too, ordered by name.
	Agents(ctx context.Context) ([]Agent, error)
	// RemoveAgent marks an agent as removed, which frees its name. ErrNotFound; repeating it is no error.
	RemoveAgent(ctx context.Context, id string) error
}

// Why a join token is refused.
var (
	ErrTokenUnknown = errors.New("join token is unknown")
	ErrTokenUsed    = errors.New("join token is used up")
	ErrTokenExpired = errors.New("join token has expired")
	ErrTokenRevoked = errors.New("join token was revoked")
)

// Runners keeps what belongs to a runner and must outlive the process.
type Runners interface {
	// SystemID returns the system_id under which GitLab knows this control plane for that runner; made at the first call
	// ("r_" and 12 characters of [0-9a-zA-Z]) and the same for ever after.
	SystemID(ctx context.Context, runner string) (string, error)

	// RunnerToken returns the token that a runner was given by a rotation. ErrNotFound if it has none: its configured token
	// is the one to use.
	RunnerToken(ctx context.Context, runner string) (RunnerToken, error)
	// SaveRunnerToken stores a runner's token in place of the one that is there.
	SaveRunnerToken(ctx context.Context, runner string, t RunnerToken) error
	// DeleteRunnerToken forgets it. Deleting what is not there is no error.
	DeleteRunnerToken(ctx context.Context, runner string) error
}

// RunnerToken is an authentication token of a runner that did not come from the configuration.
type RunnerToken struct {
	Token      string // encrypted at rest
	Configured string // hex SHA-256 of the configured token that it descends from: another one in the configuration wins
	ObtainedAt time.Time
	ExpiresAt  time.Time // zero: never
}

// Store is all of it.
type Store interface {
	Jobs
	Agents
	Runners
	Documents
	Audit
	// Fenced is closed when it is noticed that another control plane has taken over (ErrFenced); nil for a store that
	// cannot have another.
	Fenced() <-chan struct{}
	// Away says why writes wait for the database at the moment; nil: they do not. It must not block.
	Away() error
	// Close writes what is still waiting and releases the database.
	Close() error
}
