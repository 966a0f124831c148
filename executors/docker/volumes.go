package docker

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/mount"

	"github.com/switchyard-ci/switchyard/executors/docker/config"
)

// volumes are what is mounted in all of a job's containers.
type volumes struct {
	binds     []string
	mounts    []mount.Mount
	temporary []string // names of those that go with the job
	open      []string // where the helper makes a volume writable for everyone
	shared    bool     // builds are in a folder of the engine's host, for several runners and slots
	notices   []string
}

// volumes says what a job gets: the settings' volumes, one for builds and one for caches unless the settings have them.
// Builds outlast the job, whatever its GIT_STRATEGY: the next one of the slot finds the working copy, as GitLab's
// documentation of none and fetch has it.
func (p *preparation) volumes() (*volumes, error) {
	v := &volumes{}
	targets := make(map[string]bool)
	for _, parsed := range p.executor.containers.Volumes() {
		one, err := p.expandVolume(parsed)
		if err == nil && targets[one.Target] {
			err = fmt.Errorf("there is another one for %s", one.Target)
		}
		if err != nil {
			return nil, fmt.Errorf("volumes: %s: %w", describe(parsed), err)
		}
		targets[one.Target] = true
		if one.Source != "" {
			v.bind(one.Source, one.Target, one.Mode)
			v.shared = v.shared || path.IsAbs(one.Source) && within(p.buildsDir(), one.Target)
			continue
		}
		if p.executor.settings.DisableCache {
			v.notices = append(v.notices, fmt.Sprintf("WARNING: Container based cache volumes creation is disabled. Will not create volume for %q", one.Target))
			continue
		}
		p.cacheVolume(v, one.Target, kindCache)
	}
	covered := func(dir string) bool {
		for target := range targets {
			if within(dir, target) {
				return true
			}
		}
		return false
	}
	if !covered(p.buildsDir()) {
		if !p.executor.settings.DisableCache {
			p.cacheVolume(v, p.buildsDir(), kindBuilds)
		} else {
			name := p.objects() + "-builds"
			v.temporary = append(v.temporary, name)
			v.mount(p.mount(name, p.buildsDir(), with(p.labels, kindBuilds)))
		}
	}
	if !covered(p.cacheDir()) && !p.executor.settings.DisableCache {
		p.cacheVolume(v, p.cacheDir(), kindCache)
	}
	return v, nil
}

// cacheVolume adds a volume that jobs of the slot share: one of the engine's, or a folder of its host if the settings have
// a place for them.
func (p *preparation) cacheVolume(v *volumes, target, kind string) {
	name := volumeName(p.self, p.spec, p.protected(), target)
	if dir := p.executor.settings.CacheDir; dir != "" {
		v.bind(path.Join(dir, name), target, "")
		v.open = append(v.open, target)
		return
	}
	m := p.mount(name, target, with(p.executor.sharedLabels(p.self, p.spec), kind))
	// As with a plain volume of Docker, what the image has there is its first content.
	m.VolumeOptions.NoCopy = kind == kindBuilds || target == p.cacheDir()
	v.mount(m)
}

func (p *preparation) mount(name, target string, labels map[string]string) mount.Mount {
	m := mount.Mount{
		Type: mount.TypeVolume, Source: name, Target: target, VolumeOptions: &mount.VolumeOptions{NoCopy: true, Labels: labels},
	}
	if s := p.executor.settings; s.VolumeDriver != "" || len(s.VolumeDriverOps) > 0 {
		m.VolumeOptions.DriverConfig = &mount.Driver{Name: s.VolumeDriver, Options: s.VolumeDriverOps}
	}
	return m
}

func (v *volumes) mount(m mount.Mount) {
	v.mounts = append(v.mounts, m)
	v.open = append(v.open, m.Target)
}

func (v *volumes) bind(source, target, mode string) {
	bind := source + ":" + target
	if mode != "" {
		bind += ":" + mode
	}
	v.binds = append(v.binds, bind)
}

// forHelper are the mounts of the helper container: it must not fill volumes that are for the user's image.
func (v *volumes) forHelper() []mount.Mount {
	mounts := make([]mount.Mount, 0, len(v.mounts)+1)
	for _, m := range v.mounts {
		options := *m.VolumeOptions
		options.NoCopy = true
		m.VolumeOptions = &options
		mounts = append(mounts, m)
	}
	return mounts
}

// socketMount is the folder with the server's socket. The helper opens it to everyone before it writes the token that the
// server waits for. It is on the disk: a volume in memory is one that some engines do not let go after a restart.
func (p *preparation) socketMount() mount.Mount {
	return mount.Mount{
		Type: mount.TypeVolume, Source: socketVolume(p.objects()), Target: socketDir,
		VolumeOptions: &mount.VolumeOptions{NoCopy: true, Labels: with(p.labels, kindSocket)},
	}
}

func socketVolume(objects string) string { return objects + "-socket" }

var (
	errColon  = errors.New("a variable's value must not have a ':'")
	errEscape = errors.New("a variable's value must not lead out of the folder")
)

// expandVolume replaces variables, whose values are the user's: they must stay within the folder that the settings name.
func (p *preparation) expandVolume(v config.Volume) (config.Volume, error) {
	for _, field := range []*string{&v.Source, &v.Target} {
		fixed, _, has := strings.Cut(*field, "$")
		if !has {
			if path.IsAbs(*field) {
				*field = path.Clean(*field)
			}
			continue
		}
		value := p.expand(*field)
		if strings.Contains(value, ":") {
			return v, errColon
		}
		fixed = path.Dir(fixed + "x") // the whole folders before the first variable
		if clean := path.Clean(value); slices.Contains(strings.Split(value, "/"), "..") || fixed != "." && !within(clean, fixed) {
			return v, errEscape
		}
		*field = path.Clean(value)
	}
	if !path.IsAbs(v.Target) || v.Target == "/" {
		return v, fmt.Errorf("%q is no absolute path in the container", v.Target)
	}
	return v, nil
}

func describe(v config.Volume) string {
	if v.Source == "" {
		return v.Target
	}
	return v.Source + ":" + v.Target
}

// within says whether name is dir or below it.
func within(name, dir string) bool {
	return name == dir || dir == "/" || strings.HasPrefix(name, strings.TrimSuffix(dir, "/")+"/")
}
