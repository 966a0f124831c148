package fleettest

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/dispatch"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/localfleet"
)

// pulse is a log that keeps the round trips of pings, as both sides note them, and the ends of sessions.
type pulse struct {
	*beats
	of string // who writes; empty: the control plane
}

type beats struct {
	mu    sync.Mutex
	trips map[string][]time.Duration // by who sent the ping
	ends  []string
}

func newPulse() pulse { return pulse{beats: &beats{trips: map[string][]time.Duration{}}} }

func (p pulse) Enabled(context.Context, slog.Level) bool { return true }

func (p pulse) WithGroup(string) slog.Handler { return p }

func (p pulse) WithAttrs(attrs []slog.Attr) slog.Handler {
	for _, a := range attrs {
		if a.Key == "of" {
			p.of = a.Value.String()
		}
	}
	return p
}

func (p pulse) Handle(_ context.Context, r slog.Record) error {
	switch r.Message {
	case "pong":
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "round_trip" {
				p.mu.Lock()
				p.trips[p.of] = append(p.trips[p.of], a.Value.Duration())
				p.mu.Unlock()
			}
			return true
		})
	case "agent left", "not connected; trying again until it works":
		p.mu.Lock()
		p.ends = append(p.ends, r.Message)
		p.mu.Unlock()
	}
	return nil
}

// count is how many pings both sides had answered, the slower one's.
func (p pulse) count(agent string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return min(len(p.trips[""]), len(p.trips[agent]))
}

const floods = 50

// flood has fifty jobs print as fast as they can until both sides had so many pings answered, and returns the round trips of
// the control plane's pings and of the agent's.
func flood(t testing.TB, period time.Duration, pings int) (plane, agent []time.Duration) {
	t.Helper()
	const name = "local-1"
	p := newPulse()
	f := start(t, localfleet.Options{
		Slots: floods, PingPeriod: period, Logger: slog.New(p),
		Runners: []localfleet.Runner{{
			RunnerOptions: coordinator.RunnerOptions{RunUntagged: true}, OutputLimit: 16 << 20, RequestsPerMinute: 100_000,
		}},
		Coordinator: coordinator.Options{Logger: slog.New(slog.DiscardHandler)},
	})
	dir := t.TempDir()
	block, stop := filepath.Join(dir, "block"), filepath.Join(dir, "stop")
	require.NoError(t, os.WriteFile(block, []byte(strings.Repeat("fifty jobs print this line as fast as they can, again and again\n", 1024)), 0o600))
	run := pipeline(t, f.GitLab(), project(t, f.GitLab(), "group/flood"), fmt.Sprintf(`
flood:
  parallel: %d
  script: ['while [ ! -e %s ]; do cat %s; done']
`, floods, stop, block))
	for _, j := range run.Jobs {
		waitForTrace(t, f.GitLab(), j.ID, "fifty jobs print this line")
	}
	before := p.count(name)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ticker := time.NewTicker(50 * time.Millisecond)
	defer ticker.Stop()
	for p.count(name) < before+pings {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			t.Fatal("pings are not answered")
		}
	}
	require.NoError(t, os.WriteFile(stop, nil, 0o600))
	done := wait(t, f.GitLab(), run)
	require.Equal(t, "success", done.Status)
	var size int64
	for _, j := range done.Jobs {
		requireWhole(t, j)
		size += j.TraceSize
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	require.Empty(t, p.ends, "no session is lost")
	plane, agent = p.trips[""], p.trips[name]
	slices.Sort(plane)
	slices.Sort(agent)
	t.Logf("%d MB of traces; of pings of the control plane: %s; of the agent: %s", size/1e6, distribution(plane), distribution(agent))
	return plane, agent
}

func distribution(d []time.Duration) string {
	at := func(q int) time.Duration { return d[(len(d)-1)*q/100].Round(100 * time.Microsecond) }
	return fmt.Sprintf("p50 %s, p99 %s, max %s (%d)", at(50), at(99), at(100), len(d))
}

// Fifty jobs that flood their traces cost no session, and their fleet's signs of life come in time; what the slowest one
// takes depends on the machine too, and is the benchmark's.
func TestAFloodDoesNotDelayTheHeartbeat(t *testing.T) {
	const period = dispatch.DefaultPingPeriod
	plane, agent := flood(t, period, 2)
	require.LessOrEqual(t, plane[len(plane)/2], period)
	require.LessOrEqual(t, agent[len(agent)/2], period)
}

// BenchmarkHeartbeatInAFlood: round trips of pings while fifty jobs print as fast as they can.
func BenchmarkHeartbeatInAFlood(b *testing.B) {
	for b.Loop() {
		plane, agent := flood(b, time.Second, 20)
		percentiles(b, "plane", plane)
		percentiles(b, "agent", agent)
		b.ReportMetric(float64(plane[len(plane)-1].Microseconds())/1000, "ms-plane-max")
		b.ReportMetric(float64(agent[len(agent)-1].Microseconds())/1000, "ms-agent-max")
		b.ReportMetric(0, "ns/op")
	}
}
