//go:build linux

package supervisor_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/internal/testbinary"
)

// jobBinary is switchyard-job, built by TestMain.
var jobBinary string

func TestMain(m *testing.M) {
	if as := os.Getenv(beAnAgent); as != "" {
		os.Exit(agentProcess(as))
	}
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
