package config

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func parse(t *testing.T, text string) *Config {
	t.Helper()
	var c Config
	require.NoError(t, yaml.Unmarshal([]byte(text), &c), text)
	return &c
}

func containers(t *testing.T, text string) *Containers {
	t.Helper()
	c, err := New(parse(t, text))
	require.NoError(t, err, text)
	return c
}

func same(text string) string { return text }

// parts are what the settings make of each kind of container.
func parts(t *testing.T, text string) (build, helper, service Parts) {
	t.Helper()
	c := containers(t, text)
	build, err := c.Build(runnerapi.Image{Name: "alpine:3"}, same)
	require.NoError(t, err)
	service, err = c.Service(runnerapi.Image{Name: "redis:7"}, same)
	require.NoError(t, err)
	return build, c.Helper(same), service
}

// Each key: a valid value, where it shows, and wrong values with what is said of them. Keys that others read have no
// containers here.
var table = map[string]struct {
	valid string
	// build, helper and service look at a part.
	look                   func(Parts) any
	build, helper, service any
	wrong                  map[string]string
}{
	"host":             {valid: "tcp://engine:2376", wrong: map[string]string{"engine": `"engine" must be unix:///PATH`, "npipe:////./pipe/x": "must be unix:///PATH"}},
	"tls_cert_path":    {valid: "/certs"},
	"tls_verify":       {valid: "true\ntls_cert_path: /certs", wrong: map[string]string{"true": "needs tls_cert_path"}},
	"image":            {valid: "$REGISTRY/alpine", wrong: map[string]string{"Alpine": `image: "Alpine": invalid reference format`}},
	"hostname":         {valid: "host-1", look: func(p Parts) any { return p.Config.Hostname }, build: "host-1", helper: "host-1", wrong: map[string]string{"a b": "is no name of a host"}},
	"user":             {valid: "1000:1000", look: func(p Parts) any { return p.Config.User }, build: "1000:1000"},
	"runtime":          {valid: "kata", look: func(p Parts) any { return p.Host.Runtime }, build: "kata", helper: "kata", service: "kata"},
	"isolation":        {valid: "default", wrong: map[string]string{"hyperv": `isolation: "hyperv" is for Windows containers`}},
	"memory":           {valid: "128m", look: func(p Parts) any { return p.Host.Memory }, build: int64(128 << 20), helper: int64(128 << 20), service: int64(0), wrong: map[string]string{"12x": `memory: "12x" is no size`, "1m": "less than the 6m"}},
	"memory_swap":      {valid: "\"-1\"\nmemory: 64m", look: func(p Parts) any { return p.Host.MemorySwap }, build: int64(-1), helper: int64(-1), service: int64(0), wrong: map[string]string{"1g": "set memory, too", "32m\nmemory: 64m": "at least memory, 64m"}},
	"cpus":             {valid: "1.5", look: func(p Parts) any { return p.Host.NanoCPUs }, build: int64(15e8), helper: int64(15e8), service: int64(0), wrong: map[string]string{"many": `cpus: "many" is no number of CPUs`, "-1": "is no number of CPUs", "0": "is no number of CPUs"}},
	"cpuset_cpus":      {valid: "0-1", look: func(p Parts) any { return p.Host.CpusetCpus }, build: "0-1", helper: "0-1", wrong: map[string]string{"one": "must be numbers and ranges"}},
	"cpuset_mems":      {valid: "0", look: func(p Parts) any { return p.Host.CpusetMems }, build: "0", helper: "0", wrong: map[string]string{"x": "must be numbers and ranges"}},
	"cpu_shares":       {valid: "512", look: func(p Parts) any { return p.Host.CPUShares }, build: int64(512), helper: int64(512), service: int64(0), wrong: map[string]string{"-1": "must be 0 or more"}},
	"cgroup_parent":    {valid: "ci", look: func(p Parts) any { return p.Host.CgroupParent }, build: "ci", helper: "ci"},
	"pids_limit":       {valid: "99", look: func(p Parts) any { return deref(p.Host.PidsLimit) }, build: int64(99), helper: int64(99), service: int64(99), wrong: map[string]string{"-2": "must be 0 or more"}},
	"shm_size":         {valid: "1048576", look: func(p Parts) any { return p.Host.ShmSize }, build: int64(1 << 20), helper: int64(0), service: int64(1 << 20), wrong: map[string]string{"-1": "must be 0 or more"}},
	"oom_kill_disable": {valid: "true", look: func(p Parts) any { return deref(p.Host.OomKillDisable) }, build: true, helper: false, service: false},
	"oom_score_adjust": {valid: "100", look: func(p Parts) any { return p.Host.OomScoreAdj }, build: 100, helper: 100, service: 0, wrong: map[string]string{"2000": "between -1000 and 1000"}},
	"memory_reservation": {
		valid: "32m\nmemory: 64m", look: func(p Parts) any { return p.Host.MemoryReservation },
		build: int64(32 << 20), helper: int64(32 << 20), service: int64(0), wrong: map[string]string{"65m\nmemory: 64m": "at most memory, 64m"},
	},
	"group_add":     {valid: "[docker]", look: func(p Parts) any { return p.Host.GroupAdd }, build: []string{"docker"}, wrong: map[string]string{`[""]`: "the name or the number of a group"}},
	"userns_mode":   {valid: "host", look: func(p Parts) any { return string(p.Host.UsernsMode) }, build: "host", helper: "host", service: "host", wrong: map[string]string{"mine": "must be host"}},
	"pid_mode":      {valid: "host", look: func(p Parts) any { return string(p.Host.PidMode) }, build: "host", wrong: map[string]string{"mine": "must be host or container:NAME"}},
	"ipcmode":       {valid: "container:x", look: func(p Parts) any { return string(p.Host.IpcMode) }, build: "container:x", wrong: map[string]string{"mine": "must be none, private"}},
	"cap_add":       {valid: "[NET_ADMIN]", look: func(p Parts) any { return p.Host.CapAdd }, build: []string{"NET_ADMIN"}, wrong: map[string]string{"[net-admin]": "is no capability"}},
	"cap_drop":      {valid: "[ALL]", look: func(p Parts) any { return p.Host.CapDrop }, build: []string{"ALL"}, helper: []string{"ALL"}, wrong: map[string]string{"[x1]": "is no capability"}},
	"security_opt":  {valid: "[no-new-privileges]", look: func(p Parts) any { return p.Host.SecurityOpt }, build: []string{"no-new-privileges"}, helper: []string{"no-new-privileges"}, wrong: map[string]string{"[nothing]": "NAME=VALUE", "[seccomp=/p.json]": "not its path"}},
	"devices":       {valid: "[/dev/fuse, '/dev/a:/dev/b:r']", look: func(p Parts) any { return p.Host.Devices }, build: []container.DeviceMapping{{PathOnHost: "/dev/fuse", PathInContainer: "/dev/fuse", CgroupPermissions: "rwm"}, {PathOnHost: "/dev/a", PathInContainer: "/dev/b", CgroupPermissions: "r"}}, wrong: map[string]string{"[fuse]": "must be /dev/NAME", "['/a:/b:r:w']": "must be /dev/NAME"}},
	"gpus":          {valid: "all", look: func(p Parts) any { return len(p.Host.DeviceRequests) }, build: 1, helper: 0, service: 0, wrong: map[string]string{"some": `gpus: "some": invalid count`}},
	"sysctls":       {valid: "{net.core.somaxconn: '1024'}", look: func(p Parts) any { return p.Host.Sysctls }, build: map[string]string{"net.core.somaxconn": "1024"}, wrong: map[string]string{"{x: '1'}": "is no name of a setting"}},
	"ulimit":        {valid: "{nofile: '10:20'}", look: func(p Parts) any { return p.Host.Ulimits }, build: []*units.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}}, helper: []*units.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}}, wrong: map[string]string{"{files: '1'}": `ulimit: "files: 1": invalid ulimit type`}},
	"log_options":   {valid: "{max-size: 1m}", look: func(p Parts) any { return p.Host.LogConfig.Config }, build: map[string]string{"max-size": "1m"}, helper: map[string]string{"max-size": "1m"}, service: map[string]string{"max-size": "1m"}, wrong: map[string]string{"{syslog: x}": "is no option of the json-file driver"}},
	"dns":           {valid: "[192.0.2.1]", look: func(p Parts) any { return p.Host.DNS }, build: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, helper: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, service: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, wrong: map[string]string{"[dns]": "is no IP address"}},
	"dns_search":    {valid: "[a.test]", look: func(p Parts) any { return p.Host.DNSSearch }, build: []string{"a.test"}, helper: []string{"a.test"}, service: []string{"a.test"}},
	"extra_hosts":   {valid: "['db:::1']", look: func(p Parts) any { return p.Host.ExtraHosts }, build: []string{"db:::1"}, helper: []string{"db:::1"}, service: []string{"db:::1"}, wrong: map[string]string{"[db]": "must be NAME:ADDRESS"}},
	"network_mode":  {valid: "shared", look: func(p Parts) any { return string(p.Host.NetworkMode) }, build: "shared", helper: "shared", service: "shared"},
	"mac_address":   {valid: "92:d0:c6:0a:29:33", look: func(p Parts) any { return p.Endpoint.MacAddress.String() }, build: "92:d0:c6:0a:29:33", wrong: map[string]string{"mac": "must be like"}},
	"links":         {valid: "['db:db']\nnetwork_mode: bridge", look: func(p Parts) any { return p.Host.Links }, build: []string{"db:db"}, wrong: map[string]string{"['db:db']": "set network_mode to bridge", "[db]\nnetwork_mode: bridge": "must be CONTAINER:ALIAS"}},
	"enable_ipv6":   {valid: "true"},
	"network_mtu":   {valid: "1400", wrong: map[string]string{"-1": "must be 0 or more"}},
	"volumes":       {valid: "[/cache, '/a:/b:ro', 'x:/y']", wrong: map[string]string{"[cache]": "must be /PATH", "[/]": "must be /PATH", "['a:/b:best']": "must be /PATH", "['a:b:c:d:e']": "must be /PATH"}},
	"volumes_from":  {valid: "['data:ro']", look: func(p Parts) any { return p.Host.VolumesFrom }, build: []string{"data:ro"}, helper: []string{"data:ro"}, wrong: map[string]string{"['data:best']": "CONTAINER:ro"}},
	"volume_driver": {valid: "nfs", look: func(p Parts) any { return p.Host.VolumeDriver }, build: "nfs", helper: "nfs"},
	"tmpfs":         {valid: "{/tmp: rw}", look: func(p Parts) any { return p.Host.Tmpfs }, build: map[string]string{"/tmp": "rw"}, wrong: map[string]string{"{tmp: rw}": "must be an absolute path"}},

	"builds_dir":        {valid: "/srv/builds", wrong: map[string]string{"builds": "must be an absolute path", "/": "must be an absolute path", "/a/": "must be an absolute path"}},
	"volume_driver_ops": {valid: "{type: nfs}"},
	"volume_keep":       {valid: "true"},
	"cache_dir":         {valid: "/srv/cache"},
	"disable_cache":     {valid: "true"},
	"container_labels":  {valid: "{team: a}", look: func(p Parts) any { return p.Config.Labels["team"] }, build: "a", helper: "a", service: "a", wrong: map[string]string{"{' ': a}": "must be a name", "{ci.switchyard.agent: a}": "does not begin with ci.switchyard."}},

	"device_cgroup_rules":          {valid: "['c 1:3 rwm']", look: func(p Parts) any { return p.Host.DeviceCgroupRules }, build: []string{"c 1:3 rwm"}, wrong: map[string]string{"[c]": "must be like"}},
	"disable_entrypoint_overwrite": {valid: "true"},
	"privileged":                   {valid: "true", look: func(p Parts) any { return p.Host.Privileged }, build: true, helper: false, service: true},
	"services_privileged":          {valid: "true", look: func(p Parts) any { return p.Host.Privileged }, build: false, helper: false, service: true},
	"allowed_images":               {valid: "['**']", wrong: map[string]string{"['[']": `allowed_images: "[" is no pattern`, "['']": "is no pattern"}},
	"allowed_services":             {valid: "['**']", wrong: map[string]string{"['{']": "is no pattern"}},
	"allowed_users":                {valid: "[root]", wrong: map[string]string{"['']": "the name or the number of a user"}},
	"pull_policy":                  {valid: "if-not-present", wrong: map[string]string{"sometimes": `unsupported pull_policy config: "sometimes"`}},
	"allowed_pull_policies":        {valid: "[never]", wrong: map[string]string{"[seldom]": `unsupported allowed_pull_policies config: "seldom"`}},
	"allowed_privileged_images":    {valid: "[x]", wrong: map[string]string{"['[']": "is no pattern"}},
	"allowed_privileged_services":  {valid: "[x]", wrong: map[string]string{"['[']": "is no pattern"}},

	"services":                     {valid: "[{name: redis}]", wrong: map[string]string{"[{alias: x}]": "services[0].name", "[{name: x, environment: [y]}]": "must be KEY=value"}},
	"services_limit":               {valid: "-1", wrong: map[string]string{"-2": "must be 0 or more, or -1"}},
	"wait_for_services_timeout":    {valid: "-1"},
	"services_security_opt":        {valid: "[label=disable]", look: func(p Parts) any { return p.Host.SecurityOpt }, service: []string{"label=disable"}, wrong: map[string]string{"[x]": "NAME=VALUE"}},
	"services_tmpfs":               {valid: "{/tmp: rw}", look: func(p Parts) any { return p.Host.Tmpfs }, service: map[string]string{"/tmp": "rw"}, wrong: map[string]string{"{tmp: rw}": "must be an absolute path"}},
	"services_devices":             {valid: "{'redis:*': [/dev/fuse], 'other': [/dev/kvm]}", look: func(p Parts) any { return p.Host.Devices }, service: []container.DeviceMapping{{PathOnHost: "/dev/fuse", PathInContainer: "/dev/fuse", CgroupPermissions: "rwm"}}, wrong: map[string]string{"{'[': [/dev/fuse]}": "is no pattern", "{a: [fuse]}": "must be /dev/NAME"}},
	"service_gpus":                 {valid: "2", look: func(p Parts) any { return len(p.Host.DeviceRequests) }, build: 0, helper: 0, service: 1, wrong: map[string]string{"some": "invalid count"}},
	"service_memory":               {valid: "64m", look: func(p Parts) any { return p.Host.Memory }, build: int64(0), helper: int64(0), service: int64(64 << 20), wrong: map[string]string{"x": `service_memory: "x" is no size`}},
	"service_memory_swap":          {valid: "128m\nservice_memory: 64m", look: func(p Parts) any { return p.Host.MemorySwap }, build: int64(0), helper: int64(0), service: int64(128 << 20), wrong: map[string]string{"64m": "set service_memory, too"}},
	"service_memory_reservation":   {valid: "64m", look: func(p Parts) any { return p.Host.MemoryReservation }, build: int64(0), helper: int64(0), service: int64(64 << 20), wrong: map[string]string{"x": "is no size"}},
	"service_cgroup_parent":        {valid: "svc", look: func(p Parts) any { return p.Host.CgroupParent }, service: "svc"},
	"service_cpuset_cpus":          {valid: "1", look: func(p Parts) any { return p.Host.CpusetCpus }, service: "1", wrong: map[string]string{"x": "must be numbers and ranges"}},
	"service_cpus":                 {valid: "1/2", look: func(p Parts) any { return p.Host.NanoCPUs }, build: int64(0), helper: int64(0), service: int64(5e8), wrong: map[string]string{"x": "is no number of CPUs"}},
	"service_cpu_shares":           {valid: "2", look: func(p Parts) any { return p.Host.CPUShares }, build: int64(0), helper: int64(0), service: int64(2), wrong: map[string]string{"-2": "must be 0 or more"}},
	"service_slot_cgroup_template": {valid: "''", wrong: map[string]string{"slot-${slot}": "use service_cgroup_parent"}},
	"helper_image":                 {valid: "h@sha256:" + digits, wrong: map[string]string{"h:1": `helper_image: "h:1" must name an image that cannot change`}},
	"helper_image_file":            {valid: "/h.tar", wrong: map[string]string{"/h.tar\nhelper_image: sha256:" + digits: "give one of the two"}},
	"helper_image_flavor":          {valid: "''", wrong: map[string]string{"ubuntu": "as there is one helper image"}},
}

var digits = strings.Repeat("0123456789abcdef", 4)

func deref[T any](p *T) T {
	if p == nil {
		var zero T
		return zero
	}
	return *p
}

func TestEveryKeyWorksOrIsRefused(t *testing.T) {
	for _, key := range Keys() {
		t.Run(key, func(t *testing.T) {
			row, ok := table[key]
			require.True(t, ok, "the table has no such key")
			build, helper, service := parts(t, key+": "+row.valid)
			if row.look != nil {
				for _, one := range []struct {
					kind string
					want any
					got  Parts
				}{{"build", row.build, build}, {"helper", row.helper, helper}, {"service", row.service, service}} {
					if one.want == nil {
						require.Empty(t, row.look(one.got), one.kind)
					} else {
						require.Equal(t, one.want, row.look(one.got), one.kind)
					}
				}
			}
			for value, want := range row.wrong {
				err := parse(t, key+": "+value).Check()
				require.ErrorContains(t, err, want)
				require.ErrorContains(t, err, key)
			}
		})
	}
	require.Len(t, table, len(Keys()))
}

func TestAllMistakesAreSaid(t *testing.T) {
	err := parse(t, "memory: x\nservices: [{}]\nisolation: process\npull_policy: x\n").Check()
	require.Len(t, strings.Split(err.Error(), "\n"), 4)
	var keys []string
	for _, one := range err.(interface{ Unwrap() []error }).Unwrap() {
		var typed *KeyError
		require.ErrorAs(t, one, &typed)
		keys = append(keys, typed.Key)
	}
	require.ElementsMatch(t, []string{"memory", "services", "isolation", "pull_policy"}, keys)
}

func TestKeysOfServicesAreChecked(t *testing.T) {
	var c Config
	err := yaml.Unmarshal([]byte("services:\n- name: redis\n  aliases: x\n"), &c)
	require.EqualError(t, err, `line 3: unknown key "aliases"; known here are alias, command, entrypoint, environment, name`)
	require.Equal(t, PullPolicies{PullNever, PullAlways}, parse(t, "pull_policy: [never, always]").PullPolicy)
	require.Empty(t, parse(t, "pull_policy:").PullPolicy)
	services := containers(t, "services:\n- {name: redis, alias: r, entrypoint: [e], command: [c], environment: [A=b=c]}\n").Services()
	require.Equal(t, []runnerapi.Image{{
		Name: "redis", Alias: "r", Entrypoint: []string{"e"}, Command: []string{"c"}, Variables: []runnerapi.Variable{{Key: "A", Value: "b=c"}},
	}}, services)
}

func TestOldEngines(t *testing.T) {
	c := parse(t, "mac_address: 92:d0:c6:0a:29:33")
	require.ErrorContains(t, c.CheckEngine("1.41"), "needs Docker Engine 25")
	require.NoError(t, c.CheckEngine("1.44"))
	require.NoError(t, c.CheckEngine("2.0"))
	require.NoError(t, parse(t, "{}").CheckEngine("1.41"))
}

func TestServicesWait(t *testing.T) {
	for text, want := range map[string]time.Duration{"{}": 30 * time.Second, "wait_for_services_timeout: 7": 7 * time.Second} {
		limit, ok := containers(t, text).WaitForServices()
		require.True(t, ok)
		require.Equal(t, want, limit)
	}
	_, ok := containers(t, "wait_for_services_timeout: -1").WaitForServices()
	require.False(t, ok)
}

func TestLinksGoWithTheNetwork(t *testing.T) {
	build, _, _ := parts(t, "links: ['db:db']\nnetwork_mode: shared")
	require.Empty(t, build.Host.Links)
	require.Equal(t, []string{"db:db"}, build.Endpoint.Links)
}

func TestVolumes(t *testing.T) {
	require.Equal(t, []Volume{
		{Target: "/cache"}, {Source: "/a", Target: "/b", Mode: "ro"}, {Source: "v", Target: "$CI_PROJECT_DIR", Mode: "rw,z,rshared"}, {Source: "a", Target: "/b", Mode: "ro,slave"},
	}, containers(t, "volumes: [/cache, '/a:/b:ro', 'v:$CI_PROJECT_DIR:rw,z,rshared', 'a:/b:ro:slave']").Volumes())
}

func TestEntrypointAndLabels(t *testing.T) {
	image := runnerapi.Image{Name: "x", Entrypoint: []string{"e"}, Command: []string{"c"}}
	expand := strings.NewReplacer("$TEAM", "a").Replace
	c := containers(t, "container_labels: {team: $TEAM}")
	build, err := c.Build(image, expand)
	require.NoError(t, err)
	require.Equal(t, []string{"e"}, build.Config.Entrypoint)
	require.Equal(t, map[string]string{"team": "a"}, build.Config.Labels)
	service, err := c.Service(image, expand)
	require.NoError(t, err)
	require.Equal(t, []string{"e"}, service.Config.Entrypoint)
	require.Equal(t, []string{"c"}, service.Config.Cmd)

	build, err = containers(t, "disable_entrypoint_overwrite: true").Build(image, same)
	require.NoError(t, err)
	require.Empty(t, build.Config.Entrypoint)
	require.Equal(t, []string{"Entrypoint override disabled"}, build.Notices)
}

func TestPrivilegedOnlyBehindTheLists(t *testing.T) {
	const text = "privileged: true\nallowed_privileged_images: ['docker:*', 'registry.example.com/**']\nallowed_privileged_services: ['docker:*-dind']\n"
	for image, want := range map[string]bool{"docker:27": true, "alpine": false, "registry.example.com/a/b:1": true, "x/docker:1": false} {
		build, err := containers(t, text).Build(runnerapi.Image{Name: image}, same)
		require.NoError(t, err)
		require.Equal(t, want, build.Host.Privileged, image)
		build, err = containers(t, strings.Replace(text, "true", "false", 1)).Build(runnerapi.Image{Name: image}, same)
		require.NoError(t, err)
		require.False(t, build.Host.Privileged)
	}
	for image, want := range map[string]bool{"docker:27-dind": true, "docker:27": false} {
		service, err := containers(t, text).Service(runnerapi.Image{Name: image}, same)
		require.NoError(t, err)
		require.Equal(t, want, service.Host.Privileged, image)
		service, err = containers(t, text+"services_privileged: false\n").Service(runnerapi.Image{Name: image}, same)
		require.NoError(t, err)
		require.False(t, service.Host.Privileged)
	}
}

func TestAllowedImages(t *testing.T) {
	const text = "image: default:1\nallowed_images: ['ruby:*', 'my.registry/**/*:*']\nallowed_services: ['redis:*']\nservices: [{name: 'own:1'}]\n"
	c := containers(t, text)
	expand := strings.NewReplacer("$V", "3").Replace
	var trace strings.Builder
	for name, want := range map[string]string{"ruby:$V": "ruby:3", "my.registry/a/b:1": "my.registry/a/b:1", "": "default:1", "default:1": "default:1"} {
		image, err := c.BuildImage(runnerapi.Image{Name: name}, expand, &trace)
		require.NoError(t, err)
		require.Equal(t, want, image)
	}
	require.Empty(t, trace.String())
	_, err := c.BuildImage(runnerapi.Image{Name: "python:$V"}, expand, &trace)
	require.EqualError(t, err, "disallowed image")
	require.Equal(t, "\nERROR: The \"python:3\" image is not present on list of allowed images:\n- ruby:*\n- my.registry/**/*:*\n\n"+
		"Please check runner's allowed_images configuration\n", trace.String())
	trace.Reset()
	_, err = c.ServiceImage(runnerapi.Image{Name: "mysql:8"}, expand, &trace)
	require.EqualError(t, err, "disallowed image")
	require.Contains(t, trace.String(), "list of allowed services:\n- redis:*\n")
	for _, name := range []string{"redis:7", "own:1"} {
		_, err = c.ServiceImage(runnerapi.Image{Name: name}, expand, &trace)
		require.NoError(t, err)
	}
	_, err = containers(t, "{}").BuildImage(runnerapi.Image{}, same, &trace)
	require.ErrorContains(t, err, "no Docker image specified to run the build in")
	_, err = containers(t, "{}").BuildImage(runnerapi.Image{Name: "any"}, same, &trace)
	require.NoError(t, err)

	limited := containers(t, "services_limit: 1")
	require.NoError(t, limited.CheckServices(1))
	require.EqualError(t, limited.CheckServices(2), "too many services requested: 2, only 1 allowed")
	require.NoError(t, c.CheckServices(99))
}

func TestUsers(t *testing.T) {
	user := func(text, job string) (string, error) {
		options, err := json.Marshal(map[string]string{"user": job})
		require.NoError(t, err)
		build, err := containers(t, text).Build(runnerapi.Image{
			Name: "x", ExecutorOpts: map[string]json.RawMessage{"docker": options},
		}, same)
		if err != nil {
			return "", err
		}
		return build.Config.User, nil
	}
	for _, row := range []struct{ text, job, want, wrong string }{
		{"{}", "www", "www", ""},
		{"{}", "", "", ""},
		{"user: ci", "www", "ci", ""},
		{"allowed_users: [www]", "www", "www", ""},
		{"allowed_users: [www]", "", "", ""},
		{"allowed_users: [www]", "root", "", `user "root" is not an allowed user: [www]`},
		{"allowed_users: [www]\nuser: root", "www", "", `user "root" is not an allowed user: [www]`},
	} {
		got, err := user(row.text, row.job)
		if row.wrong != "" {
			require.EqualError(t, err, row.wrong)
			continue
		}
		require.NoError(t, err)
		require.Equal(t, row.want, got)
	}
}

func TestImageOptions(t *testing.T) {
	image := func(text string) runnerapi.Image {
		var i runnerapi.Image
		require.NoError(t, json.Unmarshal([]byte(`{"name":"x","executor_opts":`+text+`}`), &i))
		return i
	}
	for text, want := range map[string]Options{
		`{}`: {}, `{"docker":{}}`: {},
		`{"docker":{"platform":"arm64","user":"me"},"kubernetes":{"user":1}}`: {Platform: "arm64", User: "me"},
		`{"docker":{"user":1000}}`: {User: "1000"},
	} {
		o, err := ImageOptions(image(text))
		require.NoError(t, err, text)
		require.Equal(t, want, o)
	}
	for text, want := range map[string]string{
		`{"docker":{"b":1,"a":2}}`:      `Unsupported "image" options [a b] for "docker executor"; supported options are [platform user]`,
		`{"kubernetes":{"platform":1}}`: `Unsupported "image" options [platform] for "kubernetes executor"; supported options are [user]`,
		`{"podman":{}}`:                 `Unsupported "image" options [podman] for "executor_opts"; supported options are [docker kubernetes]`,
		`{"docker":{"user":[]}}`:        `docker:user of the image "x": json: cannot unmarshal array`,
		`{"docker":{"platform":1}}`:     `docker:platform of the image "x": json: cannot unmarshal number`,
		`{"docker":7}`:                  `executor_opts:docker of the image "x": json: cannot unmarshal number`,
	} {
		_, err := ImageOptions(image(text))
		require.ErrorContains(t, err, want)
		var typed *executors.Error
		require.ErrorAs(t, err, &typed)
		require.Equal(t, runnerapi.ReasonRunnerSystem, typed.Reason)
	}
}
