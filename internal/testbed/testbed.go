// Package testbed tells tests whether a real component they talk to is there.
//
// A test that needs one calls Need first. On a machine without the component the test is skipped and says what is
// missing; where the environment variable SWITCHYARD_REQUIRE (names, separated by commas) lists the component, its
// absence is a failure: that is how CI makes sure that nothing is skipped by accident. `make testbed` installs
// what it can.
package testbed

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// RequireVariable names the environment variable with the components that must not be missing.
const RequireVariable = "SWITCHYARD_REQUIRE"

// A Component is something outside the Go program that a test talks to.
type Component string

// The components that tests use.
const (
	Git    Component = "git"
	GitLFS Component = "git-lfs"
	Bash   Component = "bash"
	// Docker is a Docker Engine that answers, not the client program; Busybox the static one that images are made of.
	Docker  Component = "docker"
	Busybox Component = "busybox"
	Zip     Component = "zip"
	Unzip   Component = "unzip"
	Zstd    Component = "zstd"
	// SSHD is an SSH server that tests start for themselves; SSH is what talks to it.
	SSHD Component = "sshd"
	SSH  Component = "ssh"
	// IPRoute2 and IPTables make networks between network namespaces, as root.
	IPRoute2 Component = "iproute2"
	IPTables Component = "iptables"
	// PostgreSQL is the server's programs, of which tests start servers of their own (package postgresql).
	PostgreSQL Component = "postgresql"
	// GCC is asked for by no test; the race detector needs it, and CI can require it.
	GCC Component = "gcc"
)

// Components returns all of them.
func Components() []Component {
	return []Component{Git, GitLFS, Bash, Docker, Busybox, Zip, Unzip, Zstd, SSHD, SSH, IPRoute2, IPTables, PostgreSQL, GCC}
}

// command is the program that a component is there with.
func (c Component) command() string {
	if c == IPRoute2 {
		return "ip"
	}
	return string(c)
}

// Check returns nil when the component can be used, else why it cannot and how to get it.
func (c Component) Check() error {
	switch c {
	case Docker:
		return checkDocker()
	case Git, GitLFS, Bash, Busybox, Zip, Unzip, Zstd, SSHD, SSH, IPRoute2, IPTables, GCC:
		if _, err := exec.LookPath(c.command()); err != nil {
			return notInstalled(c, err)
		}
		return nil
	case PostgreSQL:
		_, err := PostgreSQLPrograms()
		return err
	default:
		return fmt.Errorf("there is no component %q; known are %v", string(c), Components())
	}
}

func notInstalled(c Component, err error) error {
	return fmt.Errorf("%s is not installed (%w); `make testbed` installs it on Debian as root", c, err)
}

// PostgreSQLPrograms returns the folder of PostgreSQL's programs: that of initdb in PATH, links resolved because not all
// programs may have one, or the newest of those where Debian keeps them.
func PostgreSQLPrograms() (string, error) {
	path, err := exec.LookPath("initdb")
	if err != nil {
		// Versions have two digits since 2017.
		found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb") // a good pattern
		if len(found) == 0 {
			return "", notInstalled(PostgreSQL, err)
		}
		path = slices.Max(found)
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return "", fmt.Errorf("find PostgreSQL's programs: %w", err)
	}
	return filepath.Dir(path), nil
}

// Need returns when the components are there. Otherwise it skips the test, or fails it if a missing one is listed in
// SWITCHYARD_REQUIRE or is none of Components. Like t.Skip it must be called by the test's own goroutine.
func Need(t testing.TB, components ...Component) {
	t.Helper()
	for _, c := range components {
		err := c.Check()
		switch {
		case err == nil:
		case !slices.Contains(Components(), c):
			t.Fatal(err)
		case slices.Contains(required(), c):
			t.Fatalf("%s lists %s, but %v", RequireVariable, c, err)
		default:
			t.Skipf("needs %s: %v", c, err)
		}
	}
}

// CheckRequired returns nil when all that SWITCHYARD_REQUIRE lists is known and there.
func CheckRequired() error {
	var errs []error
	for _, c := range required() {
		if err := c.Check(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", RequireVariable, err))
		}
	}
	return errors.Join(errs...)
}

func required() []Component {
	var list []Component
	for name := range strings.SplitSeq(os.Getenv(RequireVariable), ",") {
		if name = strings.TrimSpace(name); name != "" {
			list = append(list, Component(name))
		}
	}
	return list
}
