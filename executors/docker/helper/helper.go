// Package helper brings the helper image into a Docker Engine: the one that an administrator names, or the one that
// `make build` leaves in a file beside the agent (internal/helperimage).
package helper

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/client"

	"github.com/switchyard-ci/switchyard/internal/helperimage"
)

// Engine is what is asked of an engine; *client.Client is one.
type Engine interface {
	// DaemonHost is the engine's address.
	DaemonHost() string
	// ServerVersion returns, among others, the engine's platform.
	ServerVersion(context.Context, client.ServerVersionOptions) (client.ServerVersionResult, error)
	// ImageInspect returns what the engine knows of an image.
	ImageInspect(ctx context.Context, image string, options ...client.ImageInspectOption) (client.ImageInspectResult, error)
	// ImageLoad loads an archive and returns what the engine says meanwhile.
	ImageLoad(ctx context.Context, archive io.Reader, options ...client.ImageLoadOption) (client.ImageLoadResult, error)
}

// Source says which image it is: Image if that is set, else the one in File.
type Source struct {
	// Image names the image so that it cannot change: NAME@sha256:… or the ID of an image that the engine has, sha256:….
	Image string
	// File is the path of an archive that internal/helperimage has made.
	File string
}

// Pull gets an image from its registry into the engine.
type Pull func(ctx context.Context, image string) error

// Helper is the helper image of one engine. Its methods may be called concurrently.
type Helper struct {
	engine Engine
	source Source
	// loading is held while an image is loaded or pulled: whoever comes meanwhile finds it there afterwards.
	loading chan struct{}
	// platform is the engine's, once it was asked for it.
	platform atomic.Pointer[client.ServerVersionResult]
}

// New returns the helper image of source for engine. Nothing is done yet.
func New(engine Engine, source Source) *Helper {
	return &Helper{engine: engine, source: source, loading: make(chan struct{}, 1)}
}

// Ensure returns the ID of the helper image, which the engine then has: to make containers of, valid until somebody
// removes the image. If it is there that takes one question to the engine. A named image that is missing is pulled; pull
// may be nil if nothing can be. A file's image is loaded if the engine has none with the same layers under its name.
//
// The errors say what to do; those of pull are returned as they are.
func (h *Helper) Ensure(ctx context.Context, pull Pull) (id string, err error) {
	if h.source.Image != "" {
		return h.once(ctx, h.named, func() error { return h.pull(ctx, pull) })
	}
	info, err := helperimage.Read(h.source.File)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("there is no helper image at %s: `make build` leaves one beside the programs; or make one with "+
			"deploy/helper/Dockerfile and name it by helper_image", h.source.File)
	}
	if err != nil {
		return "", err
	}
	return h.once(ctx,
		func(ctx context.Context) (string, error) { return h.loaded(ctx, info) },
		func() error { return h.load(ctx, info) })
}

// once looks for the image and brings it if it is not there, one caller at a time.
func (h *Helper) once(ctx context.Context, look func(context.Context) (string, error), bring func() error) (string, error) {
	if id, err := look(ctx); id != "" || err != nil {
		return id, err
	}
	select {
	case h.loading <- struct{}{}:
	case <-ctx.Done():
		return "", ctx.Err()
	}
	defer func() { <-h.loading }()
	if id, err := look(ctx); id != "" || err != nil {
		return id, err
	}
	if err := bring(); err != nil {
		return "", err
	}
	id, err := look(ctx)
	if id == "" && err == nil {
		err = fmt.Errorf("the engine at %s has taken the helper image and does not have it: is something removing images?", h.engine.DaemonHost())
	}
	return id, err
}

// loaded returns the ID of the archive's image in the engine, "" if it is not there or another one has its name.
func (h *Helper) loaded(ctx context.Context, info helperimage.Info) (string, error) {
	found, err := h.engine.ImageInspect(ctx, info.Reference)
	if errdefs.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("ask the engine at %s for the helper image: %w", h.engine.DaemonHost(), err)
	}
	if !slices.Equal(found.RootFS.Layers, info.Layers) {
		return "", nil
	}
	return found.ID, nil
}

func (h *Helper) load(ctx context.Context, info helperimage.Info) error {
	if err := h.matches(ctx, info.OS, info.Architecture, h.source.File); err != nil {
		return err
	}
	file, err := os.Open(h.source.File)
	if err != nil {
		return fmt.Errorf("load the helper image: %w", err)
	}
	defer file.Close()
	answer, err := h.engine.ImageLoad(ctx, file, client.ImageLoadWithQuiet(true))
	if err == nil {
		err = errors.Join(readLoad(answer), answer.Close())
	}
	if err != nil {
		return fmt.Errorf("load the helper image from %s into the engine at %s: %w", h.source.File, h.engine.DaemonHost(), err)
	}
	return nil
}

// readLoad reads what the engine says while it loads, until it is done or says what failed.
func readLoad(r io.Reader) error {
	const maxMessage = 1 << 20
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxMessage)
	for lines.Scan() {
		var m jsonstream.Message
		if err := json.Unmarshal(lines.Bytes(), &m); err == nil && m.Error != nil {
			return m.Error
		}
	}
	return lines.Err()
}

// named returns the ID of the administrator's image in the engine, "" if it is not there.
func (h *Helper) named(ctx context.Context) (string, error) {
	found, err := h.engine.ImageInspect(ctx, h.source.Image)
	if errdefs.IsNotFound(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("ask the engine at %s for the helper image %s: %w", h.engine.DaemonHost(), h.source.Image, err)
	}
	if err := h.matches(ctx, found.Os, found.Architecture, h.source.Image); err != nil {
		return "", err
	}
	return found.ID, nil
}

func (h *Helper) pull(ctx context.Context, pull Pull) error {
	if strings.HasPrefix(h.source.Image, "sha256:") {
		return fmt.Errorf("the engine at %s has no image %s: load it there, or set helper_image to NAME@sha256:… of a registry",
			h.engine.DaemonHost(), h.source.Image)
	}
	if pull == nil {
		return fmt.Errorf("the engine at %s does not have the helper image %s", h.engine.DaemonHost(), h.source.Image)
	}
	return pull(ctx, h.source.Image)
}

// matches returns an error if an image is not for the engine's own platform.
func (h *Helper) matches(ctx context.Context, system, architecture, image string) error {
	v := h.platform.Load()
	if v == nil {
		asked, err := h.engine.ServerVersion(ctx, client.ServerVersionOptions{})
		if err != nil {
			return fmt.Errorf("ask the engine at %s for its platform: %w", h.engine.DaemonHost(), err)
		}
		v = &asked
		h.platform.Store(v)
	}
	if v.Os == system && v.Arch == architecture {
		return nil
	}
	return fmt.Errorf("the engine at %s runs %s/%s and the helper image %s is for %s/%s: run `make build` on a machine of the engine's "+
		"kind, or make one with deploy/helper/Dockerfile for linux/%s and name it by helper_image",
		h.engine.DaemonHost(), v.Os, v.Arch, image, system, architecture, v.Arch)
}
