//go:build linux

package supervisor_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/agent/supervisor"
	"github.com/switchyard-ci/switchyard/agent/tracestream"
	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/conformance/remoteshell"
	"github.com/switchyard-ci/switchyard/executors/shell"
)

// beAnAgent tells a copy of the test binary to be an agent's process for one job; it is JSON of part.
const beAnAgent = "SWITCHYARD_SUPERVISOR_TEST"

// part is what such a process is to do.
type part struct {
	Dir       string
	JobBinary string
	Payload   []byte
}

// ending is what it says on standard output when the job has ended.
type ending struct {
	State    string
	ExitCode int32
	Message  string
	Length   int64
	CRC      uint32
}

// agentProcess takes up the job or, if there is none, begins it; it ends when the job's environment is gone.
func agentProcess(description string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var p part
	if err := json.Unmarshal([]byte(description), &p); err != nil {
		return fail(err)
	}
	x, err := remoteshell.New(shell.Config{
		Jobs: filepath.Join(p.Dir, "elsewhere"), BuildsDir: filepath.Join(p.Dir, "builds"), CacheDir: filepath.Join(p.Dir, "cache"),
		Environ: append(os.Environ(), "PROOF="+filepath.Join(p.Dir, "proof")), Shell: "sh", KillGrace: time.Second,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return fail(err)
	}
	events := make(chan supervisor.Event)
	c := &supervisor.Config{
		Jobs: filepath.Join(p.Dir, "jobs"), Fleet: "f", JobBinary: p.JobBinary, Executors: map[string]executors.Executor{"shell": x},
		Fetch: func(context.Context, ledger.Ref) (supervisor.Fetched, error) {
			return supervisor.Fetched{Payload: p.Payload}, nil
		},
		Traces: tracestream.New(), Events: events, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	}
	ctx, leave := context.WithCancel(context.Background())
	var tasks sync.WaitGroup
	defer tasks.Wait()
	defer leave()
	held, err := supervisor.Recover(ctx, c, tasks.Go)
	if err != nil {
		return fail(err)
	}
	var job *supervisor.Job
	if len(held) > 0 {
		job = held[0].Job
	} else {
		job = supervisor.Accept(ctx, c, supervisor.Intent{Version: 1, Job: 1, Epoch: 1, Executor: "shell", OutputLimit: limit}, tasks.Go)
	}
	job.Launch(0, 0)
	for e := range events {
		if e.Kind != supervisor.Freed {
			continue
		}
		r := job.Result()
		if err := json.NewEncoder(os.Stdout).Encode(ending{r.GetState(), r.GetExitCode(), r.GetMessage(), r.GetTraceLength(), r.GetTraceCrc32()}); err != nil {
			return fail(err)
		}
		return 0
	}
	return 1
}

// However often and whenever the agent is killed: a job whose folder is elsewhere runs once, and its trace is whole.
func TestTheAgentIsKilledAtAnyMoment(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	jobs := 8
	if testing.Short() {
		jobs = 4
	}
	kills := 0
	for range jobs {
		dir := t.TempDir()
		x := newThere(t, dir)
		require.NoError(t, os.Mkdir(filepath.Join(dir, "jobs"), 0o700))
		description, err := json.Marshal(part{dir, jobBinary, script(
			"echo run >>$PROOF", `i=0; while [ $i -lt 200 ]; do echo "line $i"; i=$((i+1)); done; sleep 0.05; echo last; exit 4`,
		)})
		require.NoError(t, err)
		var out ending
		for attempt := 0; ; attempt++ {
			c := exec.Command("/proc/self/exe")
			c.Env = append(os.Environ(), beAnAgent+"="+string(description))
			var complaint strings.Builder
			c.Stderr = &complaint
			stdout, err := c.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, c.Start())
			if attempt < 6 {
				wait := time.Duration(random.IntN(250)) * time.Millisecond
				kill := time.AfterFunc(wait, func() { _ = c.Process.Kill() })
				defer kill.Stop() //nolint:revive // six of them
			}
			line, _ := bufio.NewReader(stdout).ReadString('\n')
			_ = c.Wait()
			if line != "" {
				require.NoError(t, json.Unmarshal([]byte(line), &out))
				break
			}
			require.Less(t, attempt, 6, complaint.String())
			kills++
		}
		require.LessOrEqual(t, x.ran(t), 1)
		require.Equal(t, "failed", out.State)
		require.EqualValues(t, 4, out.ExitCode, "%+v", out)
		require.Equal(t, 1, x.ran(t))
		a := &agent{t: t, config: supervisor.Config{Jobs: filepath.Join(dir, "jobs")}}
		trace := a.trace()
		require.Len(t, trace, int(out.Length))
		require.Equal(t, out.CRC, crc32.ChecksumIEEE([]byte(trace)))
		at := -1
		for i := range 200 {
			next := strings.Index(trace, fmt.Sprintf("\nline %d\n", i))
			require.Greater(t, next, at)
			at = next
		}
		require.Equal(t, 1, strings.Count(trace, "\nlast\n"))
		entries, err := os.ReadDir(x.Root)
		require.NoError(t, err)
		require.Empty(t, entries, "the environment is destroyed")
	}
	t.Logf("%d kills", kills)
}
