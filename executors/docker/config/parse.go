package config

import (
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/docker/cli/opts"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
)

// leastMemory is what an engine accepts as a limit.
const leastMemory = 6 << 20

// limits are memory and CPUs of one kind of container.
type limits struct {
	memory, swap, reservation, nanoCPUs int64
}

// limits parses three sizes and a number of CPUs; prefix is that of their keys.
func (k *checker) limits(prefix, memory, swap, reservation, cpus string) limits {
	l := limits{
		memory:      k.size(prefix+"memory", memory),
		reservation: k.size(prefix+"memory_reservation", reservation),
		nanoCPUs:    k.cpus(prefix+"cpus", cpus),
	}
	if swap == "-1" {
		l.swap = -1
	} else {
		l.swap = k.size(prefix+"memory_swap", swap)
	}
	switch {
	case l.swap != 0 && l.memory == 0:
		k.wrong(prefix+"memory_swap", swap, "is the limit of memory and swap together: set "+prefix+"memory, too")
	case l.swap > 0 && l.swap < l.memory:
		k.wrong(prefix+"memory_swap", swap, "is the limit of memory and swap together: it must be at least "+prefix+"memory, "+memory)
	case l.memory > 0 && l.reservation > l.memory:
		k.wrong(prefix+"memory_reservation", reservation, "must be at most "+prefix+"memory, "+memory)
	}
	return l
}

func (k *checker) size(key, text string) int64 {
	if text == "" {
		return 0
	}
	size, err := units.RAMInBytes(text)
	switch {
	case err != nil || size < 0:
		k.wrong(key, text, "is no size: use a number with k, m or g, for example 512m")
	case size < leastMemory:
		k.wrong(key, text, "is less than the 6m that a container needs")
	}
	return size
}

// cpus parses a decimal or a fraction, as gitlab-runner does.
func (k *checker) cpus(key, text string) int64 {
	if text == "" {
		return 0
	}
	number, ok := new(big.Rat).SetString(text)
	if ok {
		nano, _ := number.Mul(number, big.NewRat(1e9, 1)).Float64()
		if nano >= 1 && nano < 1e15 {
			return int64(nano)
		}
	}
	k.wrong(key, text, "is no number of CPUs: use one like 2, 1.5 or 3/4")
	return 0
}

func (k *checker) devices(key string, texts []string) (mappings []container.DeviceMapping) {
	for _, text := range texts {
		parts := strings.Split(text, ":")
		m := container.DeviceMapping{PathOnHost: parts[0], PathInContainer: parts[0], CgroupPermissions: "rwm"}
		if len(parts) > 1 {
			m.PathInContainer = parts[1]
		}
		if len(parts) > 2 {
			m.CgroupPermissions = parts[2]
		}
		if len(parts) > 3 || !path.IsAbs(m.PathOnHost) || !path.IsAbs(m.PathInContainer) || !devicePermissions.MatchString(m.CgroupPermissions) {
			k.wrong(key, text, "must be /dev/NAME, /dev/NAME:/PATH/IN/CONTAINER or the latter with :rwm, :r …")
			continue
		}
		mappings = append(mappings, m)
	}
	return mappings
}

var devicePermissions = regexp.MustCompile(`^[rwm]{1,3}$`)

func (k *checker) gpus(key, text string) []container.DeviceRequest {
	if text == "" {
		return nil
	}
	var gpus opts.GpuOpts
	if err := gpus.Set(text); err != nil {
		k.err(key, text, fmt.Errorf("%w: use all, a number, or \"device=0,1\"", err))
		return nil
	}
	return gpus.Value()
}

func (k *checker) ulimits(limits map[string]string) (parsed []*container.Ulimit) {
	for _, name := range slices.Sorted(maps.Keys(limits)) {
		limit, err := units.ParseUlimit(name + "=" + limits[name])
		if err != nil {
			k.err("ulimit", name+": "+limits[name], fmt.Errorf("%w: use SOFT or SOFT:HARD, for example nofile: 1024:2048", err))
			continue
		}
		parsed = append(parsed, limit)
	}
	return parsed
}

func (k *checker) dns(texts []string) (servers []netip.Addr) {
	for _, text := range texts {
		address, err := netip.ParseAddr(text)
		if err != nil {
			k.wrong("dns", text, "is no IP address")
			continue
		}
		servers = append(servers, address)
	}
	return servers
}

func (k *checker) mac(text string) network.HardwareAddr {
	if text == "" {
		return nil
	}
	address, err := net.ParseMAC(text)
	if err != nil || len(address) != 6 {
		k.wrong("mac_address", text, "must be like 92:d0:c6:0a:29:33")
		return nil
	}
	return network.HardwareAddr(address)
}

// Volume is one of `volumes`.
type Volume struct {
	// Source is a path of the engine's host or the name of a volume; empty for a cache volume of the executor's own.
	Source string
	// Target is the absolute path in the container.
	Target string
	// Mode has the options, separated by commas, for example "ro" or "rw,z,rshared"; empty for the engine's default.
	Mode string
}

// Volumes are the parsed `volumes`. Their paths may have variables of the job.
func (c *Containers) Volumes() []Volume { return c.volumes }

var (
	errVolume   = errors.New("must be /PATH, SOURCE:/PATH or SOURCE:/PATH:MODE, with MODE of ro, rw, z, Z, nocopy and private, slave, shared …")
	volumeModes = []string{"ro", "rw", "z", "Z", "nocopy", "cached", "consistent", "delegated", "private", "rprivate", "rshared", "rslave", "shared", "slave"}
)

// ParseVolume parses one of `volumes`: /PATH, SOURCE:/PATH or SOURCE:/PATH:MODE.
func ParseVolume(text string) (Volume, error) {
	parts := strings.Split(text, ":")
	var v Volume
	switch len(parts) {
	case 1:
		v.Target = parts[0]
	case 2:
		v.Source, v.Target = parts[0], parts[1]
	case 3, 4: // gitlab-runner takes the propagation after another colon, too
		v.Source, v.Target, v.Mode = parts[0], parts[1], strings.Join(parts[2:], ",")
	default:
		return Volume{}, errVolume
	}
	variable := strings.HasPrefix(v.Target, "$")
	if !variable && !path.IsAbs(v.Target) || !variable && path.Clean(v.Target) == "/" || len(parts) > 1 && v.Source == "" {
		return Volume{}, errVolume
	}
	if len(parts) > 2 {
		for mode := range strings.SplitSeq(v.Mode, ",") {
			if !slices.Contains(volumeModes, mode) {
				return Volume{}, errVolume
			}
		}
	}
	return v, nil
}

func (k *checker) volumes(texts []string) (volumes []Volume) {
	for _, text := range texts {
		v, err := ParseVolume(text)
		k.err("volumes", text, err)
		if err == nil {
			volumes = append(volumes, v)
		}
	}
	return volumes
}
