package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
	"github.com/distribution/reference"
)

// Check returns what is wrong with the section: a *KeyError for every such key, joined, that names it, its value and what it
// may be. It asks no engine: what depends on one is in CheckEngine and in the engine's own answers.
func (c *Config) Check() error {
	_, err := New(c)
	return err
}

// KeyError says what is wrong with the value of a key.
type KeyError struct {
	Key  string
	text string
}

func (e *KeyError) Error() string { return e.text }

// OwnLabels is the beginning of the labels by which the executor finds what is its own.
const OwnLabels = "ci.switchyard."

// checker collects what is wrong.
type checker struct{ errs []error }

func (k *checker) wrong(key string, value any, why string) {
	k.say(key, fmt.Sprintf("%s: %#v %s", key, value, why))
}

func (k *checker) err(key, value string, err error) {
	if err != nil {
		k.say(key, fmt.Sprintf("%s: %q: %v", key, value, err))
	}
}

func (k *checker) say(key, text string) {
	key, _, _ = strings.Cut(key, "[")
	k.errs = append(k.errs, &KeyError{key, text})
}

// match wants value to be empty or of the form.
func (k *checker) match(key, value string, form *regexp.Regexp, want string) {
	if value != "" && !form.MatchString(value) {
		k.wrong(key, value, want)
	}
}

func (k *checker) each(key string, values []string, form *regexp.Regexp, want string) {
	for _, value := range values {
		if !form.MatchString(value) {
			k.wrong(key, value, want)
		}
	}
}

func (k *checker) patterns(key string, patterns []string) {
	for _, pattern := range patterns {
		if pattern == "" || !doublestar.ValidatePattern(pattern) {
			k.wrong(key, pattern, "is no pattern: use a name with *, **, ?, [a-z] or {a,b}, for example registry.example.com/group/**:*")
		}
	}
}

func (k *checker) atLeast(key string, value, least int64, zero string) {
	if value < least {
		k.wrong(key, value, fmt.Sprintf("must be %d or more; 0 is %s", least, zero))
	}
}

var (
	hostnameForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,61}[A-Za-z0-9])?$`)
	cpusetForm   = regexp.MustCompile(`^\d+(-\d+)?(,\d+(-\d+)?)*$`)
	capForm      = regexp.MustCompile(`^(?i)(all|(cap_)?[a-z_]+)$`)
	ruleForm     = regexp.MustCompile(`^[abc] (\d+|\*):(\d+|\*) [rwm]{1,3}$`)
	ipcForm      = regexp.MustCompile(`^(none|private|shareable|host|container:.+)$`)
	pidForm      = regexp.MustCompile(`^(host|container:.+)$`)
	usernsForm   = regexp.MustCompile(`^host$`)
	fromForm     = regexp.MustCompile(`^[^:]+(:(ro|rw))?$`)
	linkForm     = regexp.MustCompile(`^[^:]+:[^:]+$`)
	sysctlForm   = regexp.MustCompile(`^[a-z0-9_]+([./][A-Za-z0-9_-]+)+$`)
	securityForm = regexp.MustCompile(`^(no-new-privileges|[a-z-]+[=:].+)$`)
	digestForm   = regexp.MustCompile(`^sha256:[0-9a-f]{64}$`)
	nonEmpty     = regexp.MustCompile(`.`)
)

// logOptions are those of the json-file driver, which the executor reads services' logs from.
var logOptions = []string{"compress", "env", "env-regex", "labels", "labels-regex", "max-file", "max-size", "tag"}

// plain checks the keys that go to the engine as they are.
func (k *checker) plain(c *Config) {
	k.host(c)
	if c.BuildsDir != "" && (!path.IsAbs(c.BuildsDir) || path.Clean(c.BuildsDir) != c.BuildsDir || c.BuildsDir == "/") {
		k.wrong("builds_dir", c.BuildsDir, "must be an absolute path in the containers, and not /")
	}
	k.match("hostname", c.Hostname, hostnameForm, "is no name of a host: use letters, digits, - and .")
	k.match("cpuset_cpus", c.CpusetCPUs, cpusetForm, "must be numbers and ranges, for example 0-2,4")
	k.match("cpuset_mems", c.CpusetMems, cpusetForm, "must be numbers and ranges, for example 0,1")
	k.match("service_cpuset_cpus", c.ServiceCpusetCPUs, cpusetForm, "must be numbers and ranges, for example 0-2,4")
	k.match("ipcmode", c.IpcMode, ipcForm, "must be none, private, shareable, host or container:NAME")
	k.match("pid_mode", c.PidMode, pidForm, "must be host or container:NAME")
	k.match("userns_mode", c.UsernsMode, usernsForm, "must be host, or be left out for the engine's own setting")
	k.each("cap_add", c.CapAdd, capForm, "is no capability: use a name like NET_ADMIN, or ALL")
	k.each("cap_drop", c.CapDrop, capForm, "is no capability: use a name like NET_RAW, or ALL")
	k.each("group_add", c.GroupAdd, nonEmpty, "must be the name or the number of a group")
	k.each("allowed_users", c.AllowedUsers, nonEmpty, "must be the name or the number of a user")
	k.each("device_cgroup_rules", c.DeviceCgroupRules, ruleForm, "must be like \"c 1:3 rwm\": a, b or c, MAJOR:MINOR, and of rwm")
	k.each("volumes_from", c.VolumesFrom, fromForm, "must be CONTAINER, CONTAINER:ro or CONTAINER:rw")
	k.security("security_opt", c.SecurityOpt)
	k.security("services_security_opt", c.ServicesSecurityOpt)
	for _, key := range slices.Sorted(maps.Keys(c.Sysctls)) {
		k.match("sysctls", key, sysctlForm, "is no name of a setting: use one like net.core.somaxconn")
	}
	for _, key := range slices.Sorted(maps.Keys(c.ContainerLabels)) {
		if strings.TrimSpace(key) == "" || strings.HasPrefix(key, OwnLabels) {
			k.wrong("container_labels", key, "must be a name that does not begin with "+OwnLabels)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(c.LogOptions)) {
		if !slices.Contains(logOptions, key) {
			k.wrong("log_options", key, "is no option of the json-file driver: known are "+strings.Join(logOptions, ", "))
		}
	}
	k.tmpfs("tmpfs", c.Tmpfs)
	k.tmpfs("services_tmpfs", c.ServicesTmpfs)
	k.atLeast("cpu_shares", c.CPUShares, 0, "the engine's default")
	k.atLeast("service_cpu_shares", c.ServiceCPUShares, 0, "the engine's default")
	k.atLeast("pids_limit", c.PidsLimit, 0, "no limit")
	k.atLeast("shm_size", c.ShmSize, 0, "the engine's default")
	k.atLeast("network_mtu", int64(c.NetworkMTU), 0, "the engine's default")
	if c.OomScoreAdjust < -1000 || c.OomScoreAdjust > 1000 {
		k.wrong("oom_score_adjust", c.OomScoreAdjust, "must be between -1000 and 1000")
	}
	if c.ServicesLimit != nil && *c.ServicesLimit < -1 {
		k.wrong("services_limit", *c.ServicesLimit, "must be 0 or more, or -1 for no limit")
	}
	k.links(c)
	for _, entry := range c.ExtraHosts {
		k.extraHost(entry)
	}
}

// refused are keys that cannot work here.
func (k *checker) refused(c *Config) {
	if c.Isolation != "" && c.Isolation != "default" {
		k.wrong("isolation", c.Isolation, "is for Windows containers, which are not supported: leave it out")
	}
	if c.HelperImageFlavor != "" {
		k.wrong("helper_image_flavor", c.HelperImageFlavor, "is not supported, as there is one helper image: leave it out, or name another by helper_image")
	}
	if c.ServiceSlotCgroupTemplate != "" {
		k.wrong("service_slot_cgroup_template", c.ServiceSlotCgroupTemplate, "needs an autoscaler's slots, which are not supported: use service_cgroup_parent")
	}
}

func (k *checker) host(c *Config) {
	if c.Host != "" {
		u, err := url.Parse(c.Host)
		if err != nil || !slices.Contains([]string{"unix", "tcp", "http", "https", "ssh"}, u.Scheme) || u.Host+u.Path == "" {
			k.wrong("host", c.Host, "must be unix:///PATH, tcp://HOST:PORT or ssh://USER@HOST")
		}
	}
	if c.TLSVerify && c.TLSCertPath == "" {
		k.wrong("tls_verify", c.TLSVerify, "needs tls_cert_path, a folder with ca.pem, cert.pem and key.pem")
	}
}

func (k *checker) security(key string, options []string) {
	for _, option := range options {
		if !securityForm.MatchString(option) {
			k.wrong(key, option, "must be no-new-privileges or NAME=VALUE, for example seccomp=unconfined")
			continue
		}
		if profile, ok := strings.CutPrefix(option, "seccomp"); ok && len(profile) > 1 {
			if profile = profile[1:]; profile != "unconfined" && profile != "builtin" && !json.Valid([]byte(profile)) {
				k.wrong(key, option, "must be seccomp=unconfined, seccomp=builtin or seccomp= and the profile's JSON itself, not its path")
			}
		}
	}
}

func (k *checker) tmpfs(key string, mounts map[string]string) {
	for _, target := range slices.Sorted(maps.Keys(mounts)) {
		if !path.IsAbs(target) {
			k.wrong(key, target, "must be an absolute path in the container, with mount options as its value, for example /tmp: rw,noexec")
		}
	}
}

// links work where the other container is: on the default bridge or a network that is there before the job.
func (k *checker) links(c *Config) {
	k.each("links", c.Links, linkForm, "must be CONTAINER:ALIAS")
	if len(c.Links) > 0 && slices.Contains([]string{"", "host", "none"}, c.NetworkMode) {
		k.wrong("links", strings.Join(c.Links, ", "), "needs the other container's network: set network_mode to bridge or to its name, as a job has a network of its own otherwise")
	}
}

func (k *checker) extraHost(entry string) {
	name, address, ok := strings.Cut(entry, ":")
	if address = strings.Trim(address, "[]"); !ok || name == "" || address != "host-gateway" && net.ParseIP(address) == nil {
		k.wrong("extra_hosts", entry, "must be NAME:ADDRESS, for example db:192.0.2.7, or NAME:host-gateway")
	}
}

// images checks the keys about images. Names with variables are known with the job only.
func (k *checker) images(c *Config) {
	k.image("image", c.Image)
	if c.HelperImage != "" && !pinned(c.HelperImage) {
		k.wrong("helper_image", c.HelperImage, "must name an image that cannot change: NAME@sha256:…, or sha256:… of one that the engine has")
	}
	if c.HelperImage != "" && c.HelperImageFile != "" {
		k.wrong("helper_image_file", c.HelperImageFile, "is not used when helper_image is set: give one of the two")
	}
	k.patterns("allowed_images", c.AllowedImages)
	k.patterns("allowed_services", c.AllowedServices)
	k.patterns("allowed_privileged_images", c.AllowedPrivilegedImages)
	k.patterns("allowed_privileged_services", c.AllowedPrivilegedServices)
	k.patterns("services_devices", slices.Sorted(maps.Keys(c.ServicesDevices)))
	for _, policy := range c.AllowedPullPolicies {
		if !slices.Contains(pullPolicies, policy) {
			k.say("allowed_pull_policies", fmt.Sprintf("unsupported allowed_pull_policies config: %q; use always, if-not-present or never", policy))
		}
	}
	for _, policy := range c.PullPolicy {
		if !slices.Contains(pullPolicies, policy) {
			k.say("pull_policy", fmt.Sprintf("unsupported pull_policy config: %q; use always, if-not-present or never", policy))
		}
	}
	for i, service := range c.Services {
		key := fmt.Sprintf("services[%d].", i)
		if service.Name == "" {
			k.wrong(key+"name", service.Name, "must name an image")
		}
		k.image(key+"name", service.Name)
		for _, variable := range service.Environment {
			if name, _, ok := strings.Cut(variable, "="); !ok || name == "" {
				k.wrong(key+"environment", variable, "must be KEY=value")
			}
		}
	}
}

func (k *checker) image(key, name string) {
	if name == "" || strings.Contains(name, "$") || digestForm.MatchString(name) {
		return
	}
	if _, err := reference.ParseDockerRef(name); err != nil {
		k.err(key, name, fmt.Errorf("%w: use NAME, NAME:TAG or NAME@sha256:…", err))
	}
}

// pinned says whether a name is that of exactly one image.
func pinned(name string) bool {
	if digestForm.MatchString(name) {
		return true
	}
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return false
	}
	_, ok := named.(reference.Digested)
	return ok
}

// CheckEngine returns what of the section the engine with this version of the API cannot do.
func (c *Config) CheckEngine(apiVersion string) error {
	if c.MacAddress != "" && olderThan(apiVersion, 1, 44) {
		return errors.New("mac_address: \"" + c.MacAddress + "\" needs Docker Engine 25 (API 1.44) or later; the engine has API " + apiVersion)
	}
	return nil
}

func olderThan(version string, major, minor int) bool {
	var x, y int
	if _, err := fmt.Sscanf(version, "%d.%d", &x, &y); err != nil {
		return false
	}
	return x < major || x == major && y < minor
}
