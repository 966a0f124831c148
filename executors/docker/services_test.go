package docker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/docker"
	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// greeter is an image whose containers answer on port 8080 with $GREETING and their own words.
func greeter(t *testing.T) string {
	return image(t, "busybox", "EXPOSE 8080",
		`CMD ["sh","-c","mkdir -p /www; echo \"hello $GREETING\" >/www/index.html; echo serving $GREETING; exec httpd -f -v -p 8080 -h /www"]`)
}

// prepared makes an environment that goes with the test, and returns it with its trace.
func prepared(t *testing.T, e *docker.Executor, spec executors.Spec) (executors.Environment, string) {
	t.Helper()
	var trace bytes.Buffer
	env, err := e.Prepare(t.Context(), spec, &trace)
	require.NoError(t, err, trace.String())
	t.Cleanup(func() {
		require.NoError(t, env.Destroy(context.Background()))
		require.Empty(t, left(t, fixture.api, spec.Name))
	})
	return env, trace.String()
}

func TestServices(t *testing.T) {
	api := engine(t)
	own := config.Service{Name: greeter(t), Alias: "own", Environment: []string{"GREETING=of-the-settings"}}
	e := newExecutor(t, &config.Config{Services: []config.Service{own}, AllowedServices: []string{"switchyard-test/image:*"}}, "")
	spec := aSpec(t, "services", image(t, "busybox"))
	spec.Job.Variables = []runnerapi.Variable{
		{Key: "CI_DEBUG_SERVICES", Value: "true", Public: true},
		{Key: "NAME", Value: "world", Public: true},
		{Key: "SECRET", Value: "s3cr3t-value", Masked: true},
	}
	spec.Job.Services = []runnerapi.Image{{
		Name: greeter(t), Alias: "db, other", Variables: []runnerapi.Variable{{Key: "GREETING", Value: "$NAME $SECRET"}},
	}}
	// The second of one image bears the first one's names; its aliases are its own.
	env, trace := prepared(t, e, spec)
	name, tag, _ := strings.Cut(greeter(t), ":")
	require.Equal(t, 2, strings.Count(trace, "Starting service "+name+":"+tag+"...\n"), trace)
	require.Contains(t, trace, "WARNING: Service "+greeter(t)+" is already created. Ignoring.")
	require.Contains(t, trace, "Waiting for services to be up and running (timeout 30 seconds)...\n")
	require.NotContains(t, trace, "probably didn't start properly")
	require.Contains(t, trace, "[service:switchyard-test__image-switchyard-test-image-db-other] ")
	require.Contains(t, trace, "serving world [MASKED]")
	require.NotContains(t, trace, "s3cr3t-value")
	for host, greeting := range map[string]string{
		"db": "world s3cr3t-value", "other": "world s3cr3t-value", "own": "of-the-settings",
	} {
		require.Equal(t, "hello "+greeting+"\n", said(t, env, api, spec.Name, "wget -q -O - http://"+host+":8080/"))
	}
	require.Contains(t, said(t, env, api, spec.Name, "wget -q -O - http://switchyard-test-image:8080/"), "hello")
	var out bytes.Buffer
	_, err := env.Exec(t.Context(), executors.Command{Argv: []string{"sh", "-c", "wget -q -O - http://db:8080/ || git --version"}, Stdout: &out})
	require.NoError(t, err)

	// They are found again after a restart of the agent, and go with the job.
	again, err := e.Recover(t.Context(), spec)
	require.NoError(t, err)
	require.Equal(t, env.Job(), again.Job())
	require.NoError(t, again.Kill(t.Context()))
	running, err := api.ContainerList(t.Context(), client.ContainerListOptions{Filters: make(client.Filters).Add("label", "ci.switchyard.name="+spec.Name)})
	require.NoError(t, err)
	require.Empty(t, running.Items)
}

func TestServicesThatAreNotThere(t *testing.T) {
	engine(t)
	e := newExecutor(t, &config.Config{WaitForServicesTimeout: 2}, "")
	for _, c := range []struct {
		name    string
		service runnerapi.Image
		says    []string
	}{
		{
			"it ends",
			runnerapi.Image{Name: greeter(t), Command: []string{"sh", "-c", "echo no such database; exit 3"}},
			[]string{"ended with exit code 3", "no such database"},
		},
		{
			"it has no ports",
			runnerapi.Image{Name: image(t, "busybox"), Command: []string{"sh", "-c", "echo busy; sleep 1000"}},
			[]string{"has no exposed ports", "busy"},
		},
		{
			"it does not listen",
			runnerapi.Image{Name: image(t, "busybox"), Ports: json.RawMessage(`[{"number":9090,"protocol":"http"}]`), Command: []string{"sh", "-c", "echo deaf; sleep 1000"}},
			[]string{"timeout", "waiting for TCP connection to", "9090", "deaf"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := aSpec(t, "absent", image(t, "busybox"))
			spec.Job.Services = []runnerapi.Image{c.service}
			began := time.Now()
			_, trace := prepared(t, e, spec)
			require.Less(t, time.Since(began), 30*time.Second)
			require.Regexp(t, `\*\*\* WARNING:\x1b\[0;m Service sy-test-absent-[0-9a-f]{8}-switchyard-test__image-0 probably didn't start properly\.`, trace)
			for _, text := range append(c.says, "Health check error:\n", "Service container logs:\n") {
				require.Contains(t, trace, text)
			}
		})
	}
	t.Run("nobody waits", func(t *testing.T) {
		e := newExecutor(t, &config.Config{WaitForServicesTimeout: -1}, "")
		spec := aSpec(t, "absent", image(t, "busybox"))
		spec.Job.Services = []runnerapi.Image{{Name: greeter(t)}}
		_, trace := prepared(t, e, spec)
		require.NotContains(t, trace, "Waiting for services")
	})
	t.Run("too many", func(t *testing.T) {
		one := 1
		e := newExecutor(t, &config.Config{ServicesLimit: &one}, "")
		spec := aSpec(t, "absent", image(t, "busybox"))
		spec.Job.Services = []runnerapi.Image{{Name: greeter(t)}, {Name: greeter(t), Alias: "two"}}
		why, _ := refused(t, e, spec)
		require.ErrorContains(t, why, "too many services requested: 2, only 1 allowed")
	})
	t.Run("it cannot be started", func(t *testing.T) {
		spec := aSpec(t, "absent", image(t, "busybox"))
		spec.Job.Services = []runnerapi.Image{{Name: greeter(t), Command: []string{"/no/such/program"}}}
		why, _ := refused(t, e, spec)
		require.ErrorContains(t, why, "/no/such/program")
	})
}

func TestNetworksOfTheSettings(t *testing.T) {
	api := engine(t)
	t.Run("a named one", func(t *testing.T) {
		name := "sy-test-" + strings.ToLower(t.Name()[len("TestNetworksOfTheSettings/"):])
		_, err := api.NetworkCreate(t.Context(), name, client.NetworkCreateOptions{Driver: "bridge"})
		require.NoError(t, err)
		t.Cleanup(func() {
			_, err := api.NetworkRemove(context.Background(), name, client.NetworkRemoveOptions{})
			require.NoError(t, err)
		})
		e := newExecutor(t, &config.Config{NetworkMode: name}, "")
		spec := aSpec(t, "network", image(t, "busybox"))
		spec.Job.Services = []runnerapi.Image{{Name: greeter(t), Alias: "db"}}
		env, trace := prepared(t, e, spec)
		require.NotContains(t, trace, "probably didn't start properly")
		require.Equal(t, "hello \n", said(t, env, api, spec.Name, "wget -q -O - http://db:8080/"))
		require.Empty(t, env.Job().Environment, "no network of its own")
	})
	t.Run("the host's", func(t *testing.T) {
		e := newExecutor(t, &config.Config{NetworkMode: "host"}, "")
		spec := aSpec(t, "network", image(t, "busybox"))
		env, _ := prepared(t, e, spec)
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		go func() {
			if c, err := l.Accept(); err == nil {
				_, _ = c.Write([]byte("reached\n"))
				_ = c.Close()
			}
		}()
		_, port, _ := net.SplitHostPort(l.Addr().String())
		require.Equal(t, "reached\n", said(t, env, api, spec.Name, "nc 127.0.0.1 "+port+" </dev/null"))
	})
	t.Run("none", func(t *testing.T) {
		e := newExecutor(t, &config.Config{NetworkMode: "none"}, "")
		spec := aSpec(t, "network", image(t, "busybox"))
		spec.Job.Services = []runnerapi.Image{{Name: greeter(t), Alias: "db"}}
		env, trace := prepared(t, e, spec)
		require.NotContains(t, trace, "Waiting for services")
		require.Equal(t, "lo\n", said(t, env, api, spec.Name, "ls /sys/class/net"))
	})
	t.Run("the default bridge, where services have no names", func(t *testing.T) {
		if _, err := net.InterfaceByName("docker0"); err != nil {
			t.Skip("this machine's engine has no default bridge:", err)
		}
		e := newExecutor(t, &config.Config{NetworkMode: "bridge"}, "")
		spec := aSpec(t, "network", image(t, "busybox"))
		spec.Job.Services = []runnerapi.Image{{Name: greeter(t), Alias: "db"}}
		env, trace := prepared(t, e, spec)
		require.NotContains(t, trace, "probably didn't start properly")
		require.Equal(t, "hello \n", said(t, env, api, spec.Name, "wget -q -O - http://db:8080/"))
	})
	t.Run("of the job itself, with settings", func(t *testing.T) {
		e := newExecutor(t, &config.Config{NetworkMTU: 1400, ExtraHosts: []string{"given.example.com:192.0.2.7"}}, "")
		spec := aSpec(t, "network", image(t, "busybox"))
		env, _ := prepared(t, e, spec)
		require.Equal(t, "1400\n", said(t, env, api, spec.Name, "cat /sys/class/net/eth0/mtu"))
		require.Contains(t, said(t, env, api, spec.Name, "cat /etc/hosts"), "192.0.2.7\tgiven.example.com")
	})
}
