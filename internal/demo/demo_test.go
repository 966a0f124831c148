package main

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/internal/testbinary"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestDemo(t *testing.T) {
	bin, err := testbinary.Build("switchyard", "switchyard-agent", "switchyard-job")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(bin)) })
	temp := t.TempDir()
	t.Setenv("TMPDIR", temp)
	t.Setenv("HOME", t.TempDir())

	var out bytes.Buffer
	require.NoError(t, demonstrate(t.Context(), bin, newStage(&out, false)), "%s", &out)
	for _, line := range []string{
		`(?m)^  website links +index.html is there$`,
		`(?m)^  payments scan +! failed with exit code 4, which it may$`,
		`(?m)^  acme/compiler +build: \[linux, amd64\] +(north|south) +success +\d+\.\ds$`,
		`(?m)^  platform/payments +clean-up +skipped`,
		`(?m)^All as expected, in \d+\.\d s\.$`,
	} {
		require.Regexp(t, line, out.String())
	}
	left, err := os.ReadDir(temp)
	require.NoError(t, err)
	require.Empty(t, left)

	// An interrupt in the middle of it.
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stopped := &stopper{Buffer: new(bytes.Buffer), at: "is ready", stop: cancel}
	require.ErrorIs(t, demonstrate(ctx, bin, newStage(stopped, false)), context.Canceled)
	require.Contains(t, stopped.String(), "The log of switchyard serve:")
	left, err = os.ReadDir(temp)
	require.NoError(t, err)
	require.Empty(t, left)
}

// stopper calls stop when something is written.
type stopper struct {
	*bytes.Buffer
	at   string
	stop func()
}

func (s *stopper) Write(p []byte) (int, error) {
	if bytes.Contains(p, []byte(s.at)) {
		s.stop()
	}
	return s.Buffer.Write(p)
}

func TestWithoutTheProgramsTheDemoSaysHowToMakeThem(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	err := demonstrate(t.Context(), filepath.Join(t.TempDir(), "bin"), newStage(new(bytes.Buffer), false))
	require.ErrorContains(t, err, "make build")
}
