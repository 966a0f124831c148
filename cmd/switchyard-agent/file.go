package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/executors/shell"
)

const maxFile = 1 << 20

// file is the configuration file. Paths in it are relative to its folder.
type file struct {
	Server        string            `yaml:"server"`
	TokenFile     string            `yaml:"token_file"`
	Data          string            `yaml:"data"`
	Slots         int               `yaml:"slots"`
	ProtectedOnly bool              `yaml:"protected_only"`
	Labels        map[string]string `yaml:"labels"`
	Name          string            `yaml:"name"`
	JobBinary     string            `yaml:"job_binary"`
	Spool         spoolFile         `yaml:"spool"`
	Executors     executorsFile     `yaml:"executors"`
}

// executorsFile has the sections that are there; an empty one has the defaults.
type executorsFile struct {
	Shell  *shellFile     `yaml:"shell"`
	Docker *config.Config `yaml:"docker"`
}

// UnmarshalYAML tells a section without a value from none.
func (e *executorsFile) UnmarshalYAML(node *yaml.Node) error {
	type plain executorsFile
	if err := node.Decode((*plain)(e)); err != nil {
		return err
	}
	if e.Shell == nil && child(node, "shell") != nil {
		e.Shell = &shellFile{}
	}
	if e.Docker == nil && child(node, "docker") != nil {
		e.Docker = &config.Config{}
	}
	return nil
}

type shellFile struct {
	BuildsDir string `yaml:"builds_dir"`
	CacheDir  string `yaml:"cache_dir"`
	Shell     string `yaml:"shell"`
	RunAs     names  `yaml:"run_as"`
	// Memory is a size as Docker has it ("2g"), CPUs a number of processors ("1.5"): limits of each job.
	Memory         string `yaml:"memory"`
	CPUs           string `yaml:"cpus"`
	CustomBuildDir bool   `yaml:"custom_build_dir"`
}

// names are one name or several.
type names []string

// UnmarshalYAML takes both.
func (n *names) UnmarshalYAML(node *yaml.Node) error {
	if node.Kind == yaml.ScalarNode {
		*n = names{node.Value}
		return nil
	}
	return node.Decode((*[]string)(n))
}

// limits reads the limits of each job.
func (s *shellFile) limits() (shell.Limits, error) {
	var l shell.Limits
	if s.Memory != "" {
		bytes, err := units.RAMInBytes(s.Memory)
		if err != nil || bytes <= 0 {
			return l, fmt.Errorf("executors.shell.memory: %q is no size: give a number with b, k, m or g, for example 2g", s.Memory)
		}
		l.Memory = bytes
	}
	if s.CPUs != "" {
		n, err := strconv.ParseFloat(s.CPUs, 64)
		if err != nil || n < 0.01 || n > 1e6 {
			return l, fmt.Errorf("executors.shell.cpus: %q is no number of processors: give one like 1.5", s.CPUs)
		}
		l.CPUs = n
	}
	return l, nil
}

// The keys of each mapping with fixed keys, by its path.
var fileKeys = map[string][]string{
	"":                 {"data", "executors", "job_binary", "labels", "name", "protected_only", "server", "slots", "spool", "token_file"},
	"executors":        {"docker", "shell"},
	"executors.docker": config.Keys(),
	"spool":            {"max_size", "min_free"},
	"executors.shell":  {"builds_dir", "cache_dir", "cpus", "custom_build_dir", "memory", "run_as", "shell"},
}

func readFile(path string) (*file, error) {
	r, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	defer func() { _ = r.Close() }()
	b, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, maxFile)
	}
	var root yaml.Node
	if err := yaml.Unmarshal(b, &root); err != nil {
		return nil, atLine(path, err)
	}
	if len(root.Content) == 0 {
		return &file{}, nil
	}
	if err := checkKeys(path, "", root.Content[0]); err != nil {
		return nil, err
	}
	var f file
	if err := root.Decode(&f); err != nil {
		return nil, atLine(path, err)
	}
	dir := filepath.Dir(path)
	paths := []*string{&f.TokenFile, &f.Data}
	if strings.ContainsRune(f.JobBinary, filepath.Separator) {
		paths = append(paths, &f.JobBinary)
	}
	if f.Executors.Shell != nil {
		paths = append(paths, &f.Executors.Shell.BuildsDir, &f.Executors.Shell.CacheDir)
	}
	if docker := f.Executors.Docker; docker != nil {
		if err := docker.Check(); err != nil {
			return nil, dockerErrors(path, child(child(root.Content[0], "executors"), "docker"), err)
		}
		paths = append(paths, &docker.TLSCertPath, &docker.HelperImageFile)
	}
	for _, p := range paths {
		if *p == "" || filepath.IsAbs(*p) {
			continue
		}
		if *p, err = filepath.Abs(filepath.Join(dir, *p)); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	return &f, nil
}

// child is the value of a key of a mapping; nil if there is none.
func child(node *yaml.Node, key string) *yaml.Node {
	if node == nil || node.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == key {
			return node.Content[i+1]
		}
	}
	return nil
}

// dockerErrors puts the place of its key before each of the section's errors.
func dockerErrors(path string, section *yaml.Node, err error) error {
	all := []error{err}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		all = joined.Unwrap()
	}
	for i, one := range all {
		var wrong *config.KeyError
		if !errors.As(one, &wrong) {
			continue
		}
		if at := child(section, wrong.Key); at != nil {
			all[i] = fmt.Errorf("%s:%d: executors.docker: %w", path, at.Line, one)
		}
	}
	return errors.Join(all...)
}

// checkKeys refuses keys that are not known, with the place and the keys that are.
func checkKeys(path, where string, node *yaml.Node) error {
	known, fixed := fileKeys[where]
	if !fixed || node.Kind == yaml.ScalarNode && node.Tag == "!!null" {
		return nil
	}
	if node.Kind != yaml.MappingNode {
		return fmt.Errorf("%s:%d: %s must be a mapping with the keys %s", path, node.Line, or(where, "the file"), strings.Join(known, ", "))
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		key, value := node.Content[i], node.Content[i+1]
		if !slices.Contains(known, key.Value) {
			return fmt.Errorf("%s:%d: unknown key %q; known here are %s", path, key.Line, key.Value, strings.Join(known, ", "))
		}
		if err := checkKeys(path, strings.TrimPrefix(where+"."+key.Value, "."), value); err != nil {
			return err
		}
	}
	return nil
}

var yamlLine = regexp.MustCompile(`^(?:yaml: )?line (\d+): `)

// atLine puts the file's name before what the YAML decoder says, in the form FILE:LINE.
func atLine(path string, err error) error {
	text := err.Error()
	if typed := (*yaml.TypeError)(nil); errors.As(err, &typed) && len(typed.Errors) > 0 {
		text = typed.Errors[0]
	}
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		return fmt.Errorf("%s:%s: %s", path, m[1], text[len(m[0]):])
	}
	return fmt.Errorf("%s: %s", path, strings.TrimPrefix(text, "yaml: "))
}
