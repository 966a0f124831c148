// Package config has the docker executor's settings: the keys of gitlab-runner's `[runners.docker]` by the same names,
// what they may be, which images they allow, and what they make of the configuration of containers.
//
// Every key works or is refused with a message; none is ignored.
package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Config is the section as it is written. The zero value is a valid one.
type Config struct {
	// Host is the engine's address: unix://, tcp:// or ssh://; empty for DOCKER_HOST or the default socket.
	Host string `yaml:"host"`
	// TLSCertPath is a folder with ca.pem, cert.pem and key.pem; TLSVerify makes the client check the engine's certificate.
	TLSCertPath string `yaml:"tls_cert_path"`
	TLSVerify   bool   `yaml:"tls_verify"`

	// Image is for jobs that name none.
	Image string `yaml:"image"`
	// HelperImage names the helper image so that it cannot change; HelperImageFile is the archive of it if it is not
	// named, by default the one beside the agent. The latter is Switchyard's own key.
	HelperImage       string `yaml:"helper_image"`
	HelperImageFile   string `yaml:"helper_image_file"`
	HelperImageFlavor string `yaml:"helper_image_flavor"`

	AllowedImages             []string     `yaml:"allowed_images"`
	AllowedServices           []string     `yaml:"allowed_services"`
	AllowedPrivilegedImages   []string     `yaml:"allowed_privileged_images"`
	AllowedPrivilegedServices []string     `yaml:"allowed_privileged_services"`
	AllowedPullPolicies       []PullPolicy `yaml:"allowed_pull_policies"`
	AllowedUsers              []string     `yaml:"allowed_users"`
	PullPolicy                PullPolicies `yaml:"pull_policy"`
	DisableEntrypoint         bool         `yaml:"disable_entrypoint_overwrite"`

	Hostname          string            `yaml:"hostname"`
	User              string            `yaml:"user"`
	GroupAdd          []string          `yaml:"group_add"`
	Privileged        bool              `yaml:"privileged"`
	CapAdd            []string          `yaml:"cap_add"`
	CapDrop           []string          `yaml:"cap_drop"`
	SecurityOpt       []string          `yaml:"security_opt"`
	UsernsMode        string            `yaml:"userns_mode"`
	PidMode           string            `yaml:"pid_mode"`
	IpcMode           string            `yaml:"ipcmode"`
	Runtime           string            `yaml:"runtime"`
	Isolation         string            `yaml:"isolation"`
	Devices           []string          `yaml:"devices"`
	DeviceCgroupRules []string          `yaml:"device_cgroup_rules"`
	GPUs              string            `yaml:"gpus"`
	Sysctls           map[string]string `yaml:"sysctls"`
	Ulimit            map[string]string `yaml:"ulimit"`
	ContainerLabels   map[string]string `yaml:"container_labels"`
	LogOptions        map[string]string `yaml:"log_options"`

	// Sizes are a number with an optional unit b, k, m or g.
	Memory            string `yaml:"memory"`
	MemorySwap        string `yaml:"memory_swap"` // of memory and swap together; -1 is no limit
	MemoryReservation string `yaml:"memory_reservation"`
	CgroupParent      string `yaml:"cgroup_parent"`
	CpusetCPUs        string `yaml:"cpuset_cpus"`
	CpusetMems        string `yaml:"cpuset_mems"`
	CPUs              string `yaml:"cpus"`
	CPUShares         int64  `yaml:"cpu_shares"`
	// PidsLimit bounds the processes and threads of each container; 0 is no limit. It is Switchyard's own key.
	PidsLimit      int64 `yaml:"pids_limit"`
	OomKillDisable bool  `yaml:"oom_kill_disable"`
	OomScoreAdjust int   `yaml:"oom_score_adjust"`
	ShmSize        int64 `yaml:"shm_size"` // bytes

	DNS         []string `yaml:"dns"`
	DNSSearch   []string `yaml:"dns_search"`
	ExtraHosts  []string `yaml:"extra_hosts"`
	NetworkMode string   `yaml:"network_mode"`
	MacAddress  string   `yaml:"mac_address"`
	Links       []string `yaml:"links"`
	EnableIPv6  bool     `yaml:"enable_ipv6"`
	NetworkMTU  int      `yaml:"network_mtu"`

	// BuildsDir is where builds are in the containers, by default /builds; of [[runners]] in gitlab-runner. CacheDir is a
	// folder of the engine's host that caches are in instead of volumes.
	BuildsDir       string            `yaml:"builds_dir"`
	Volumes         []string          `yaml:"volumes"`
	VolumesFrom     []string          `yaml:"volumes_from"`
	VolumeDriver    string            `yaml:"volume_driver"`
	VolumeDriverOps map[string]string `yaml:"volume_driver_ops"`
	VolumeKeep      bool              `yaml:"volume_keep"`
	CacheDir        string            `yaml:"cache_dir"`
	DisableCache    bool              `yaml:"disable_cache"`
	Tmpfs           map[string]string `yaml:"tmpfs"`

	Services []Service `yaml:"services"`
	// ServicesLimit bounds the services of a job; nil or -1 is no limit.
	ServicesLimit *int `yaml:"services_limit"`
	// WaitForServicesTimeout is in seconds; 0 is the default of 30, a negative one does not wait.
	WaitForServicesTimeout    int                 `yaml:"wait_for_services_timeout"`
	ServicesPrivileged        *bool               `yaml:"services_privileged"`
	ServicesSecurityOpt       []string            `yaml:"services_security_opt"`
	ServicesDevices           map[string][]string `yaml:"services_devices"` // by patterns of images
	ServicesTmpfs             map[string]string   `yaml:"services_tmpfs"`
	ServiceGPUs               string              `yaml:"service_gpus"`
	ServiceMemory             string              `yaml:"service_memory"`
	ServiceMemorySwap         string              `yaml:"service_memory_swap"`
	ServiceMemoryReservation  string              `yaml:"service_memory_reservation"`
	ServiceCgroupParent       string              `yaml:"service_cgroup_parent"`
	ServiceSlotCgroupTemplate string              `yaml:"service_slot_cgroup_template"`
	ServiceCpusetCPUs         string              `yaml:"service_cpuset_cpus"`
	ServiceCPUs               string              `yaml:"service_cpus"`
	ServiceCPUShares          int64               `yaml:"service_cpu_shares"`
}

// Service is a service that every job gets.
type Service struct {
	Name        string   `yaml:"name"`
	Alias       string   `yaml:"alias"` // names separated by commas or spaces
	Entrypoint  []string `yaml:"entrypoint"`
	Command     []string `yaml:"command"`
	Environment []string `yaml:"environment"` // KEY=value
}

// UnmarshalYAML refuses keys that are not known.
func (s *Service) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.MappingNode {
		known := keys(reflect.TypeFor[Service]())
		for i := 0; i < len(node.Content); i += 2 {
			if key := node.Content[i]; !slices.Contains(known, key.Value) {
				return fmt.Errorf("line %d: unknown key %q; known here are %s", key.Line, key.Value, strings.Join(known, ", "))
			}
		}
	}
	type plain Service
	return node.Decode((*plain)(s))
}

// PullPolicy says whether an image is pulled.
type PullPolicy string

// The pull policies, by GitLab's names.
const (
	PullAlways       PullPolicy = "always"
	PullIfNotPresent PullPolicy = "if-not-present"
	PullNever        PullPolicy = "never"
)

var pullPolicies = []PullPolicy{PullAlways, PullIfNotPresent, PullNever}

// PullPolicies are tried one after the other. In YAML they are a string or a list.
type PullPolicies []PullPolicy

// UnmarshalYAML takes one policy or a list.
func (p *PullPolicies) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.ScalarNode {
		var one PullPolicy
		if err := node.Decode(&one); err != nil {
			return err
		}
		*p = nil
		if one != "" {
			*p = PullPolicies{one}
		}
		return nil
	}
	return node.Decode((*[]PullPolicy)(p))
}

// Keys are the section's keys, sorted.
func Keys() []string { return keys(reflect.TypeFor[Config]()) }

func keys(t reflect.Type) []string {
	var names []string
	for field := range t.Fields() {
		names = append(names, field.Tag.Get("yaml"))
	}
	slices.Sort(names)
	return names
}
