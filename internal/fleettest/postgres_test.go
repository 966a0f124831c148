package fleettest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/postgres"
	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
	"github.com/switchyard-ci/switchyard/controlplane/store/sqlite"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/testbed/postgresql"
)

// withPostgreSQL is startProcesses with the state in a PostgreSQL database of its own.
func withPostgreSQL(t *testing.T) (p *processes, server *postgresql.Server, place string) {
	t.Helper()
	server = postgresql.Start(t)
	place, err := server.Schema()
	require.NoError(t, err)
	p = startProcesses(t, processOptions{config: fmt.Sprintf("ping_period: 1s\ndatabase: {url: %q}\n", place)})
	return p, server, place
}

// gated are jobs that wait in the middle of their scripts.
type gated struct {
	p    *processes
	run  coordinator.Pipeline
	gate string // folder of FIFOs, one per job
	mark string // folder of files with a line for each time that a script began
}

func startGated(p *processes, jobs int) *gated {
	p.t.Helper()
	g := &gated{p: p, gate: filepath.Join(p.dir, "gates"), mark: filepath.Join(p.dir, "marks")}
	require.NoError(p.t, os.Mkdir(g.gate, 0o755))
	require.NoError(p.t, os.Mkdir(g.mark, 0o755))
	for i := range jobs {
		require.NoError(p.t, syscall.Mkfifo(filepath.Join(g.gate, strconv.Itoa(i+1)), 0o600))
	}
	parallel := ""
	if jobs > 1 {
		parallel = fmt.Sprintf("parallel: %d", jobs)
	}
	g.run = pipeline(p.t, p.gitlab, project(p.t, p.gitlab, "group/gated"), fmt.Sprintf(`
job:
  %s
  script:
    - 'n=${CI_NODE_INDEX:-1}; echo begun >> %s/$n; echo "first half $n"; read line < %s/$n; echo "second half $n"'
`, parallel, g.mark, g.gate))
	for _, j := range g.run.Jobs {
		waitForTrace(p.t, p.gitlab, j.ID, "first half")
	}
	return g
}

// open lets the scripts go on.
func (g *gated) open() {
	g.p.t.Helper()
	for i := range g.run.Jobs {
		require.NoError(g.p.t, os.WriteFile(filepath.Join(g.gate, strconv.Itoa(i+1)), []byte("go\n"), 0o600))
	}
}

// requireWhole waits for the end: every job succeeded, began once and has its whole trace in GitLab.
func (g *gated) requireWhole() {
	t := g.p.t
	t.Helper()
	done := wait(t, g.p.gitlab, g.run)
	require.Equal(t, "success", done.Status, g.p.logs())
	for i, j := range done.Jobs {
		requireWhole(t, j)
		require.Contains(t, string(trace(t, g.p.gitlab, j)), fmt.Sprintf("first half %d\nsecond half %d\n", i+1, i+1))
		begun, err := os.ReadFile(filepath.Join(g.mark, strconv.Itoa(i+1)))
		require.NoError(t, err)
		require.Equal(t, "begun\n", string(begun), "the script of job %d began once", i+1)
	}
}

func TestJobsOutliveTheirControlPlaneWithPostgreSQL(t *testing.T) {
	p, server, _ := withPostgreSQL(t)
	p.startAgent("first", 3)
	g := startGated(p, 3)
	require.Equal(t, "3", sqlAnswer(t, server, "SELECT count(*) FROM test1.jobs WHERE state = 'started'"))

	for range 2 {
		p.plane.signal(t, syscall.SIGKILL)
		p.startPlane()
	}
	g.open()
	g.requireWhole()
	p.until("the store holds no job", func() bool { return sqlAnswer(t, server, "SELECT count(*) FROM test1.jobs") == "0" })
	require.Equal(t, "0", sqlAnswer(t, server, "SELECT count(*) FROM test1.payloads"))
}

func sqlAnswer(t *testing.T, server *postgresql.Server, query string) string {
	t.Helper()
	out, err := server.SQL(query)
	require.NoError(t, err)
	return out
}

// The jobs end while the database is away; neither the control plane nor anything else is restarted.
func TestJobsOutliveTheirDatabase(t *testing.T) {
	p, server, _ := withPostgreSQL(t)
	p.startAgent("first", 3)
	g := startGated(p, 3)

	require.NoError(t, server.Stop(syscall.SIGKILL))
	g.open()
	p.until("the control plane notices", func() bool {
		return strings.Contains(p.plane.log.String(), "the connection to the database is lost")
	})
	require.NoError(t, server.Start())
	g.requireWhole()
	p.until("the store holds no job", func() bool { return sqlAnswer(t, server, "SELECT count(*) FROM test1.jobs") == "0" })
	select {
	case <-p.plane.done:
		t.Fatal("the control plane has ended")
	default:
	}

	again := pipeline(t, p.gitlab, project(t, p.gitlab, "group/after"), "job: {script: [echo again]}")
	require.Equal(t, "success", wait(t, p.gitlab, again).Status)
}

// A second control plane, with a folder of its own, takes over from one that is killed: at the same address, with the
// same jobs, although the bytes that the first one had received are not here.
func TestASecondControlPlaneTakesOver(t *testing.T) {
	p, _, _ := withPostgreSQL(t)
	p.startAgent("first", 3)
	g := startGated(p, 3)

	second := filepath.Join(p.dir, "second")
	require.NoError(t, os.Mkdir(second, 0o700))
	for _, file := range []string{"master.key", "ca.key", "ca.crt"} {
		content, err := os.ReadFile(filepath.Join(p.dir, "plane", file))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(second, file), content, 0o600))
	}
	config, err := os.ReadFile(p.config())
	require.NoError(t, err)
	config = []byte(strings.Replace(string(config), "data: ./plane", "data: ./second", 1))
	require.NoError(t, os.WriteFile(filepath.Join(p.dir, "second.yaml"), config, 0o600))
	standby := p.start("switchyard", "serve", "-c", filepath.Join(p.dir, "second.yaml"))
	first := p.plane
	t.Cleanup(func() {
		if p.plane == first { // it did not come that far
			_ = standby.cmd.Process.Kill()
			<-standby.done
		}
	})
	p.until("the second one waits", func() bool {
		return strings.Contains(standby.log.String(), "another control plane leads; this one waits to take over")
	})
	require.NoFileExists(t, filepath.Join(second, "admin.sock"))

	first.signal(t, syscall.SIGKILL)
	p.plane = standby
	p.until("the second one serves", func() bool { return strings.Contains(standby.log.String(), "msg=serving") })
	g.open()
	g.requireWhole()
}

// backups makes and restores copies of a control plane's state while it is stopped, and opens it.
type backups struct {
	config  string
	make    func(p *processes)
	restore func(p *processes)
	open    func(p *processes, key *sealing.Key) (store.Store, error)
}

func inTheDataFolder() backups {
	copyFiles := func(p *processes, from, to string) {
		p.t.Helper()
		require.NoError(p.t, os.MkdirAll(to, 0o700))
		out, err := exec.Command("sh", "-c", `cp -a "$0"/switchyard.db* "$1"`, from, to).CombinedOutput()
		require.NoError(p.t, err, "%s", out)
	}
	file := func(p *processes, folder string) string { return filepath.Join(p.dir, folder, "switchyard.db") }
	return backups{
		make: func(p *processes) { copyFiles(p, filepath.Join(p.dir, "plane"), filepath.Join(p.dir, "backup")) },
		restore: func(p *processes) {
			for _, suffix := range []string{"", "-wal", "-shm"} {
				require.NoError(p.t, os.RemoveAll(file(p, "plane")+suffix))
			}
			copyFiles(p, filepath.Join(p.dir, "backup"), filepath.Join(p.dir, "plane"))
		},
		open: func(p *processes, key *sealing.Key) (store.Store, error) {
			return sqlite.Open(p.t.Context(), file(p, "plane"), key)
		},
	}
}

func inPostgreSQL(t *testing.T) backups {
	server := postgresql.Start(t)
	place, err := server.Schema()
	require.NoError(t, err)
	const schema = "test1"
	var dump []byte
	return backups{
		config: fmt.Sprintf("database: {url: %q}\n", place),
		make: func(p *processes) {
			dump, err = server.Dump(schema)
			require.NoError(p.t, err)
		},
		restore: func(p *processes) { require.NoError(p.t, server.Restore(schema, dump)) },
		open: func(p *processes, key *sealing.Key) (store.Store, error) {
			return postgres.Open(p.t.Context(), place, key, postgres.Options{})
		},
	}
}

// A restored old store resurrects no job: whatever it knows of a job that has ended since, GitLab keeps the end that it
// has been told, nothing runs again, and the row goes away.
func TestARestoredStoreResurrectsNoJob(t *testing.T) {
	for name, kind := range map[string]func(t *testing.T) backups{
		"SQLite":     func(*testing.T) backups { return inTheDataFolder() },
		"PostgreSQL": inPostgreSQL,
	} {
		for _, state := range []store.JobState{store.JobClaimed, store.JobStarted, store.JobFinished} {
			t.Run(fmt.Sprint(name, " ", state), func(t *testing.T) { restoredStore(t, kind(t), state) })
		}
	}
}

func restoredStore(t *testing.T, b backups, state store.JobState) {
	p := startProcesses(t, processOptions{config: "ping_period: 1s\n" + b.config})
	p.startAgent("first", 1)
	g := startGated(p, 1)
	b.make(p)
	g.open()
	g.requireWhole()
	before, err := p.gitlab.Job(g.run.Jobs[0].ID)
	require.NoError(t, err)
	output := trace(t, p.gitlab, before)
	p.until("the agent has forgotten the job", func() bool {
		left, err := os.ReadDir(filepath.Join(p.dir, "first", "jobs"))
		return err == nil && len(left) == 0
	})

	p.plane.signal(t, syscall.SIGTERM)
	b.restore(p)
	rows := changeRows(p, b, state)
	require.Equal(t, 1, rows, "the old copy has the job")
	p.startPlane()
	// A job of now runs beside: on the only slot, which a job that has ended does not hold.
	after := pipeline(t, p.gitlab, project(t, p.gitlab, "group/after"), "job: {script: [echo a job of now]}")
	// A started job that its agent does not have is asked about in GitLab when its next sign of life is due: after 30 s.
	require.Eventually(t, func() bool {
		j, err := p.gitlab.Job(after.Jobs[0].ID)
		return err == nil && j.Status == "success"
	}, 3*time.Minute, 50*time.Millisecond, "the job of now")
	require.Eventually(t, func() bool {
		out, err := exec.Command(filepath.Join(bin, "switchyard"), "jobs", "list", "-c", p.config()).Output()
		return err == nil && !strings.Contains(string(out), "group/gated")
	}, 3*time.Minute, 100*time.Millisecond, "the old job is dropped")
	p.plane.signal(t, syscall.SIGTERM)
	require.Zero(t, changeRows(p, b, ""), "nothing is left of it")
	p.startPlane()

	now, err := p.gitlab.Job(before.ID)
	require.NoError(t, err)
	require.Equal(t, before.Status, now.Status)
	require.Equal(t, before.Report, now.Report, "there was no second report")
	require.Equal(t, string(output), string(trace(t, p.gitlab, now)))
	begun, err := os.ReadFile(filepath.Join(g.mark, "1"))
	require.NoError(t, err)
	require.Equal(t, "begun\n", string(begun))
}

// changeRows makes the rows of a store that nobody uses as old as state says, and returns how many there are.
func changeRows(p *processes, b backups, state store.JobState) int {
	t := p.t
	t.Helper()
	key, err := sealing.LoadKey(filepath.Join(p.dir, "plane", "master.key"))
	require.NoError(t, err)
	s, err := b.open(p, key)
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	jobs, err := s.LoadJobs(t.Context())
	require.NoError(t, err)
	for _, j := range jobs {
		switch state {
		case store.JobClaimed:
			require.NoError(t, s.DeleteJob(t.Context(), j.ID))
			_, err := s.InsertJob(t.Context(), store.NewJob{
				Runner: j.Runner, GitLabURL: j.GitLabURL, GitLabJobID: j.GitLabJobID, Token: j.Token, Envelope: j.Envelope,
				Payload: []byte(`{}`), Agent: j.Agent, ClaimedAt: j.ClaimedAt,
			})
			require.NoError(t, err)
		case store.JobStarted:
			require.Equal(t, state, j.State)
		case store.JobFinished:
			require.NoError(t, s.FinishJob(t.Context(), j.ID, j.Epoch, store.Result{
				State: "failed", FailureReason: "script_failure", ExitCode: 1, StartedAt: j.StartedAt, FinishedAt: time.Now(),
			}))
		}
	}
	return len(jobs)
}
