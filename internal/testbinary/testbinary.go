// Package testbinary builds this project's programs for tests that run them as processes. It is for TestMain, so that a
// test process builds them once.
package testbinary

import (
	"fmt"
	"os"
	"os/exec"
)

// Module is where the programs' packages are.
const Module = "github.com/switchyard-ci/switchyard/cmd/"

// Build builds the programs of these names into a new folder. The caller removes it.
func Build(names ...string) (dir string, err error) {
	if dir, err = os.MkdirTemp("", "switchyard-programs-"); err != nil {
		return "", fmt.Errorf("build programs: %w", err)
	}
	args := []string{"build", "-o", dir}
	for _, name := range names {
		args = append(args, Module+name)
	}
	build := exec.Command("go", args...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		_ = os.RemoveAll(dir)
		return "", fmt.Errorf("build programs: %w\n%s", err, out)
	}
	return dir, nil
}
