package conformance

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// crashEnv tells the test binary to be the process that is killed, and where its store is.
const crashEnv = "SWITCHYARD_STORE_TO_CRASH"

const (
	crashCallers = 8
	// crashAfter is how many acknowledged writes are seen before the kill: in the first round, and how many more in each
	// further round.
	crashAfter  = 100
	crashRounds = 4
)

// CrashChild belongs into TestMain, before anything else: in the child process of [Crash] it writes to the store that
// open opens until it kills itself; otherwise it returns at once.
func CrashChild(open func(location string) (store.Store, error)) {
	location, writes, ok := strings.Cut(os.Getenv(crashEnv), "|")
	if !ok {
		return
	}
	s, err := open(location)
	if err != nil {
		fmt.Println("error", err) //nolint:forbidigo // the child's way to tell its parent
		os.Exit(1)
	}
	limit, _ := strconv.Atoi(writes) // by Crash
	writeUntilKilled(s, limit, os.Stdout)
}

// writeUntilKilled drives jobs through their lives and says of each write, once it has returned, which it was. The lines
// of one job come in order. In the moment of the limit-th line the process kills itself: nothing can be between the
// acknowledgement and the kill.
func writeUntilKilled(s store.Store, limit int, to io.Writer) {
	var mu sync.Mutex
	said := 0
	say := func(job int64, did string) {
		mu.Lock()
		defer mu.Unlock()
		_, _ = fmt.Fprintln(to, job, did)
		if said++; said >= limit {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		}
	}
	var group sync.WaitGroup
	for caller := range int64(crashCallers) {
		group.Go(func() {
			for n := caller; ; n += crashCallers {
				if err := oneLife(s, n, say); err != nil {
					mu.Lock()
					_, _ = fmt.Fprintln(to, "error", err)
					os.Exit(1)
				}
			}
		})
	}
	group.Wait()
}

func oneLife(s store.Store, n int64, say func(job int64, did string)) error {
	ctx := context.Background()
	job, err := s.InsertJob(ctx, NewJob(n))
	if err != nil {
		return err
	}
	say(n, "inserted")
	if n%4 == 0 {
		return nil
	}
	if err := s.StartJob(ctx, job.ID, 1, start); err != nil {
		return err
	}
	say(n, "started")
	s.DropPayload(job.ID)
	if n%4 == 1 {
		return nil
	}
	if err := s.FinishJob(ctx, job.ID, 1, success()); err != nil {
		return err
	}
	say(n, "finished")
	if n%4 == 2 {
		return nil
	}
	if err := s.DeleteJob(ctx, job.ID); err != nil {
		return err
	}
	say(n, "deleted")
	return nil
}

// order of what oneLife does.
var order = map[string]int{"": 0, "inserted": 1, "started": 2, "finished": 3, "deleted": 4}

// Crash kills a process with SIGKILL in the middle of a burst of writes, opens its store and looks for every write that
// was acknowledged. A write that was not may be there or not. locations gives an empty place for each round. CrashChild
// must be in the package's TestMain.
func Crash(t *testing.T, locations func() string, open func(location string) (store.Store, error)) {
	for round := range crashRounds {
		crash(t, (round+1)*crashAfter, locations(), open)
	}
}

func crash(t *testing.T, writes int, location string, open func(location string) (store.Store, error)) {
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	child.Env = append(os.Environ(), fmt.Sprintf("%s=%s|%d", crashEnv, location, writes))
	child.Stderr = os.Stderr
	out, err := child.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, child.Start())

	acknowledged := map[int64]string{}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var job int64
		var did string
		_, err := fmt.Sscan(lines.Text(), &job, &did)
		require.NoError(t, err, "%s", lines.Text())
		acknowledged[job] = did
	}
	require.NoError(t, lines.Err())
	require.ErrorContains(t, child.Wait(), "killed")
	require.Greater(t, len(acknowledged), writes/5)

	s, err := open(location)
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	jobs, err := s.LoadJobs(t.Context())
	require.NoError(t, err)
	have := map[int64]store.Job{}
	for _, job := range jobs {
		have[job.GitLabJobID] = job
	}
	for n, did := range acknowledged {
		requireSurvived(t, s, n, did, have)
		delete(have, n)
	}
	require.LessOrEqual(t, len(have), crashCallers, "jobs that nobody was told of")
	t.Logf("%d jobs with acknowledged writes, %d without", len(acknowledged), len(have))

	_, err = s.InsertJob(t.Context(), NewJob(1<<40))
	require.NoError(t, err, "and it goes on")
}

func requireSurvived(t *testing.T, s store.Store, n int64, did string, have map[int64]store.Job) {
	t.Helper()
	job, there := have[n]
	reached := order[strings.Replace(string(job.State), "claimed", "inserted", 1)]
	if !there && order[did] >= order["finished"] {
		reached = order["deleted"]
	}
	require.GreaterOrEqual(t, reached, order[did], "job %d was acknowledged as %s and is %q", n, did, job.State)
	require.LessOrEqual(t, reached, order[did]+1, "job %d was acknowledged as %s and is %q", n, did, job.State)
	if job.State == store.JobClaimed {
		payload, err := s.Payload(t.Context(), job.ID, 1)
		require.NoError(t, err)
		require.NotEmpty(t, payload)
	}
	if job.State == store.JobFinished {
		require.Equal(t, success(), *job.Result)
		require.Equal(t, start.Add(time.Minute), job.FinishedAt)
	}
}
