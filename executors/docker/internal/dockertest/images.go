// Package dockertest makes what tests of the docker executor need: images out of files of this machine, engines of a
// test's own.
package dockertest

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/moby/moby/client"
)

// Root is the content of an image: tar entries.
type Root struct {
	buf  bytes.Buffer
	w    *tar.Writer
	have map[string]bool
	err  error
}

// NewRoot returns a root with what every image has.
func NewRoot() *Root {
	r := &Root{have: make(map[string]bool)}
	r.w = tar.NewWriter(&r.buf)
	for _, dir := range []struct {
		name string
		mode int64
	}{{"bin", 0o755}, {"etc", 0o755}, {"tmp", 0o1777}, {"root", 0o700}} {
		r.put(&tar.Header{Typeflag: tar.TypeDir, Name: dir.name + "/", Mode: dir.mode}, nil)
	}
	r.File("/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000:user:/tmp:/bin/sh\n", 0o644)
	r.File("/etc/group", "root:x:0:\nuser:x:1000:\n", 0o644)
	return r
}

func (r *Root) put(h *tar.Header, content []byte) {
	if r.err != nil || r.have[h.Name] {
		return
	}
	r.have[h.Name] = true
	h.Size = int64(len(content))
	if r.err = r.w.WriteHeader(h); r.err == nil {
		_, r.err = r.w.Write(content)
	}
}

// File adds a file.
func (r *Root) File(name, content string, mode int64) *Root {
	r.put(&tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(name, "/"), Mode: mode}, []byte(content))
	return r
}

// Copy adds a file of this machine under the name target.
func (r *Root) Copy(source, target string) *Root {
	content, err := os.ReadFile(source)
	if err != nil {
		r.err = errors.Join(r.err, err)
		return r
	}
	return r.File(target, string(content), 0o755)
}

// Busybox adds busybox and links for all its programs.
func (r *Root) Busybox() *Root {
	program, err := exec.LookPath("busybox")
	if err != nil {
		r.err = errors.Join(r.err, err)
		return r
	}
	list, err := exec.Command(program, "--list").Output()
	if err != nil {
		r.err = errors.Join(r.err, err)
		return r
	}
	r.Copy(program, "/bin/busybox")
	for name := range strings.FieldsSeq(string(list)) {
		r.put(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox", Mode: 0o777}, nil)
	}
	return r
}

var library = regexp.MustCompile(`(/\S+) \(0x`)

// Program adds a program of this machine to /usr/bin, with its shared libraries.
func (r *Root) Program(name string) *Root {
	path, err := exec.LookPath(name)
	if err != nil {
		r.err = errors.Join(r.err, err)
		return r
	}
	return r.program(path, "/usr/bin/"+name)
}

// Git adds git with what it needs to fetch over HTTP.
func (r *Root) Git() *Root {
	dir, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		r.err = errors.Join(r.err, err)
		return r
	}
	r.Program("git")
	for _, name := range []string{"git-remote-http", "git-remote-https"} {
		path := filepath.Join(strings.TrimSpace(string(dir)), name)
		r.program(path, path)
	}
	return r
}

func (r *Root) program(path, target string) *Root {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		r.err = errors.Join(r.err, err)
		return r
	}
	r.Copy(path, target)
	list, err := exec.Command("ldd", path).Output()
	if err != nil {
		return r // a static one
	}
	for _, m := range library.FindAllStringSubmatch(string(list), -1) {
		r.Copy(m[1], m[1])
	}
	return r
}

// Import makes an image of the root; changes are lines of a Dockerfile like USER and ENTRYPOINT. The caller removes it.
func (r *Root) Import(ctx context.Context, c *client.Client, changes ...string) (name string, err error) {
	if err := errors.Join(r.err, r.w.Close()); err != nil {
		return "", fmt.Errorf("make an image: %w", err)
	}
	name = "switchyard-test/image:" + strings.ToLower(rand.Text())
	answer, err := c.ImageImport(ctx, client.ImageImportSource{Source: bytes.NewReader(r.buf.Bytes()), SourceName: "-"}, name,
		client.ImageImportOptions{Changes: changes})
	if err != nil {
		return "", fmt.Errorf("make an image: %w", err)
	}
	defer answer.Close()
	if _, err := io.Copy(io.Discard, answer); err != nil {
		return "", fmt.Errorf("make an image: %w", err)
	}
	return name, nil
}
