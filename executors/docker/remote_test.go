package docker_test

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/docker"
	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/executors/docker/internal/dockertest"
)

const patience = time.Minute

// ownEngine starts an engine that has the image of the tests, and returns it with settings for it.
func ownEngine(t *testing.T, args ...string) (*dockertest.Daemon, *config.Config, string) {
	t.Helper()
	api, name := engine(t), image(t, "busybox")
	d := dockertest.NewDaemon(t, args...)
	d.Load(api, name)
	return d, &config.Config{Host: d.Host()}, name
}

// work has a process of the environment count in a file for as long as it lives, and returns a function that waits until it
// has counted further.
func work(t *testing.T, env executors.Environment) (running <-chan error, counts func(executors.Environment)) {
	t.Helper()
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	go func() {
		code, err := env.Exec(ctx, executors.Command{
			Argv: []string{"sh", "-c", "i=0; while true; do i=$((i+1)); echo $i >/builds/count.new; mv /builds/count.new /builds/count; usleep 20000; done"},
		})
		if err == nil {
			err = fmt.Errorf("exit code %d", code)
		}
		ended <- err
	}()
	last := ""
	return ended, func(env executors.Environment) {
		t.Helper()
		for range 2 { // what was counted before may be new here
			require.Eventually(t, func() bool {
				var out bytes.Buffer
				code, err := env.Exec(t.Context(), executors.Command{Argv: []string{"cat", "/builds/count"}, Stdout: &out})
				if err != nil || code != 0 || out.String() == last || out.Len() == 0 {
					return false
				}
				last = out.String()
				return true
			}, patience, 50*time.Millisecond)
		}
	}
}

func TestAnEngineThatRestartsUnderJobs(t *testing.T) {
	d, c, name := ownEngine(t, "--live-restore")
	e := newExecutor(t, c, "")
	spec := aSpec(t, "restart", name)
	env, err := e.Prepare(t.Context(), spec, new(bytes.Buffer))
	require.NoError(t, err)
	ended, counts := work(t, env)
	counts(env)
	for _, stop := range []func(){d.Stop, d.Kill} {
		stop()
		if ended != nil {
			require.ErrorContains(t, <-ended, "run sh in the helper container", "the caller of a process that nobody watches any more")
			ended = nil
		}
		_, err = env.Exec(t.Context(), executors.Command{Argv: []string{"true"}})
		require.Error(t, err)
		require.NotErrorIs(t, err, context.Canceled)
		d.Start()
		counts(env)
		require.NoError(t, env.Err(), "the job goes on")
	}
	again, err := e.Recover(t.Context(), spec)
	require.NoError(t, err)
	counts(again)

	// What happens to containers after the restart is heard.
	_, err = env.Exec(t.Context(), executors.Command{Argv: []string{"sh", "-c", "kill -9 1; kill 1"}})
	_ = err // it dies with its container
	for _, v := range []executors.Environment{env, again} {
		select {
		case <-v.Done():
		case <-time.After(patience):
			t.Fatal("the end of the helper container was not heard")
		}
		require.ErrorContains(t, v.Err(), "helper container")
	}
	require.NoError(t, env.Destroy(t.Context()))
	require.NoError(t, again.Destroy(t.Context()))
	require.Empty(t, left(t, e.Client(), spec.Name))
}

func TestAnEngineThatTakesItsContainersAlong(t *testing.T) {
	d, c, name := ownEngine(t)
	e := newExecutor(t, c, "")
	spec := aSpec(t, "restart", name)
	env, err := e.Prepare(t.Context(), spec, new(bytes.Buffer))
	require.NoError(t, err)
	_, counts := work(t, env)
	counts(env)
	d.Stop()
	d.Start()
	select {
	case <-env.Done():
	case <-time.After(patience):
		t.Fatal("the end of the containers was not found out")
	}
	require.ErrorContains(t, env.Err(), "container sy-test-restart-")
	again, err := e.Recover(t.Context(), spec)
	require.NoError(t, err)
	require.Error(t, again.Err())
	require.NoError(t, again.Destroy(t.Context()))
	require.NoError(t, env.Destroy(t.Context()))
	require.Empty(t, left(t, e.Client(), spec.Name))
}

// lives runs a job's environment from its beginning to its end.
func lives(t *testing.T, e *docker.Executor, name string) {
	t.Helper()
	require.NoError(t, e.Check(t.Context()))
	spec := aSpec(t, "remote", name)
	env, err := e.Prepare(t.Context(), spec, new(bytes.Buffer))
	require.NoError(t, err)
	_, local := env.LocalFolder()
	require.False(t, local)
	var out bytes.Buffer
	big := strings.Repeat("0123456789", 100_000)
	code, err := env.Exec(t.Context(), executors.Command{Argv: []string{"cat"}, Stdin: strings.NewReader(big), Stdout: &out})
	require.NoError(t, err)
	require.Zero(t, code)
	require.Equal(t, big, out.String())
	require.NoError(t, env.Destroy(t.Context()))
	require.Empty(t, left(t, e.Client(), spec.Name))
}

func TestAnEngineOverTLS(t *testing.T) {
	server, user := dockertest.Certificates(t)
	address := fmt.Sprintf("tcp://127.0.0.1:%d", dockertest.FreePort(t))
	_, c, name := ownEngine(t, "-H", address, "--tlsverify", "--tlscacert", filepath.Join(server, "ca.pem"),
		"--tlscert", filepath.Join(server, "cert.pem"), "--tlskey", filepath.Join(server, "key.pem"))
	c.Host, c.TLSCertPath, c.TLSVerify = address, user, true
	lives(t, newExecutor(t, c, ""), name)

	t.Run("by the environment", func(t *testing.T) {
		e := newExecutor(t, nil, "", func(o *docker.Options) {
			o.Environ = []string{"DOCKER_HOST=" + address, "DOCKER_CERT_PATH=" + user, "DOCKER_TLS_VERIFY=1"}
		})
		require.NoError(t, e.Check(t.Context()))
	})
	t.Run("the certificate of another", func(t *testing.T) {
		_, stranger := dockertest.Certificates(t)
		e := openExecutor(t, &config.Config{Host: address, TLSCertPath: stranger, TLSVerify: true}, "")
		defer e.Close()
		err := e.Check(t.Context())
		require.ErrorContains(t, err, "the Docker engine does not answer at "+address)
		require.ErrorContains(t, err, "certificate")
	})
	t.Run("no certificates", func(t *testing.T) {
		_, err := docker.New(docker.Options{
			Config: &config.Config{Host: address, TLSCertPath: t.TempDir(), TLSVerify: true}, Data: t.TempDir(),
		})
		require.ErrorContains(t, err, "tls_cert_path")
	})
}

func TestAnEngineBySSH(t *testing.T) {
	name := image(t, "busybox")
	host, options := dockertest.SSH(t)
	e := newExecutor(t, &config.Config{Host: host}, "", func(o *docker.Options) { o.SSHOptions = options })
	lives(t, e, name)
}
