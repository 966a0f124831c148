package docker_test

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/attach"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// cpu is what this process has used.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	require.NoError(t, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkEnvironment makes and destroys environments whose image is there.
func BenchmarkEnvironment(b *testing.B) {
	e := newExecutor(b, nil, "")
	require.NoError(b, e.Check(b.Context()))
	spec := aSpec(b, "bench", image(b, "busybox"))
	var prepare, destroy, used time.Duration
	n := 0
	for b.Loop() {
		spec.Name = "sy-bench-" + strconv.Itoa(n)
		n++
		before, began := cpu(b), time.Now()
		env, err := e.Prepare(b.Context(), spec, io.Discard)
		require.NoError(b, err)
		prepared := time.Now()
		require.NoError(b, env.Destroy(b.Context()))
		prepare += prepared.Sub(began)
		destroy += time.Since(prepared)
		used += cpu(b) - before
	}
	b.ReportMetric(prepare.Seconds()*1e3/float64(n), "prepare-ms/op")
	b.ReportMetric(destroy.Seconds()*1e3/float64(n), "destroy-ms/op")
	b.ReportMetric(used.Seconds()*1e3/float64(n), "agent-cpu-ms/op")
}

// inside is what the processes of an environment's containers have used; 0 where the system does not say.
func inside(t testing.TB, api *client.Client, name string) (used time.Duration) {
	t.Helper()
	list, err := api.ContainerList(t.Context(), client.ContainerListOptions{Filters: make(client.Filters).Add("label", "ci.switchyard.name="+name)})
	require.NoError(t, err)
	for _, c := range list.Items {
		if b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/cpuacct/docker", c.ID, "cpuacct.usage")); err == nil {
			n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
			require.NoError(t, err)
			used += time.Duration(n)
		}
	}
	return used
}

// BenchmarkWarmJob runs jobs with the script `true` from the preparation until nothing is left, in an image that is there.
// wall-ms is until the result is here, destroy-ms the rest; cpu-ms is what is used outside the engine: here and in
// the job's containers.
func BenchmarkWarmJob(b *testing.B) {
	api := engine(b)
	e := newExecutor(b, nil, "")
	require.NoError(b, e.Check(b.Context()))
	spec := aSpec(b, "bench", image(b, "busybox"))
	spec.Job.Variables = []runnerapi.Variable{{Key: "GIT_STRATEGY", Value: "none", Public: true}}
	payload, err := json.Marshal(spec.Job)
	require.NoError(b, err)
	var wall, destroy, here, there time.Duration
	n := 0
	for b.Loop() {
		n++
		spec.Name = "sy-warm-" + strconv.Itoa(n)
		before, began := cpu(b), time.Now()
		env, err := e.Prepare(b.Context(), spec, io.Discard)
		require.NoError(b, err)
		told := folder.Spec{
			Job: int64(n), Epoch: 1, OutputLimit: 4 << 20, Executor: e.Name(), Runner: spec.Runner, KillGrace: time.Second,
		}
		env.Job().Complete(&told)
		in, orders := io.Pipe()
		frames, out := io.Pipe()
		ended := make(chan error, 1)
		go func() {
			_, err := env.Exec(b.Context(), executors.Command{
				Argv: []string{env.Job().Binary, "launch", env.Job().Folder, "--offset", "0"}, Stdin: in, Stdout: out,
			})
			_ = out.Close()
			_ = in.Close()
			ended <- err
		}()
		require.NoError(b, attach.WriteHeader(orders, told, payload))
		reader := attach.NewReader(frames, 0)
		for {
			f, err := reader.Next()
			require.NoError(b, err)
			require.NotEqual(b, attach.Failed, f.Kind, f.Text)
			if f.Kind == attach.Result {
				require.Equal(b, runnerapi.StateSuccess, f.Result.State)
				break
			}
		}
		wall += time.Since(began)
		_ = orders.Close()
		require.NoError(b, <-ended)
		_ = frames.Close()
		here += cpu(b) - before
		there += inside(b, api, spec.Name)
		before, began = cpu(b), time.Now()
		require.NoError(b, env.Destroy(b.Context()))
		destroy += time.Since(began)
		here += cpu(b) - before
	}
	ms := func(d time.Duration) float64 { return d.Seconds() * 1e3 / float64(n) }
	b.ReportMetric(ms(wall), "wall-ms/op")
	b.ReportMetric(ms(destroy), "destroy-ms/op")
	b.ReportMetric(ms(here), "agent-cpu-ms/op")
	b.ReportMetric(ms(there), "containers-cpu-ms/op")
	b.ReportMetric(ms(here+there), "cpu-ms/op")
}
