//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/attach"
)

// built is the program as it is shipped.
func built(b *testing.B) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "switchyard-job")
	c := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w -X github.com/switchyard-ci/switchyard/internal/buildinfo.version=1.0.0", "-o", path, ".")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := c.CombinedOutput()
	require.NoError(b, err, string(out))
	return path
}

// cpu is the processor time of a process and its children that were waited for.
func cpu(c *exec.Cmd) time.Duration {
	u := c.ProcessState.SysUsage().(*syscall.Rusage)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkStart(b *testing.B) {
	path := built(b)
	var total time.Duration
	for b.Loop() {
		c := exec.Command(path, "version")
		require.NoError(b, c.Run())
		total += cpu(c)
	}
	b.ReportMetric(float64(total.Microseconds())/1000/float64(b.N), "cpu-ms/op")
}

// BenchmarkJob is a whole job with a trivial script, without sources: this process and the shell.
func BenchmarkJob(b *testing.B) {
	for name, login := range map[string]bool{"shell": false, "login shell": true} {
		b.Run(name, func(b *testing.B) {
			path := built(b)
			var total time.Duration
			home := b.TempDir()
			for b.Loop() {
				b.StopTimer()
				j := newJob(b, "echo hi")
				j.spec.Login = login
				j.create()
				c := exec.Command(path, "run", j.dir)
				c.Env = []string{"HOME=" + home, "PATH=/usr/bin:/bin"}
				b.StartTimer()
				require.NoError(b, c.Run())
				total += cpu(c)
			}
			b.ReportMetric(float64(total.Microseconds())/1000/float64(b.N), "cpu-ms/op")
		})
	}
}

// BenchmarkTrace is the way of 133 MB from the script to the trace file. The processor time is that of this process alone.
func BenchmarkTrace(b *testing.B) {
	path := built(b)
	line := "2026-01-02T03:04:05Z INFO  some.module - a line as builds write it, with a path /builds/group/project/src/main.go:42\n"
	const size = 133 << 20
	big := bigFile(b, line, size)
	var own time.Duration
	b.SetBytes(size)
	for b.Loop() {
		b.StopTimer()
		j := newJob(b, "cat "+big)
		j.variable("SECRET", "a-secret-that-is-not-there", masked)
		j.create()
		c := exec.Command(path, "run", j.dir)
		b.StartTimer()
		require.NoError(b, c.Run())
		b.StopTimer()
		r, err := j.folder.Result()
		require.NoError(b, err)
		require.Equal(b, runnerapi.StateSuccess, r.State)
		require.Greater(b, r.TraceLength, int64(size-len(line)))
		own += cpu(c)
		require.NoError(b, os.RemoveAll(j.dir))
		b.StartTimer()
	}
	b.ReportMetric(float64(own.Microseconds())/1000/float64(b.N)/(size/1e6), "cpu-ms/MB")
}

// BenchmarkLaunch compares the two ways to a result: run in a folder that is there, and launch, which makes the folder,
// starts run and follows it.
func BenchmarkLaunch(b *testing.B) {
	path := built(b)
	prepare := func() (*testJob, *bytes.Buffer) {
		j := newJob(b, "true")
		j.spec.Login = false
		raw, err := json.Marshal(j.payload)
		require.NoError(b, err)
		var header bytes.Buffer
		require.NoError(b, attach.WriteHeader(&header, j.spec, raw))
		return j, &header
	}
	b.Run("run", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			j, _ := prepare()
			j.create()
			c := exec.Command(path, "run", j.dir)
			b.StartTimer()
			require.NoError(b, c.Run())
		}
	})
	b.Run("launch", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			j, header := prepare()
			c := exec.Command(path, "launch", j.dir)
			stdin, err := c.StdinPipe()
			require.NoError(b, err)
			b.StartTimer()
			require.NoError(b, c.Start())
			_, err = stdin.Write(header.Bytes())
			require.NoError(b, err)
			require.NoError(b, c.Wait())
		}
	})
}
