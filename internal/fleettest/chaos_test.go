package fleettest

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestChaos: whatever is killed, cut off, delayed or lost at random moments, every job starts at most once, ends once with
// its own result and the whole of its output, and nothing of it is left.
//
// SWITCHYARD_CHAOS_JOBS is the number of jobs, SWITCHYARD_CHAOS_SEED repeats the decisions of a run.
func TestChaos(t *testing.T) {
	if testing.Short() {
		t.Skip("ten thousand jobs are not short")
	}
	jobs, seed := 10_000, rand.Uint64()
	if text := os.Getenv("SWITCHYARD_CHAOS_JOBS"); text != "" {
		n, err := strconv.Atoi(text)
		require.NoError(t, err, "SWITCHYARD_CHAOS_JOBS")
		require.Positive(t, n, "SWITCHYARD_CHAOS_JOBS")
		jobs = n
	}
	if text := os.Getenv("SWITCHYARD_CHAOS_SEED"); text != "" {
		n, err := strconv.ParseUint(text, 10, 64)
		require.NoError(t, err, "SWITCHYARD_CHAOS_SEED")
		seed = n
	}
	runChaos(t, seed, jobs)
}

// TestChaosOfOneSeed is the same in short, always with the same decisions.
func TestChaosOfOneSeed(t *testing.T) {
	if testing.Short() {
		t.Skip("a lost claim takes a minute")
	}
	runChaos(t, 1258, 300)
}

const (
	chaosAgents = 4
	chaosSlots  = 4
	// chaosAhead is how many jobs wait in each GitLab or run, about.
	chaosAhead = 60
	// chaosPipeline is how many jobs a pipeline has.
	chaosPipeline = 20
)

func runChaos(t *testing.T, seed uint64, jobs int) {
	t.Logf("SWITCHYARD_CHAOS_SEED=%d SWITCHYARD_CHAOS_JOBS=%d", seed, jobs)
	c := startChaos(t, chaosPlan{seed})
	began := time.Now()
	c.drive(jobs)
	took := time.Since(began)
	c.settle()
	c.verify(jobs)
	c.nothingIsLeft()
	c.report(jobs, took)
}
