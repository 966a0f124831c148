package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

const maxFile = 1 << 20

// file is the configuration file. Paths in it are relative to its folder.
type file struct {
	Server    string            `yaml:"server"`
	TokenFile string            `yaml:"token_file"`
	Data      string            `yaml:"data"`
	Slots     int               `yaml:"slots"`
	Labels    map[string]string `yaml:"labels"`
	Name      string            `yaml:"name"`
	JobBinary string            `yaml:"job_binary"`
	Executors executorsFile     `yaml:"executors"`
}

type executorsFile struct {
	Shell *shellFile `yaml:"shell"`
}

type shellFile struct {
	BuildsDir string `yaml:"builds_dir"`
	CacheDir  string `yaml:"cache_dir"`
	Shell     string `yaml:"shell"`
}

// The keys of each mapping with fixed keys, by its path.
var fileKeys = map[string][]string{
	"":                {"data", "executors", "job_binary", "labels", "name", "server", "slots", "token_file"},
	"executors":       {"shell"},
	"executors.shell": {"builds_dir", "cache_dir", "shell"},
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
