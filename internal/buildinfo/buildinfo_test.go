package buildinfo

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestWithoutLinkerFlags(t *testing.T) {
	require.NotEmpty(t, Version())
	require.NotEmpty(t, Revision())
	require.Equal(t, "switchyard "+Version()+" ("+Revision()+"; "+runtime.Version()+"; "+runtime.GOOS+"/"+runtime.GOARCH+")", UserAgent())
	require.Equal(t, "switchyard-agent "+strings.TrimPrefix(UserAgent(), "switchyard "), Line("switchyard-agent"))
}

// The names in the Makefile's -X flags are strings to the linker: a renamed variable would silently stay empty.
func TestLinkerFlags(t *testing.T) {
	dir := t.TempDir()
	const self = "github.com/switchyard-ci/switchyard/internal/buildinfo"
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	source, err := os.ReadFile("buildinfo.go")
	require.NoError(t, err)
	makefile, err := os.ReadFile("../../Makefile")
	require.NoError(t, err)
	for _, name := range []string{"version", "revision"} {
		require.Contains(t, string(makefile), "-X "+self+"."+name+"=")
	}
	write("go.mod", "module github.com/switchyard-ci/switchyard\n\ngo 1.26\n")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "internal", "buildinfo"), 0o700))
	write("internal/buildinfo/buildinfo.go", string(source))
	write("main.go", "package main\n\nimport \""+self+"\"\n\nfunc main() { print(buildinfo.Line(\"program\")) }\n")

	cmd := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", "program",
		"-ldflags", "-X "+self+".version=v1.4.0-2-gabcdef01 -X "+self+".revision=0123456789abcdef", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off", "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	out, err = exec.CommandContext(t.Context(), filepath.Join(dir, "program")).CombinedOutput()
	require.NoError(t, err)
	require.Equal(t, "program 1.4.0-2-gabcdef01 (01234567; "+runtime.Version()+"; "+runtime.GOOS+"/"+runtime.GOARCH+")", string(out))
}
