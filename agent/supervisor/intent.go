package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/internal/durable"
)

// The agent's files of a job, in jobs/<name>/. The job folder is beside them.
const (
	intentFile  = "intent.json"
	outcomeFile = "outcome.json"
	folderName  = "job"
	// nextFolderName is that of a folder which is about to take folderName's place.
	nextFolderName = "job.next"
	// trashPrefix marks folders that are being removed: they are no jobs any more.
	trashPrefix = ".trash-"

	intentVersion = 1
	maxIntent     = 64 << 10
)

// Intent is what the agent must know of a job to take it up again after a restart. It is written before anything is made
// for the job.
type Intent struct {
	Version             int    `json:"version"`
	Job                 int64  `json:"job"`
	Epoch               int64  `json:"epoch"`
	Executor            string `json:"executor"`
	OutputLimit         int64  `json:"output_limit"`
	ProjectID           int64  `json:"project_id"`
	ProjectPath         string `json:"project_path"`
	JobName             string `json:"job_name"`
	GitLabJob           int64  `json:"gitlab_job"`
	Runner              Runner `json:"runner"`
	ConcurrentID        int    `json:"concurrent_id"`
	ConcurrentProjectID int    `json:"concurrent_project_id"`
	// Timeout is the job's own limit; 0 is GitLab's default.
	Timeout time.Duration `json:"timeout"`
	// StopAfter is the job's lease, S of the design; 0: it has none of its own.
	StopAfter time.Duration `json:"stop_after,omitempty"`
	// BootID is the host's when this was written.
	BootID string `json:"boot_id,omitempty"`
}

// Runner is the runner that claimed the job.
type Runner struct {
	ID         int64  `json:"id"`
	Name       string `json:"name"`
	ShortToken string `json:"short_token"`
	SystemID   string `json:"system_id"`
}

// IntentOf reads an offer.
func IntentOf(o *fleetv1.Offer) Intent {
	return Intent{
		Version: intentVersion, Job: o.GetRef().GetJob(), Epoch: o.GetRef().GetEpoch(),
		Executor: o.GetExecutor(), OutputLimit: o.GetOutputLimit(),
		ProjectID: o.GetEnvelope().GetProjectId(), ProjectPath: o.GetEnvelope().GetProjectPath(),
		JobName: o.GetEnvelope().GetJobName(), GitLabJob: o.GetEnvelope().GetGitlabJobId(),
		Timeout:   max(0, o.GetEnvelope().GetTimeout().AsDuration()),
		StopAfter: max(0, o.GetStopAfter().AsDuration()),
		Runner: Runner{
			ID: o.GetRunner().GetId(), Name: o.GetRunner().GetName(),
			ShortToken: o.GetRunner().GetShortToken(), SystemID: o.GetRunner().GetSystemId(),
		},
	}
}

// Ref names the attempt.
func (i Intent) Ref() ledger.Ref { return ledger.Ref{Job: i.Job, Epoch: i.Epoch} }

// Name is the job's name on this host: that of its folder and of its environment.
func Name(fleet string, ref ledger.Ref) string {
	return "sy-" + fleet + "-" + strconv.FormatInt(ref.Job, 10) + "-" + strconv.FormatInt(ref.Epoch, 10)
}

func (i Intent) write(dir string) error {
	i.BootID = bootID()
	b, err := json.Marshal(i)
	if err != nil {
		return fmt.Errorf("write down the job: %w", err)
	}
	// Not synced: after a crash of the machine nothing of the job runs any more, and Sweep finds what was made for it.
	temporary := filepath.Join(dir, "."+intentFile)
	if err := os.WriteFile(temporary, b, 0o600); err != nil {
		return fmt.Errorf("write down the job: %w", err)
	}
	if err := os.Rename(temporary, filepath.Join(dir, intentFile)); err != nil {
		return fmt.Errorf("write down the job: %w", err)
	}
	return nil
}

func readIntent(dir string) (Intent, error) {
	var i Intent
	if err := readJSON(filepath.Join(dir, intentFile), &i); err != nil {
		return Intent{}, err
	}
	if i.Version > intentVersion {
		return Intent{}, fmt.Errorf("%s has format %d, this agent reads up to %d: it was made by a newer agent", intentFile, i.Version, intentVersion)
	}
	if i.Job <= 0 || i.Epoch <= 0 || !strings.HasSuffix(filepath.Base(dir), Name("", i.Ref())[len("sy-"):]) {
		return Intent{}, fmt.Errorf("%s names job %d, epoch %d: not that of its folder", intentFile, i.Job, i.Epoch)
	}
	return i, nil
}

// outcome is the result of a job that the agent itself ended.
type outcome struct {
	State         string `json:"state"`
	FailureReason string `json:"failure_reason"`
	ExitCode      int    `json:"exit_code,omitempty"`
	Message       string `json:"message"`
	TraceLength   int64  `json:"trace_length"`
	TraceCRC32    uint32 `json:"trace_crc32"`
	StartedAt     int64  `json:"started_at"` // Unix milliseconds
	FinishedAt    int64  `json:"finished_at"`
}

func (o outcome) write(dir string) error {
	b, err := json.Marshal(o)
	if err != nil {
		return fmt.Errorf("write down how the job ended: %w", err)
	}
	return durable.WriteFile(filepath.Join(dir, outcomeFile), b, 0o600)
}

// readOutcome returns os.ErrNotExist if there is none.
func readOutcome(dir string) (outcome, error) {
	var o outcome
	return o, readJSON(filepath.Join(dir, outcomeFile), &o)
}

func readJSON(path string, v any) error {
	info, err := os.Lstat(path)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if !info.Mode().IsRegular() || info.Size() > maxIntent {
		return fmt.Errorf("read %s: not a regular file of at most %d bytes", path, maxIntent)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return errors.Join(fmt.Errorf("read %s: %w", path, err))
	}
	return nil
}
