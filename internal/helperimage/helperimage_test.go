package helperimage

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/internal/testbed"
)

// static builds a static program that stands for switchyard-job.
func static(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	source := filepath.Join(dir, "main.go")
	require.NoError(t, os.WriteFile(source, []byte("package main\n\nfunc main() { println(\""+text+"\") }\n"), 0o600))
	program := filepath.Join(dir, "job")
	build := exec.Command("go", "build", "-o", program, source)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := build.CombinedOutput()
	require.NoError(t, err, "%s", out)
	return program
}

// contents are the headers of all layers, by name.
func contents(t *testing.T, file string) map[string]*tar.Header {
	t.Helper()
	f, err := os.Open(file)
	require.NoError(t, err)
	defer f.Close()
	found := make(map[string]*tar.Header)
	for archive := tar.NewReader(f); ; {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return found
		}
		require.NoError(t, err)
		if !strings.HasSuffix(header.Name, ".tar.gz") {
			continue
		}
		z, err := gzip.NewReader(archive)
		require.NoError(t, err)
		for layer := tar.NewReader(z); ; {
			inner, err := layer.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
			if _, twice := found[inner.Name]; twice {
				require.EqualValues(t, tar.TypeDir, inner.Typeflag, inner.Name)
			}
			require.Zero(t, inner.Uid+inner.Gid)
			require.Zero(t, inner.ModTime.Unix())
			require.Zero(t, inner.Mode&0o6000, inner.Name)
			found[inner.Name] = inner
		}
	}
}

func TestTheSameFilesMakeTheSameArchive(t *testing.T) {
	testbed.Need(t, testbed.Git)
	job := static(t, "one")
	dir := t.TempDir()
	build := func(name, job string) (Info, bool, []byte) {
		info, made, err := Build(t.Context(), Options{Job: job, Version: "1.4.0+x", level: gzip.HuffmanOnly}, filepath.Join(dir, name))
		require.NoError(t, err)
		data, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		return info, made, data
	}
	first, made, data := build("a", job)
	require.True(t, made)
	require.Regexp(t, `^switchyard-helper:1\.4\.0-x-[0-9a-f]{12}$`, first.Reference)
	require.True(t, strings.HasPrefix(strings.TrimPrefix(first.ID, "sha256:"), first.Reference[len(first.Reference)-12:]))
	require.Equal(t, "linux", first.OS)
	require.Equal(t, runtime.GOARCH, first.Architecture)
	read, err := Read(filepath.Join(dir, "a"))
	require.NoError(t, err)
	require.Equal(t, first, read)

	_, made, second := build("b", job)
	require.True(t, made)
	require.True(t, bytes.Equal(data, second))
	_, made, _ = build("a", job)
	require.False(t, made)

	// Only the layer with switchyard-job changes with it.
	changed, made, _ := build("a", static(t, "two"))
	require.True(t, made)
	require.NotEqual(t, first.Reference, changed.Reference)
	require.Equal(t, first.Layers[0], changed.Layers[0])
	require.NotEqual(t, first.Layers[1], changed.Layers[1])
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	require.NoError(t, err)
	require.Empty(t, left)

	found := contents(t, filepath.Join(dir, "b"))
	require.EqualValues(t, 0o755, found["usr/bin/switchyard-job"].Mode)
	require.EqualValues(t, 0o1777, found["tmp/"].Mode)
	require.Equal(t, "usr/bin", found["bin"].Linkname)
	for _, name := range []string{"usr/bin/git", "usr/bin/sh", "etc/passwd", "etc/ssl/certs/ca-certificates.crt"} {
		require.NotNil(t, found[name], name)
	}
	core, err := exec.Command("git", "--exec-path").Output()
	require.NoError(t, err)
	https := found[strings.TrimPrefix(inUsr(strings.TrimSpace(string(core))), "/")+"/git-remote-https"]
	require.NotNil(t, https)
	require.NotEqual(t, tar.TypeReg, rune(https.Typeflag))
}

func TestWhatCannotBeMadeSaysWhy(t *testing.T) {
	testbed.Need(t, testbed.Git)
	dir := t.TempDir()
	script := filepath.Join(dir, "git")
	require.NoError(t, os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755))
	out := filepath.Join(dir, "out")
	build := func(job string) error {
		_, made, err := Build(t.Context(), Options{Job: job}, out)
		require.False(t, made)
		require.NoFileExists(t, out)
		return err
	}
	err := build(script)
	require.ErrorIs(t, err, ErrCannot)
	require.ErrorContains(t, err, script+": not an ELF program")
	require.ErrorContains(t, build(filepath.Join(dir, "none")), "read switchyard-job: open")
	git, err := exec.LookPath("git")
	require.NoError(t, err)
	require.ErrorContains(t, build(git), "build it with CGO_ENABLED=0")
	t.Setenv("PATH", dir)
	require.ErrorIs(t, build(git), ErrCannot)
	t.Setenv("PATH", t.TempDir())
	require.ErrorIs(t, build(git), ErrCannot)
}

func TestOnlyOwnArchivesAreRead(t *testing.T) {
	dir := t.TempDir()
	write := func(files ...string) string {
		path := filepath.Join(dir, "archive")
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for i := 0; i+1 < len(files); i += 2 {
			require.NoError(t, w.WriteHeader(&tar.Header{Name: files[i], Size: int64(len(files[i+1])), Mode: 0o644}))
			_, err := io.WriteString(w, files[i+1])
			require.NoError(t, err)
		}
		require.NoError(t, w.Close())
		require.NoError(t, os.WriteFile(path, b.Bytes(), 0o600))
		return path
	}
	for want, files := range map[string][]string{
		"manifest.json: EOF": nil,
		`there is "etc/passwd" of 1 bytes instead of manifest.json`:     {"etc/passwd", "x"},
		"manifest.json: unexpected end of JSON input":                   {manifestName, "{"},
		"must have one image with one name":                             {manifestName, "[]"},
		"bytes instead of manifest.json of at most 1048576":             {manifestName, strings.Repeat(" ", maxJSON+1)},
		"c.json has another digest":                                     {manifestName, `[{"Config":"c.json","RepoTags":["x:1"]}]`, "c.json", "{}"},
		`the image is called "x:1", not switchyard-helper`:              {manifestName, `[{"Config":"` + empty + `","RepoTags":["x:1"]}]`, empty, "{}"},
		"is no helper image that `make build` has made: manifest.json:": {},
	} {
		_, err := Read(write(files...))
		require.ErrorContains(t, err, want)
	}
	_, err := Read(filepath.Join(dir, "none"))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// empty is the name of the configuration {}.
const empty = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a.json"

func TestAMissingLibraryIsNamed(t *testing.T) {
	testbed.Need(t, testbed.Git)
	git, err := exec.LookPath("git")
	require.NoError(t, err)
	p, err := readELF(git)
	require.NoError(t, err)
	if p.loader == "" {
		t.Skip("git is a static program here")
	}
	l := newLibraries(make(tree))
	l.dirs = []string{t.TempDir()}
	require.ErrorContains(t, l.add(git), "it needs "+p.needed[0]+", which is in none of "+l.dirs[0])
}
