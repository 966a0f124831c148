package config

import (
	"path/filepath"

	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

// Problem is one thing that is wrong with a file, or worth a warning.
type Problem = yamlform.Problem

// Problems is the error for a file that cannot be used.
type Problems = yamlform.Problems

// reader goes through the tree and gathers complaints.
type reader struct {
	*yamlform.Reader
	folder string // absolute; relative paths start here

	inlineSecret *yaml.Node // the first that is in the file itself
	inlineNoun   string     // what it is
}

// path makes a path of the file absolute.
func (r *reader) path(p string) string {
	if filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	return filepath.Join(r.folder, p)
}
