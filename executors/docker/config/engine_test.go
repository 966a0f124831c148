package config

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/internal/testbed"
)

// busybox makes an image of static busybox and returns its ID.
func busybox(t *testing.T, c *client.Client) string {
	t.Helper()
	path, err := exec.LookPath("busybox")
	require.NoError(t, err)
	program, err := os.ReadFile(path)
	require.NoError(t, err)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	require.NoError(t, w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(program))}))
	_, err = w.Write(program)
	require.NoError(t, errors.Join(err, w.Close()))
	name := "switchyard-config-test:" + strings.ToLower(rand.Text())
	answer, err := c.ImageImport(t.Context(), client.ImageImportSource{Source: &b, SourceName: "-"}, name, client.ImageImportOptions{})
	require.NoError(t, err)
	_, err = io.Copy(io.Discard, answer)
	require.NoError(t, errors.Join(err, answer.Close()))
	t.Cleanup(func() {
		_, err := c.ImageRemove(context.Background(), name, client.ImageRemoveOptions{})
		require.NoError(t, err)
	})
	return name
}

// start starts a container of the parts, waits for its end and returns what it wrote and what the engine says of it.
func start(t *testing.T, c *client.Client, p Parts) (string, container.InspectResponse) {
	t.Helper()
	made, err := c.ContainerCreate(t.Context(), client.ContainerCreateOptions{Config: p.Config, HostConfig: p.Host})
	require.NoError(t, err)
	t.Cleanup(func() {
		_, err := c.ContainerRemove(context.Background(), made.ID, client.ContainerRemoveOptions{Force: true})
		require.NoError(t, err)
	})
	wait := c.ContainerWait(t.Context(), made.ID, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	_, err = c.ContainerStart(t.Context(), made.ID, client.ContainerStartOptions{})
	require.NoError(t, err)
	select {
	case <-wait.Result:
	case err := <-wait.Error:
		require.NoError(t, err)
	}
	logs, err := c.ContainerLogs(t.Context(), made.ID, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true})
	require.NoError(t, err)
	defer logs.Close()
	var out bytes.Buffer
	_, err = stdcopy.StdCopy(&out, &out, logs)
	require.NoError(t, err)
	inspect, err := c.ContainerInspect(t.Context(), made.ID, client.ContainerInspectOptions{})
	require.NoError(t, err)
	return out.String(), inspect.Container
}

const broad = `
hostname: broad-host
user: "65534:65534"
group_add: ["1234"]
memory: 64m
memory_swap: 96m
memory_reservation: 32m
cpus: "0.5"
cpu_shares: 512
cpuset_cpus: "0"
cpuset_mems: "0"
pids_limit: 50
oom_score_adjust: 300
shm_size: 8388608
cap_drop: [ALL]
cap_add: [NET_BIND_SERVICE]
security_opt: [no-new-privileges]
dns: [192.0.2.53]
dns_search: [ci.test]
extra_hosts: ["db.test:192.0.2.7"]
network_mode: none
ipcmode: private
devices: ["/dev/null:/dev/nothing:r"]
device_cgroup_rules: ["c 1:3 r"]
sysctls: {net.core.somaxconn: "321"}
ulimit: {nofile: "100:200"}
tmpfs: {/scratch: "rw,size=1m"}
services_tmpfs: {/data: "rw,size=2m"}
container_labels: {team: $TEAM}
log_options: {max-size: 1m}
service_memory: 48m
service_cpus: "0.25"
service_cpu_shares: 256
services_security_opt: [no-new-privileges]
services_devices: {"switchyard-config-test:*": ["/dev/zero:/dev/nil"]}
`

func TestTheEngineDoesWhatTheSettingsSay(t *testing.T) {
	testbed.Need(t, testbed.Docker, testbed.Busybox)
	c, err := client.New(client.FromEnv)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Close()) })
	image := busybox(t, c)
	settings := containers(t, broad)
	expand := strings.NewReplacer("$TEAM", "blue").Replace

	build, err := settings.Build(runnerapi.Image{Name: image}, expand)
	require.NoError(t, err)
	build.Config.Image = image
	build.Config.Cmd = []string{"/bin/busybox", "sh", "-c", `
		b=/bin/busybox
		echo "host $($b hostname), user $($b id -u):$($b id -g), groups $($b id -G)"
		echo "files $(ulimit -n) $(ulimit -Hn), oom $($b cat /proc/self/oom_score_adj), conn $($b cat /proc/sys/net/core/somaxconn)"
		$b grep -E 'CapBnd|NoNewPrivs' /proc/self/status
		$b grep -E ' (/scratch|/dev/shm) ' /proc/mounts
		$b cat /etc/resolv.conf /etc/hosts
		$b ls -l /dev/nothing`}
	out, inspect := start(t, c, build)
	for _, want := range []string{
		"host broad-host, user 65534:65534, groups 65534 1234", "files 100 200, oom 300, conn 321", "CapBnd:\t0000000000000400", "NoNewPrivs:\t1",
		"tmpfs /scratch tmpfs rw", "size=1024k", "size=8192k", "192.0.2.7\tdb.test", "/dev/nothing",
	} {
		require.Contains(t, out, want)
	}
	require.Equal(t, "blue", inspect.Config.Labels["team"])
	got := inspect.HostConfig
	require.EqualValues(t, 64<<20, got.Memory)
	require.EqualValues(t, 96<<20, got.MemorySwap)
	require.EqualValues(t, 32<<20, got.MemoryReservation)
	require.EqualValues(t, 500_000_000, got.NanoCPUs)
	require.EqualValues(t, 512, got.CPUShares)
	require.Equal(t, "0", got.CpusetCpus)
	require.EqualValues(t, 50, *got.PidsLimit)
	require.Equal(t, []string{"c 1:3 r"}, got.DeviceCgroupRules)
	require.Equal(t, build.Host.Devices, got.Devices)
	require.Equal(t, container.RestartPolicyDisabled, got.RestartPolicy.Name)
	require.Equal(t, container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": "1m"}}, got.LogConfig)
	require.Equal(t, build.Host.DNS, got.DNS)
	require.Equal(t, []string{"ci.test"}, got.DNSSearch)
	require.False(t, got.Privileged)

	helper := settings.Helper(expand)
	helper.Config.Image, helper.Config.Cmd = image, build.Config.Cmd
	out, inspect = start(t, c, helper)
	require.Contains(t, out, "user 0:0, groups 0")
	require.Contains(t, out, "CapBnd:\t0000000000000000")
	require.EqualValues(t, 64<<20, inspect.HostConfig.Memory)
	require.Empty(t, inspect.HostConfig.Devices)

	service, err := settings.Service(runnerapi.Image{Name: image, Entrypoint: []string{"/bin/busybox", "sh", "-c"}, Command: []string{
		"/bin/busybox grep ' /data ' /proc/mounts; /bin/busybox ls -l /dev/nil",
	}}, expand)
	require.NoError(t, err)
	service.Config.Image = image
	out, inspect = start(t, c, service)
	require.Contains(t, out, "size=2048k")
	require.Contains(t, out, "/dev/nil")
	require.EqualValues(t, 48<<20, inspect.HostConfig.Memory)
	require.EqualValues(t, 250_000_000, inspect.HostConfig.NanoCPUs)
	require.Equal(t, []string{"no-new-privileges"}, inspect.HostConfig.SecurityOpt)
}
