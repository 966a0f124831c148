package config

import (
	"cmp"
	"fmt"
	"regexp"

	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/controlplane/registry"
	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

// Limits of labels: of those that agents must have, and of those that GitLab shows (gitlab-runner's common/labels.go).
const (
	maxLabels       = 64
	maxRunnerLabels = 32
)

var (
	runnerLabelKey   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{2,64}$`)
	runnerLabelValue = regexp.MustCompile(`^[A-Za-z0-9._-]{1,256}$`)
)

// runnerLabels reads what GitLab shows of a runner.
func (r *reader) runnerLabels(n *yaml.Node, path string) map[string]string {
	n = yamlform.Resolve(n)
	const hint = "write labels and their values, for example {zone: eu-1}"
	switch {
	case n.Kind != yaml.MappingNode:
		r.Problem(n, path, "must be a mapping of labels to values, not "+yamlform.Kind(n), hint)
		return nil
	case len(n.Content)/2 > maxRunnerLabels:
		r.Problem(n, path, fmt.Sprintf("has %d labels, more than %d", len(n.Content)/2, maxRunnerLabels), "")
		return nil
	}
	labels := make(map[string]string, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], yamlform.Resolve(n.Content[i+1])
		at := path + "." + cmp.Or(key.Value, "?")
		_, again := labels[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode || !runnerLabelKey.MatchString(key.Value):
			r.Problem(key, path, yamlform.Quoted(key.Value)+" is not a label", "a label has 3 to 65 of A-Z a-z 0-9 . _ - and begins with a letter, a digit or _")
		case again:
			r.Problem(key, at, "is set twice", "remove one of them")
		case value.Kind != yaml.ScalarNode || value.ShortTag() == "!!null":
			r.Problem(value, at, "must be one value, not "+yamlform.Kind(value), hint)
		case !runnerLabelValue.MatchString(value.Value):
			r.Problem(value, at, yamlform.Quoted(value.Value)+" is not a label's value", "it has 1 to 256 of A-Z a-z 0-9 . _ -")
		default:
			labels[key.Value] = value.Value
		}
	}
	return labels
}

// As in the agents' Hello.
var (
	labelKey   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$`)
	labelValue = regexp.MustCompile(`^[A-Za-z0-9._-]{0,63}$`)
)

// selector reads labels. Their keys are free, so it does not use mapping.
func (r *reader) selector(n *yaml.Node, path string) registry.Selector {
	n = yamlform.Resolve(n)
	const hint = "write labels and their values, for example {os: linux}"
	switch {
	case n.Kind != yaml.MappingNode:
		r.Problem(n, path, "must be a mapping of labels to values, not "+yamlform.Kind(n), hint)
		return nil
	case len(n.Content)/2 > maxLabels:
		r.Problem(n, path, fmt.Sprintf("has %d labels, more than %d", len(n.Content)/2, maxLabels), "")
		return nil
	}
	labels := registry.Selector{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], yamlform.Resolve(n.Content[i+1])
		at := path + "." + cmp.Or(key.Value, "?")
		_, again := labels[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode || !labelKey.MatchString(key.Value):
			r.Problem(key, path, yamlform.Quoted(key.Value)+" is not a label",
				"a label has 1 to 63 of A-Z a-z 0-9 . _ / - and begins and ends with a letter or digit")
		case again:
			r.Problem(key, at, "is set twice", "a label has one value; for either of two values make two runners")
		case value.Kind != yaml.ScalarNode:
			r.Problem(value, at, "must be one value, not "+yamlform.Kind(value), hint)
		case value.ShortTag() == "!!null":
			r.Problem(value, at, "has no value", `write "" for a label that must be there and empty`)
		case !labelValue.MatchString(value.Value):
			r.Problem(value, at, yamlform.Quoted(value.Value)+" is not a label's value", "it has at most 63 of A-Z a-z 0-9 . _ -; labels are compared for equality only")
		default:
			labels[key.Value] = value.Value
		}
	}
	return labels
}
