package docker_test

import (
	"net"
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/moby/moby/client"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/conformance"
	"github.com/switchyard-ci/switchyard/executors/docker"
	"github.com/switchyard-ci/switchyard/executors/docker/config"
)

// hostAddress is an address of this machine that containers reach.
func hostAddress(t testing.TB) string {
	t.Helper()
	addresses, err := net.InterfaceAddrs()
	require.NoError(t, err)
	for _, a := range addresses {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Fatal("this machine has no address that a container could reach")
	return ""
}

var containerID = regexp.MustCompile(`[0-9a-f]{64}`)

// processesOf counts the processes with text in their command line, less those in containers of others: paths in containers
// are the same for all jobs, and other tests have some at the same time.
func processesOf(t *testing.T, e *docker.Executor, text string) int {
	t.Helper()
	foreign, err := e.Foreign(t.Context())
	require.NoError(t, err)
	n := 0
	for _, dir := range processFolders(t, text) {
		group, err := os.ReadFile(filepath.Join(dir, "cgroup"))
		if err == nil && !foreign[string(containerID.Find(group))] {
			n++
		}
	}
	return n
}

// harness has the suite run in containers of an image, with settings and changes of containers.
func harness(image string, c config.Config, brief bool, change ...func(*docker.Options)) func(*testing.T) conformance.Harness {
	return func(t *testing.T) conformance.Harness {
		data := t.TempDir()
		var all []*docker.Executor
		t.Cleanup(func() { // after the cases' own
			for _, e := range all {
				end(t, e)
			}
		})
		made := func(t *testing.T) executors.Executor {
			settings := c
			settings.Image = image
			e := openExecutor(t, &settings, data, change...)
			all = append(all, e)
			return e
		}
		first := made(t)
		return conformance.Harness{
			Leftovers: func(t *testing.T) []string {
				left, err := first.(*docker.Executor).Leftovers(t.Context())
				require.NoError(t, err)
				return left
			},
			Greeter: greeter, Executor: first, Again: made, Jobs: t.TempDir(), JobBinary: filepath.Join(fixture.programs, "switchyard-job"),
			Processes: func(t *testing.T, text string) int { return processesOf(t, first.(*docker.Executor), text) }, Host: hostAddress(t), Brief: brief,
		}
	}
}

func TestConformance(t *testing.T) {
	conformance.Run(t, harness(image(t, "bash"), config.Config{}, false))
}

func TestConformanceOfANonRootImage(t *testing.T) {
	conformance.Run(t, harness(image(t, "bash", "USER user"), config.Config{}, true))
}

func TestConformanceWithoutCapabilities(t *testing.T) {
	conformance.Run(t, harness(image(t, "bash"), config.Config{CapDrop: []string{"ALL"}, SecurityOpt: []string{"no-new-privileges"}}, true))
}

func TestConformanceOfAReadOnlyRoot(t *testing.T) {
	readOnly := func(o *docker.Options) {
		docker.Altered(o, func(kind string, o *client.ContainerCreateOptions) {
			if kind == "build" {
				o.HostConfig.ReadonlyRootfs = true
			}
		})
	}
	conformance.Run(t, harness(image(t, "bash"), config.Config{}, true, readOnly))
}
