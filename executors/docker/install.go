package docker

import (
	"context"
	"fmt"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
)

// installation is one helper image's program in a volume of the engine.
type installation struct {
	// turn is held by who installs.
	turn chan struct{}
	done bool
}

// binaryVolume is the volume with the switchyard-job of a helper image. Agents that use the same image share it.
func binaryVolume(image string) string {
	_, digest, _ := strings.Cut(image, ":")
	return "switchyard-job-" + digest[:min(len(digest), 16)]
}

// install makes sure that the program of the helper image is in its volume: whoever comes meanwhile waits. What the volume has from an earlier agent is written again, because nothing tells whether that was
// complete.
func (e *Executor) install(ctx context.Context, image string) (volume string, err error) {
	name := binaryVolume(image)
	e.mu.Lock()
	i := e.installed[name]
	if i == nil {
		i = &installation{turn: make(chan struct{}, 1)}
		e.installed[name] = i
	}
	e.mu.Unlock()
	select {
	case i.turn <- struct{}{}:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
	defer func() { <-i.turn }()
	if i.done {
		// Somebody may have removed the volume, as no container uses it between two jobs.
		_, err := e.client.VolumeInspect(ctx, name, client.VolumeInspectOptions{})
		if err == nil || !gone(err) {
			return name, err
		}
	}
	if err := e.runInstall(ctx, image, name); err != nil {
		return "", fmt.Errorf("put switchyard-job into the volume %s: %w", name, err)
	}
	i.done = true
	return name, nil
}

func (e *Executor) runInstall(ctx context.Context, image, volume string) error {
	self, err := e.identity()
	if err != nil {
		return err
	}
	name := "switchyard-install-" + self.id() + "-" + strings.TrimPrefix(volume, "switchyard-job-")
	remove := func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUpPatience)
		defer cancel()
		if err := e.removeContainer(ctx, name); err != nil {
			e.log.Warn("a container that is not needed any more stays", "name", name, "err", err)
		}
	}
	remove() // of an agent that was killed
	defer remove()
	shared := map[string]string{labelPrefix + "managed": "true"}
	making, done, err := steady(ctx)
	if err != nil {
		return err
	}
	defer done()
	made, err := e.client.ContainerCreate(making, client.ContainerCreateOptions{
		Name: name,
		Config: &container.Config{
			Image: image, Entrypoint: []string{helperBinary}, Cmd: []string{"install", binDir}, User: "0:0", NetworkDisabled: true,
			Labels: map[string]string{labelAgent: self.id(), labelName: name, labelType: kindInstall, labelPrefix + "managed": "true"},
		},
		HostConfig: &container.HostConfig{
			NetworkMode: "none", LogConfig: container.LogConfig{Type: "json-file"}, Runtime: e.settings.Runtime,
			UsernsMode: container.UsernsMode(e.settings.UsernsMode), SecurityOpt: e.settings.SecurityOpt,
			Mounts: []mount.Mount{{
				Type: mount.TypeVolume, Source: volume, Target: binDir,
				VolumeOptions: &mount.VolumeOptions{NoCopy: true, Labels: with(shared, kindBinary)},
			}},
		},
	})
	if err != nil {
		return err
	}
	waiting, stop := context.WithCancel(ctx)
	defer stop() // or what waits would stay
	ended := e.client.ContainerWait(waiting, made.ID, client.ContainerWaitOptions{Condition: container.WaitConditionNextExit})
	if _, err := e.client.ContainerStart(ctx, made.ID, client.ContainerStartOptions{}); err != nil {
		return err
	}
	select {
	case r := <-ended.Result:
		if r.StatusCode == 0 {
			return nil
		}
		text, err := e.logs(ctx, made.ID, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true})
		if err != nil {
			text = err.Error()
		}
		return fmt.Errorf("exit code %d: %s", r.StatusCode, text)
	case err := <-ended.Error:
		return err
	}
}
