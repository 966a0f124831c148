package docker

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
	"github.com/switchyard-ci/switchyard/job/masking"
)

func TestFeatures(t *testing.T) {
	e, err := New(Options{Data: t.TempDir(), Config: &config.Config{GPUs: "all"}})
	require.NoError(t, err)
	require.Equal(t, "all", e.Features().GPUs)
}

func TestNamesOfServices(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0", 64)
	for name, want := range map[string]struct {
		title, image string
		aliases      []string
	}{
		"redis":                      {"redis:latest", "redis:latest", []string{"redis"}},
		"redis:7":                    {"redis:7", "redis:7", []string{"redis"}},
		"redis@" + digest:            {"redis@" + digest, "redis@" + digest, []string{"redis"}},
		"group/redis:7":              {"group/redis:7", "group/redis:7", []string{"group__redis", "group-redis"}},
		"r.example.com:5000/g/n/p:1": {"r.example.com/g/n/p:1", "r.example.com:5000/g/n/p:1", []string{"r.example.com__g__n__p", "r.example.com-g-n-p"}},
		"r.example.com:5000/p":       {"r.example.com/p:latest", "r.example.com:5000/p:latest", []string{"r.example.com__p", "r.example.com-p"}},
		":x":                         {},
	} {
		s := newService(0, runnerapi.Image{Name: name})
		require.Equal(t, want.title, s.title, name)
		require.Equal(t, want.image, s.image, name)
		require.Equal(t, want.aliases, s.aliases, name)
	}
	s := newService(3, runnerapi.Image{Name: "redis", Alias: "db,cache  other, "})
	require.Equal(t, []string{"redis", "db", "cache", "other"}, s.aliases)
	require.Equal(t, "sy-1-redis-3", s.containerName("sy-1"))
	long := newService(0, runnerapi.Image{Name: "r.example.com/" + strings.Repeat("a", 200)})
	require.Less(t, len(long.containerName("sy")), 80)
}

func TestPortsOfServices(t *testing.T) {
	for text, want := range map[string][]int{
		"80": {80}, "80/tcp": {80}, "53/udp": nil, "8000-8002/tcp": {8000, 8001, 8002}, "0": nil, "x": nil, "70000": nil, "5-x": nil, "9-8": nil,
	} {
		require.Equal(t, want, portsOf(text), text)
	}
	require.Len(t, portsOf("1-65535"), 20)
	s := &service{pulled: image{ports: []int{80, 443}}}
	s.definition.Ports = []byte(`[{"number":8080},{"number":80},{"number":53,"protocol":"udp"},{"number":-1}]`)
	ports, err := s.ports([]string{"A=b"})
	require.NoError(t, err)
	require.Equal(t, []int{80, 443, 8080}, ports)
	ports, err = s.ports([]string{"healthcheck_tcp_port=9000"})
	require.NoError(t, err)
	require.Equal(t, []int{9000}, ports)
	_, err = s.ports([]string{"HEALTHCHECK_TCP_PORT=many"})
	require.ErrorContains(t, err, "invalid health check tcp port: many")
}

func TestTheAgentsKey(t *testing.T) {
	dir := t.TempDir()
	one, err := loadIdentity(dir)
	require.NoError(t, err)
	again, err := loadIdentity(dir)
	require.NoError(t, err)
	require.Equal(t, one, again)
	other, err := loadIdentity(t.TempDir())
	require.NoError(t, err)
	require.NotEqual(t, one.id(), other.id())
	require.NotEqual(t, one.token("a"), one.token("b"))
	require.NotEqual(t, one.token("a"), other.token("a"))
	require.Len(t, one.id(), 16)
	info, err := os.Stat(filepath.Join(dir, identityFile))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	require.NoError(t, os.WriteFile(filepath.Join(dir, identityFile), []byte("x"), 0o600))
	_, err = loadIdentity(dir)
	require.ErrorContains(t, err, "is damaged")
	_, err = loadIdentity(filepath.Join(dir, "missing"))
	require.Error(t, err)
}

func TestNamesAreBounded(t *testing.T) {
	self := &identity{key: []byte("k")}
	spec := executors.Spec{
		Name: strings.Repeat("n", 63), Job: &runnerapi.Job{JobInfo: runnerapi.JobInfo{ProjectID: 1 << 62}},
		Runner: folder.Runner{ShortToken: "Tö_" + strings.Repeat("x", 100), SystemID: "s"}, ConcurrentProjectID: 1 << 30,
	}
	slot := slotName(spec)
	require.Regexp(t, `^[a-z0-9-]+$`, slot)
	require.LessOrEqual(t, len(slot), 63+16)
	require.Regexp(t, `^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`, volumeName(self, spec, true, "/builds"))
	require.NotEqual(t, volumeName(self, spec, true, "/builds"), volumeName(self, spec, false, "/builds"))
	require.NotEqual(t, volumeName(self, spec, true, "/builds"), volumeName(&identity{key: []byte("l")}, spec, true, "/builds"))
	require.Less(t, len(containerName(objectName(self, spec.Name), kindHelper)), 100)
}

func TestLanes(t *testing.T) {
	var out bytes.Buffer
	l := newLanes(&out, 3)
	say(l.lane(1), "second")
	say(l.lane(0), "first")
	require.Equal(t, "first\n", out.String())
	l.lane(1).done()
	say(l.lane(2), strings.Repeat("x", heldLimit))
	say(l.lane(2), "third")
	l.lane(0).done()
	say(l.lane(2), "live")
	l.lane(2).done()
	require.Equal(t, "first\nsecond\nthird\nlive\n", out.String(), "what is too much to keep is dropped")
}

func TestOutputMasks(t *testing.T) {
	var b bytes.Buffer
	o := &output{w: &b, masker: masking.New([]string{"s3cr3t-value"}, nil)}
	p := &prefixed{w: o, before: "[", after: "]"}
	_, err := p.Write([]byte("one\r\n\ntwo s3cr3t-value\nthr"))
	require.NoError(t, err)
	p.close()
	p.close()
	o.flush()
	require.NoError(t, o.err())
	require.Equal(t, "[one]\n[]\n[two [MASKED]]\n[thr]\n", b.String())
}

func TestWhereTheEngineIs(t *testing.T) {
	environ := []string{"DOCKER_HOST=tcp://1.example.com:1", "DOCKER_HOST=tcp://2.example.com:2", "DOCKER_CERT_PATH=/certs", "DOCKER_TLS_VERIFY=1"}
	for _, c := range []struct {
		config config.Config
		env    []string
		home   string
		want   address
	}{
		{config.Config{}, nil, "/root", address{"unix:///var/run/docker.sock", "", false}},
		{config.Config{}, environ, "", address{"tcp://2.example.com:2", "/certs", true}},
		{config.Config{Host: "tcp://3.example.com:3"}, environ, "", address{"tcp://3.example.com:3", "", false}},
		{config.Config{TLSCertPath: "/mine", TLSVerify: true}, environ, "", address{"tcp://2.example.com:2", "/mine", true}},
		{config.Config{}, []string{"DOCKER_HOST=tcp://x:1", "DOCKER_TLS_VERIFY=1"}, "/root", address{"tcp://x:1", "/root/.docker", true}},
	} {
		require.Equal(t, c.want, find(Options{Config: &c.config, Environ: c.env, Home: c.home}))
	}
	for _, c := range []struct {
		version, than string
		older         bool
	}{{"1.39", "1.40", true}, {"1.40", "1.40", false}, {"1.100", "1.40", false}, {"2.0", "1.40", false}, {"", "1.40", false}} {
		require.Equal(t, c.older, older(c.version, c.than), c.version)
	}
}

func TestSteadyRequests(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	steadied, done, err := steady(ctx)
	require.NoError(t, err)
	defer done()
	cancel()
	require.NoError(t, steadied.Err())
	_, _, err = steady(ctx)
	require.ErrorIs(t, err, context.Canceled)
}
