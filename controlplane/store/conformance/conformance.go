// Package conformance holds every implementation of store.Store to its contract.
package conformance

import (
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// Run runs the suite. open opens the store of that test: the first call an empty one, a later call of the same test,
// after Close, the same one again.
func Run(t *testing.T, open func(t *testing.T) store.Store) {
	for _, c := range []struct {
		name string
		test func(t *testing.T, open func(t *testing.T) store.Store)
	}{
		{"a job's life", jobLife},
		{"a job twice", jobTwice},
		{"epochs", epochs},
		{"states only grow", statesGrow},
		{"payloads", payloads},
		{"what is not there", missing},
		{"jobs survive a reopening", reopenJobs},
		{"ids are never used again", idsNeverAgain},
		{"concurrent jobs", concurrentJobs},
		{"one agent wins", oneAgentWins},
		{"a caller that leaves", cancelled},
		{"enrolment", enrolment},
		{"enrolment repeated", enrolmentRepeated},
		{"join tokens that are not good", badTokens},
		{"join tokens that are old", oldTokens},
		{"names of agents", agentNames},
		{"removed agents", removedAgents},
		{"concurrent enrolment", concurrentEnrolment},
		{"system ids", systemIDs},
		{"tokens of runners", runnerTokens},
		{"documents", documents},
		{"one writer of a document wins", oneDocumentWins},
		{"the audit log", auditLog},
		{"after Close", afterClose},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t, open) })
	}
}

// opened opens the store and closes it with the test, unless the test does.
func opened(t *testing.T, open func(t *testing.T) store.Store) store.Store {
	t.Helper()
	s := open(t)
	t.Cleanup(func() { require.NoError(t, s.Close()) })
	return s
}

var start = time.Date(2026, 11, 22, 10, 0, 0, 123456789, time.UTC)

// NewJob is a job with every field set, distinct for each n.
func NewJob(n int64) store.NewJob {
	return store.NewJob{
		Runner: "everything", GitLabURL: "https://gitlab.example.com", GitLabJobID: n, Token: "glcbt-" + uuid.NewString(),
		Envelope: store.Envelope{
			ProjectID: 7, ProjectPath: "group/project", PipelineID: 11, JobName: "test: [\"ü\", 1]", Stage: "test", Ref: "main", Protected: true,
			Timeout: time.Hour, DebugTrace: true, ServerCA: "-----BEGIN CERTIFICATE-----\n",
		},
		Payload:   []byte(`{"id":1,"unknown":{"kept":"` + uuid.NewString() + `"}}`),
		Agent:     "agent-1",
		ClaimedAt: start,
	}
}

func success() store.Result {
	return store.Result{
		State: "success", FailureReason: "none", ExitCode: -1, Message: "done", TraceLength: 1 << 40, TraceCRC32: 0xffffffff,
		StartedAt: start.Add(time.Second), FinishedAt: start.Add(time.Minute),
	}
}
