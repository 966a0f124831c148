// Package config reads switchyard.yaml. It checks everything that can be checked without a network, and says of each
// complaint where it is and what to do; nothing is ignored.
package config

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/controlplane/registry"
	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

// Defaults.
const (
	DefaultListen      = "127.0.0.1:7443"
	DefaultData        = "./data"
	DefaultExecutor    = "shell"
	DefaultOutputLimit = 4096 // KiB
)

// Limits of the file.
const (
	maxFile    = 1 << 20 // bytes
	maxRunners = 1000
)

// Config is the content of switchyard.yaml with its defaults. Paths are absolute.
type Config struct {
	Listen  string // host:port
	Metrics string // host:port of the figures for Prometheus; empty: they are not served
	Data    string
	// Database is empty for a file in the data folder.
	Database Database
	Runners  []Runner
	Spool    Spool
	// PingPeriod, StopAfter and LostAfter are 0 if the file leaves them to the control plane.
	PingPeriod, StopAfter, LostAfter time.Duration
}

// Runner is an entry of runners.
type Runner struct {
	registry.Runner
	// CheckInterval and RequestsPerMinute are 0 if the file leaves them to the control plane.
	CheckInterval     time.Duration
	RequestsPerMinute int
	// StopAfter and LostAfter are the lease of its jobs; 0: that of the file.
	StopAfter, LostAfter time.Duration
}

// Load reads a file and what it refers to (tokens, CA certificates). Relative paths in it are relative to its folder.
// Of a file that cannot be used it returns Problems, as many as there are (at most fifty); warnings come with the
// configuration and with problems alike. Both name the file as path does.
func Load(path string) (*Config, []Problem, error) {
	data, info, err := readFile(path)
	if err != nil {
		return nil, nil, Problems{{File: path, Message: err.Error(), Hint: "name another file with -c"}}
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, nil, fmt.Errorf("find the folder of %s: %w", path, err)
	}
	form, root, err := yamlform.Parse(path, data)
	if errors.Is(err, yamlform.ErrEmpty) {
		return nil, nil, Problems{{File: path, Message: "the file is empty", Hint: runnersHint}}
	}
	if err != nil {
		return nil, nil, err
	}
	r := &reader{Reader: form, folder: filepath.Dir(abs)}
	c := r.config(root)
	if r.inlineSecret != nil && info.Mode().Perm()&0o077 != 0 {
		r.Warn(r.inlineSecret, "runners", fmt.Sprintf("others can read this file (mode %#o) and %s in it", info.Mode().Perm(), r.inlineNoun),
			fmt.Sprintf("chmod 600 %s, or use a file of its own (_file)", path))
	}
	if err := r.Err(); err != nil {
		return nil, r.Warnings(), err
	}
	return c, r.Warnings(), nil
}

// readFile reads a file of bounded size. Its errors are for people and name no path.
func readFile(path string) ([]byte, os.FileInfo, error) {
	info, err := os.Stat(path) // a pipe would block the opening
	if err != nil {
		return nil, nil, plain(err)
	}
	if !info.Mode().IsRegular() {
		return nil, nil, errors.New("it is not a regular file")
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, plain(err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, nil, plain(err)
	}
	if len(data) > maxFile {
		return nil, nil, fmt.Errorf("it has more than %d KiB", maxFile>>10)
	}
	return data, info, nil
}

// plain takes operation and path out of an error: the message around it has them.
func plain(err error) error {
	if e, ok := errors.AsType[*os.PathError](err); ok {
		return e.Err
	}
	return err
}

func (r *reader) config(root *yaml.Node) *Config {
	c := &Config{Listen: DefaultListen, Data: r.path(DefaultData)}
	var runners *yaml.Node
	r.Mapping(root, "", yamlform.Fields{
		"listen":      func(n *yaml.Node, p string) { c.Listen = r.listen(n, p) },
		"data":        func(n *yaml.Node, p string) { c.Data = r.dataFolder(n, p) },
		"database":    func(n *yaml.Node, p string) { c.Database = r.database(n, p) },
		"metrics":     func(n *yaml.Node, p string) { c.Metrics = r.metrics(n, p) },
		"spool":       func(n *yaml.Node, p string) { c.Spool = r.spool(n, p) },
		"ping_period": func(n *yaml.Node, p string) { c.PingPeriod = r.Duration(n, p, time.Second, 25*time.Second) },
		"lease":       func(n *yaml.Node, p string) { c.StopAfter, c.LostAfter = r.fleetLease(n, p) },
		"runners": func(n *yaml.Node, p string) {
			runners = n
			c.Runners = r.runners(n, p)
		},
	})
	if runners == nil && root.Kind == yaml.MappingNode {
		r.Problem(root, "runners", "is missing", runnersHint)
	}
	return c
}

const runnersHint = "a control plane without runners has nothing to do: give it at least one with name, url and token_file"
