//go:build unix

package main

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/job/folder"
)

// However often and whenever the process is killed: the user's command runs at most once, and what the files say is true.
func TestAJobStartsAtMostOnce(t *testing.T) {
	iterations := 30
	if testing.Short() {
		iterations = 10
	}
	r := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 0))
	neverRan, results := 0, 0
	for range iterations {
		j := newJob(t, "echo ran >>$PROOF")
		proof := filepath.Join(filepath.Dir(j.dir), "proof")
		j.variable("PROOF", proof)
		j.create()
		for range 3 {
			c := program(t, "run", j.dir)
			require.NoError(t, c.Start())
			kill := time.AfterFunc(time.Duration(r.IntN(40_000))*time.Microsecond, func() { _ = c.Process.Kill() })
			_ = c.Wait()
			kill.Stop()
			// A child that was on its way to its program may hold the lock a moment longer.
			require.Eventually(t, func() bool {
				running, err := j.folder.Running()
				return err == nil && !running
			}, 10*time.Second, time.Millisecond)
		}
		// The last one is left alone.
		c := program(t, "run", j.dir)
		_ = c.Run()
		code := c.ProcessState.ExitCode()
		require.Contains(t, []int{exitOK, exitStartedBefore}, code)

		_, startedErr := j.folder.Started()
		require.NoError(t, startedErr)
		result, err := j.folder.Result()
		lines := strings.Count(read(t, proof), "ran\n")
		require.LessOrEqual(t, lines, 1)
		switch {
		case err == nil:
			results++
			require.Equal(t, 1, lines, "a result of a job that did not run")
			require.EqualValues(t, len(j.trace()), result.TraceLength)
		case errors.Is(err, folder.ErrNoResult):
			require.Equal(t, exitStartedBefore, code)
		default:
			require.NoError(t, err)
		}
		if lines == 0 {
			neverRan++
		}
	}
	t.Logf("%d jobs: %d with a result, %d never ran", iterations, results, neverRan)
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if !errors.Is(err, os.ErrNotExist) {
		require.NoError(t, err)
	}
	return string(b)
}

func TestAFenceThatIsAllThereIs(t *testing.T) {
	j := newJob(t, "echo ran")
	j.create()
	require.NoError(t, os.WriteFile(filepath.Join(j.dir, folder.StartedFile), nil, 0o600))
	require.Empty(t, j.launch())
	require.Equal(t, exitStartedBefore, j.wait())
	require.Empty(t, j.trace())
}

func TestAFolderThatCannotBeUsed(t *testing.T) {
	for name, spoil := range map[string]func(dir string) error{
		"no spec":    func(dir string) error { return os.Remove(filepath.Join(dir, folder.SpecFile)) },
		"no payload": func(dir string) error { return os.Remove(filepath.Join(dir, folder.PayloadFile)) },
		"a newer spec": func(dir string) error {
			return os.WriteFile(filepath.Join(dir, folder.SpecFile), []byte(`{"version":2}`), 0o600)
		},
		"a spec folder": func(dir string) error {
			_ = os.Remove(filepath.Join(dir, folder.SpecFile))
			return os.Mkdir(filepath.Join(dir, folder.SpecFile), 0o700)
		},
		"no room for the trace": func(dir string) error { return os.Mkdir(filepath.Join(dir, folder.TraceFile), 0o700) },
	} {
		t.Run(name, func(t *testing.T) {
			j := newJob(t, "echo ran")
			j.create()
			require.NoError(t, spoil(j.dir))
			require.Empty(t, j.launch())
			require.Equal(t, exitFailed, j.wait())
			require.NotEmpty(t, j.complaint())
			_, err := j.folder.Started()
			require.ErrorIs(t, err, folder.ErrNotStarted, "nothing was started, so it can be tried again")
		})
	}
}

func TestTheFence(t *testing.T) {
	j := newJob(t, "true")
	j.start()
	s, err := j.folder.Started()
	require.NoError(t, err, "the fence stands when the job is ready")
	require.Equal(t, j.cmd.Process.Pid, s.PID)
	if b, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		require.Equal(t, strings.TrimSpace(string(b)), s.BootID)
	}
	require.WithinDuration(t, time.Now(), s.At, time.Minute)
	j.result()
	require.NotContains(t, read(t, filepath.Join(j.dir, folder.StartedFile)), strconv.Quote(j.payload.Token))
}

// What a killed job has said is proven to its end a second later, although the job says nothing more.
func TestASilentJobsTraceIsProven(t *testing.T) {
	j := newJob(t, "echo begun; sleep 600")
	j.start()
	require.Eventually(t, func() bool {
		return strings.Contains(j.trace(), "begun\n") && len(readIfThere(t, filepath.Join(j.dir, folder.CheckpointsFile))) > 0
	}, 30*time.Second, 10*time.Millisecond)
	require.NoError(t, j.cmd.Process.Kill())
	j.wait()
	said := j.trace()
	require.NoError(t, os.WriteFile(filepath.Join(j.dir, folder.TraceFile), append([]byte(said), make([]byte, 100)...), 0o600))
	cut, err := j.folder.CutUnproven()
	require.NoError(t, err)
	require.EqualValues(t, 100, cut)
	require.Equal(t, said, j.trace())
}

func readIfThere(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	return b
}
