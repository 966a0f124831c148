// Package agent is a Switchyard agent: it enrols with a fleet, keeps one session with the control plane, runs the jobs
// that it is given with its executors and sends their traces and results. Jobs go on without it; see package supervisor.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"regexp"
	"strings"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

// MaxSlots is the greatest number of jobs at once, MaxLabels that of labels.
const (
	MaxSlots  = 10000
	MaxLabels = 64
)

// The forms that the contract allows (fleet.proto, enrollment.proto).
var (
	namePattern  = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$`)
	labelKey     = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$`)
	labelValue   = regexp.MustCompile(`^[A-Za-z0-9._-]{0,63}$`)
	notInAName   = regexp.MustCompile(`[^A-Za-z0-9._-]+`)
	errNoAddress = errors.New("it must be HOST:PORT, for example switchyard.example.com:7443")
)

// Config is what an agent is made with.
type Config struct {
	// Server is the control plane's HOST:PORT.
	Server string
	// Dialer replaces TCP to Server, for a control plane in the same process; nil otherwise.
	Dialer func(ctx context.Context) (net.Conn, error)
	// Data is the agent's folder; it is made if needed. One agent at a time uses it.
	Data string
	// Name is what the agent would like to be called; empty means the host's name. Only enrolment asks for it.
	Name string
	// Slots is how many jobs may run at once.
	Slots  int
	Labels map[string]string
	// ProtectedOnly: jobs of refs that are not protected are refused.
	ProtectedOnly bool
	// Token is asked for the join token when the agent is not enrolled yet, and only then.
	Token func() (jointoken.Token, error)
	// JobBinary is the absolute path of switchyard-job.
	JobBinary string
	// Executors are the places where jobs run; at least one, with different names.
	Executors []executors.Executor
	// Spool limits what traces take of the disk.
	Spool Spool
	Log   *slog.Logger
}

// check returns the first mistake in c and fills in what has a default.
func (c *Config) check() error {
	if err := CheckAddress(c.Server); err != nil {
		return fmt.Errorf("server %q: %w", c.Server, err)
	}
	if c.Data == "" {
		return errors.New("data: no folder is given")
	}
	if c.Slots < 1 || c.Slots > MaxSlots {
		return fmt.Errorf("slots is %d: it must be 1 to %d", c.Slots, MaxSlots)
	}
	if err := CheckLabels(c.Labels); err != nil {
		return err
	}
	if err := c.Spool.check(c.Slots); err != nil {
		return err
	}
	if c.Name == "" {
		hostname, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("name: none is given and the host has none: %w", err)
		}
		c.Name = nameFrom(hostname)
	}
	if !namePattern.MatchString(c.Name) {
		return fmt.Errorf("name %q: it must be 1 to 63 of A-Z a-z 0-9 . _ - and begin and end with a letter or digit", c.Name)
	}
	if len(c.Executors) == 0 {
		return errors.New("executors: there is none")
	}
	seen := make(map[string]bool)
	for _, x := range c.Executors {
		if seen[x.Name()] {
			return fmt.Errorf("executors: %q is there twice", x.Name())
		}
		seen[x.Name()] = true
	}
	return nil
}

// CheckAddress says what is wrong with a HOST:PORT.
func CheckAddress(address string) error {
	host, port, err := net.SplitHostPort(address)
	switch {
	case strings.Contains(address, "://"):
		return fmt.Errorf("%w (without a scheme)", errNoAddress)
	case err != nil || host == "" || port == "":
		return errNoAddress
	}
	if _, err := net.LookupPort("tcp", port); err != nil {
		return fmt.Errorf("%w: %q is no port", errNoAddress, port)
	}
	return nil
}

// CheckLabels says what is wrong with an agent's labels.
func CheckLabels(labels map[string]string) error {
	if len(labels) > MaxLabels {
		return fmt.Errorf("labels: there are %d, at most %d are possible", len(labels), MaxLabels)
	}
	for k, v := range labels {
		if !labelKey.MatchString(k) {
			return fmt.Errorf("label %q: a key is 1 to 63 of A-Z a-z 0-9 . _ / - and begins and ends with a letter or digit", k)
		}
		if !labelValue.MatchString(v) {
			return fmt.Errorf("label %s=%q: a value is at most 63 of A-Z a-z 0-9 . _ -", k, v)
		}
	}
	return nil
}

// nameFrom makes a name that the contract allows of a host's.
func nameFrom(hostname string) string {
	name := notInAName.ReplaceAllString(hostname, "-")
	name = strings.Trim(name[:min(len(name), 63)], "._-")
	if name == "" {
		return "agent"
	}
	return name
}
