package metrics

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/controlplane/admin"
	"github.com/switchyard-ci/switchyard/controlplane/dispatch"
	"github.com/switchyard-ci/switchyard/controlplane/polling"
	"github.com/switchyard-ci/switchyard/controlplane/usage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type fleet struct{}

func (fleet) Agents() []dispatch.AgentStatus {
	return []dispatch.AgentStatus{{Name: "a", Online: true, Slots: 4, UsedSlots: 3}, {Name: "b", Slots: 2}}
}

func (fleet) Jobs() []dispatch.JobSnapshot {
	return []dispatch.JobSnapshot{{State: "started", Runner: "r"}, {State: "started", Runner: "r"}, {State: "claimed", Runner: "r"}}
}

func (fleet) Usage() []dispatch.UsageRow {
	rows := []dispatch.UsageRow{{
		Row: usage.Row{
			Project: usage.Project{GitLab: "https://g", ID: 1}, Path: "a/b", Slots: 3,
			Hour: usage.Used{SlotSeconds: 120, Jobs: 2, P50: time.Second, P95: 2 * time.Second}, Day: usage.Used{SlotSeconds: 500},
		},
		Waiting: 1, Weight: 2, Share: 0.5, Hard: 6,
	}}
	for n := range 9 {
		rows = append(rows, dispatch.UsageRow{Row: usage.Row{Path: fmt.Sprint("project-", n)}})
	}
	return rows
}

type runners struct{}

func (runners) Runners() []admin.RunnerStatus {
	return []admin.RunnerStatus{{
		Slots:   4,
		Polling: polling.Status{Runner: "r", LastJob: time.Unix(100, 0), Counters: polling.Counters{Jobs: 5, WatchJobs: 1, Empty: 7, Watches: 9}},
	}, {Polling: polling.Status{Runner: "bad", ErrorSince: time.Unix(1, 0)}}}
}

func TestFigures(t *testing.T) {
	c := collector{fleet{}, runners{}, 5}
	require.NoError(t, testutil.CollectAndCompare(c, strings.NewReader(`
# HELP switchyard_agents Agents by state: online, draining or away (with jobs).
# TYPE switchyard_agents gauge
switchyard_agents{state="away"} 1
switchyard_agents{state="draining"} 0
switchyard_agents{state="online"} 1
# HELP switchyard_jobs Jobs that are claimed and not yet reported, by state.
# TYPE switchyard_jobs gauge
switchyard_jobs{runner="r",state="claimed"} 1
switchyard_jobs{runner="r",state="started"} 2
# HELP switchyard_runner_up 1 if GitLab answers the runner as it should.
# TYPE switchyard_runner_up gauge
switchyard_runner_up{runner="bad"} 0
switchyard_runner_up{runner="r"} 1
# HELP switchyard_project_quota_slots Slots that a project never exceeds.
# TYPE switchyard_project_quota_slots gauge
switchyard_project_quota_slots{gitlab="https://g",project="a/b"} 6
# HELP switchyard_project_wait_p50_seconds How long half of a project's jobs waited for a slot at most.
# TYPE switchyard_project_wait_p50_seconds gauge
switchyard_project_wait_p50_seconds{gitlab="https://g",project="a/b",window="1h"} 1
# HELP switchyard_project_wait_p95_seconds How long 95 of 100 of a project's jobs waited for a slot at most.
# TYPE switchyard_project_wait_p95_seconds gauge
switchyard_project_wait_p95_seconds{gitlab="https://g",project="a/b",window="1h"} 2
`), "switchyard_agents", "switchyard_jobs", "switchyard_runner_up", "switchyard_project_quota_slots", "switchyard_project_wait_p50_seconds", "switchyard_project_wait_p95_seconds"))
	require.Equal(t, 5, testutil.CollectAndCount(c, "switchyard_project_slots"), "the number of projects is bounded")
	problems, err := testutil.CollectAndLint(c)
	require.NoError(t, err)
	require.Empty(t, problems)
}

func TestServe(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, l, New(fleet{}, runners{})) }()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	get := func(path string) (int, string) {
		res, err := client.Get("http://" + l.Addr().String() + path)
		require.NoError(t, err)
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		require.NoError(t, err)
		return res.StatusCode, string(body)
	}
	code, body := get("/metrics")
	require.Equal(t, http.StatusOK, code)
	require.Contains(t, body, `switchyard_claims_total{result="job",runner="r"} 6`)
	require.Contains(t, body, "process_cpu_seconds_total")
	code, _ = get("/")
	require.Equal(t, http.StatusNotFound, code)
	cancel()
	require.NoError(t, <-served)
}
