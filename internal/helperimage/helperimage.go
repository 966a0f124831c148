// Package helperimage makes and reads the archive with the helper image: what the docker executor's helper container runs
// in, with git, what git calls, the CA certificates and switchyard-job. The archive is made of files of the machine that
// builds it, so that neither an engine nor a registry is needed: programs with the shared libraries that they ask for.
//
// The archive is what `docker save` writes and every engine loads: a plain tar with manifest.json and the configuration
// first, then the layers, each compressed with gzip. The same files make the same archive, byte for byte.
package helperimage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
)

const (
	// FileName is what the archive is called beside the programs.
	FileName = "switchyard-helper-image.tar"
	// Repository is the image's name without the tag.
	Repository = "switchyard-helper"
	// JobBinary is where switchyard-job is in the image.
	JobBinary = "/usr/bin/switchyard-job"

	maxTag       = 128 // of the engine
	digestLength = 12
)

// ErrCannot is why this machine makes no helper image: its git is not a program for Linux, for example on macOS.
var ErrCannot = errors.New("no helper image can be made here")

// Info says what is in an archive.
type Info struct {
	// Reference is the name that the image gets when it is loaded: Repository, and a tag of version and ID.
	Reference string
	// ID is the digest of the image's configuration, "sha256:" and 64 digits. Engines that keep images in containerd
	// give it another identity.
	ID string
	// OS and Architecture are Go's names, for example linux and arm64.
	OS, Architecture string
	// Layers are the digests of the unpacked layers: what the image is made of, in every engine.
	Layers []string
}

// Options say what to make.
type Options struct {
	// Job is the path of switchyard-job, a static program for Linux.
	Job string
	// Version stands in the image's tag.
	Version string

	level int // of compression, other than the usual one
}

// Build makes the archive at path, for the platform of this machine's git and of opts.Job, which must be the same. An
// archive that is already there and has the same in it is left alone (made is false). The error wraps ErrCannot if the
// machine is of the wrong kind; any other means that something is broken. The archive takes its place when it is
// complete.
func Build(ctx context.Context, opts Options, path string) (info Info, made bool, err error) {
	image, err := collect(ctx, opts)
	if err != nil {
		return Info{}, false, err
	}
	config, err := image.configuration()
	if err != nil {
		return Info{}, false, err
	}
	info = config.info(opts.Version)
	if there, err := Read(path); err == nil && there.Reference == info.Reference && there.ID == info.ID {
		return info, false, nil
	}
	file, err := os.CreateTemp(filepath.Dir(path), "."+FileName+"-")
	if err != nil {
		return Info{}, false, fmt.Errorf("make the helper image: %w", err)
	}
	defer os.Remove(file.Name())
	err = errors.Join(image.write(file, config, info), file.Chmod(0o644), file.Close())
	if err == nil {
		err = os.Rename(file.Name(), path)
	}
	if err != nil {
		return Info{}, false, fmt.Errorf("make the helper image: %w", err)
	}
	return info, true, nil
}

var notInTags = regexp.MustCompile(`[^A-Za-z0-9_.-]+`)

// reference is the image's name: its tag tells apart images that differ in anything.
func reference(version, hexDigest string) string {
	tag := notInTags.ReplaceAllString(version, "-")
	if tag == "" || tag[0] == '.' || tag[0] == '-' {
		tag = "v" + tag
	}
	tag = tag[:min(len(tag), maxTag-1-digestLength)]
	return Repository + ":" + tag + "-" + hexDigest[:digestLength]
}
