//go:build unix

// Package conformance holds executors to their contract: one set of cases, run against each with the real switchyard-job.
// An executor's own test makes a Harness and calls Run.
package conformance

import (
	"context"
	"testing"
	"time"

	"github.com/switchyard-ci/switchyard/executors"
)

// patience is how long anything may take that should take no time.
const patience = 30 * time.Second

// Harness is an executor under test and what the cases need to know of its place. New ones are independent of one
// another: nothing that one makes disturbs another.
type Harness struct {
	// Executor is the one under test.
	Executor executors.Executor
	// Again makes another Executor for the same place, as an agent has it after its restart.
	Again func(t *testing.T) executors.Executor
	// Jobs is an empty folder for job folders; JobBinary is switchyard-job for this host.
	Jobs      string
	JobBinary string
	// Processes counts the living processes in the place whose command line contains text.
	Processes func(t *testing.T, text string) int
	// Leftovers lists what the place still has of jobs whose environments are destroyed: processes, containers, volumes,
	// networks, folders. What jobs share on purpose (working copies, caches) is not meant. It may be nil.
	Leftovers func(t *testing.T) []string
	// Greeter is an image whose containers answer HTTP requests on port 8080, which it exposes, by "hello $GREETING"; nil:
	// the executor has no services.
	Greeter func(t *testing.T) string
	// Host is the name or address by which the place reaches this host.
	Host string
	// Brief leaves the payloads, which are the longest part, to another harness of the same executor.
	Brief bool
}

// Run runs all cases. newHarness is called once for each.
func Run(t *testing.T, newHarness func(t *testing.T) Harness) {
	t.Helper()
	for _, c := range []struct {
		name string
		run  func(t *testing.T, p *place)
	}{
		{"Output", output},
		{"ExitCodes", exitCodes},
		{"Variables", variables},
		{"FileVariables", fileVariables},
		{"Masking", masking},
		{"LargeOutput", largeOutput},
		{"BinaryOutput", binaryOutput},
		{"OutputLimit", outputLimit},
		{"GetSources", getSources},
		{"ConcurrentJobs", concurrentJobs},
		{"CancelGracefully", cancelGracefully},
		{"CancelAtOnce", cancelAtOnce},
		{"Timeout", timeout},
		{"LeaseRunsOut", leaseRunsOut},
		{"Services", services},
		{"Exec", execute},
		{"ExecGoesOnWithoutItsCaller", execGoesOn},
		{"KilledUnderTheJob", killedUnderTheJob},
		{"AgentRestarts", agentRestarts},
		{"StreamsThatAreLost", lostStreams},
		{"StartsOnce", startsOnce},
		{"DestroyLeavesNothing", destroyLeavesNothing},
		{"DestroyOfWhatWasNeverUsed", destroyUnused},
		{"RecoverOfNothing", recoverNothing},
		{"Sweep", sweep},
		{"AgentRestartsInEachStage", agentRestartsInEachStage},
		{"CancelInEachStage", cancelInEachStage},
		{"KillInEachStage", killInEachStage},
		{payloadCases, payloads},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHarness(t)
			if h.Brief && c.name == payloadCases {
				return
			}
			if err := h.Executor.Check(context.Background()); err != nil {
				t.Fatalf("the executor cannot be used: %v", err)
			}
			c.run(t, &place{Harness: h, t: t})
		})
	}
}
