//go:build linux

package remoteshell_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/conformance"
	"github.com/switchyard-ci/switchyard/executors/conformance/remoteshell"
	"github.com/switchyard-ci/switchyard/executors/shell"
	"github.com/switchyard-ci/switchyard/internal/testbinary"
)

// jobBinary is switchyard-job, built by TestMain.
var jobBinary string

func TestMain(m *testing.M) {
	dir, err := testbinary.Build("switchyard-job")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	jobBinary = filepath.Join(dir, "switchyard-job")
	code := m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// The whole suite holds for environments whose job folder is elsewhere.
func TestConformance(t *testing.T) {
	conformance.Run(t, func(t *testing.T) conformance.Harness {
		dir := t.TempDir()
		jobs, root := filepath.Join(dir, "jobs"), filepath.Join(dir, "elsewhere")
		require.NoError(t, os.Mkdir(jobs, 0o700))
		require.NoError(t, os.Mkdir(root, 0o700))
		c := shell.Config{
			Jobs: root, BuildsDir: filepath.Join(dir, "builds"), CacheDir: filepath.Join(dir, "cache"), Environ: os.Environ(),
			Shell: "sh", Log: slog.New(slog.DiscardHandler),
		}
		another := func(t *testing.T) executors.Executor {
			t.Helper()
			x, err := remoteshell.New(c)
			require.NoError(t, err)
			return x
		}
		return conformance.Harness{
			Executor: another(t), Again: another, Jobs: jobs, JobBinary: jobBinary, Processes: processes, Host: "127.0.0.1",
		}
	})
}

// processes counts the living processes whose arguments end in text.
func processes(t *testing.T, text string) int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	require.NoError(t, err)
	n := 0
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		line, err := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline")) // empty for zombies
		if err == nil && bytes.HasSuffix(bytes.ReplaceAll(bytes.TrimRight(line, "\x00"), []byte{0}, []byte{' '}), []byte(text)) {
			n++
		}
	}
	return n
}
