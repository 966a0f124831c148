package config

import (
	"cmp"
	"fmt"
	"regexp"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/controlplane/registry"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

// Limits of a runner's settings. GitLab gives a job a month at most.
const (
	maxVariables = 1000
	maxFlags     = 200
	longestLimit = 30 * 24 * time.Hour
)

// settings adds the keys of what a runner asks of its jobs; the names are gitlab-runner's.
func (r *reader) settings(known yamlform.Fields, s *registry.Settings) {
	script := func(to *string) func(*yaml.Node, string) {
		return func(n *yaml.Node, p string) { *to = r.script(n, p) }
	}
	limit := func(to *time.Duration) func(*yaml.Node, string) {
		return func(n *yaml.Node, p string) { *to = r.Duration(n, p, time.Second, longestLimit) }
	}
	known["environment"] = func(n *yaml.Node, p string) { s.Environment = r.environment(n, p) }
	known["pre_get_sources_script"] = script(&s.PreGetSourcesScript)
	known["post_get_sources_script"] = script(&s.PostGetSourcesScript)
	known["pre_build_script"] = script(&s.PreBuildScript)
	known["post_build_script"] = script(&s.PostBuildScript)
	known["clone_url"] = func(n *yaml.Node, p string) { s.CloneURL = r.url(n, p) }
	known["debug_trace_disabled"] = func(n *yaml.Node, p string) { s.DebugTraceDisabled = r.Boolean(n, p) }
	known["feature_flags"] = func(n *yaml.Node, p string) { s.FeatureFlags = r.featureFlags(n, p) }
	known["prepare_timeout"] = limit(&s.PrepareTimeout)
	known["get_sources_timeout"] = limit(&s.GetSourcesTimeout)
	known["artifact"] = func(n *yaml.Node, p string) {
		r.Mapping(n, p, yamlform.Fields{
			"upload_timeout":          limit(&s.ArtifactUploadTimeout),
			"response_header_timeout": limit(&s.ArtifactResponseHeaderTimeout),
		})
	}
	known["cache"] = func(n *yaml.Node, p string) { s.Cache = r.cache(n, p) }
}

// script reads a script of the runner's.
func (r *reader) script(n *yaml.Node, path string) string {
	text, ok := r.Text(n, path)
	if ok && strings.ContainsRune(text, 0) {
		r.Problem(yamlform.Resolve(n), path, "has a NUL byte in it, which no shell can be given", "")
		return ""
	}
	return text
}

var flagName = regexp.MustCompile(`^FF_[A-Z0-9_]{1,120}$`)

// featureFlags reads flags. Which there are is the jobs' affair: they say in their traces what they cannot do.
func (r *reader) featureFlags(n *yaml.Node, path string) map[string]bool {
	n = yamlform.Resolve(n)
	const hint = "write flags and whether they are on, for example {FF_SCRIPT_SECTIONS: true}"
	switch {
	case n.Kind != yaml.MappingNode:
		r.Problem(n, path, "must be a mapping of flags to true or false, not "+yamlform.Kind(n), hint)
		return nil
	case len(n.Content)/2 > maxFlags:
		r.Problem(n, path, fmt.Sprintf("has %d flags, more than %d", len(n.Content)/2, maxFlags), "")
		return nil
	}
	flags := make(map[string]bool, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		_, again := flags[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode || !flagName.MatchString(key.Value):
			r.Problem(key, path, yamlform.Quoted(key.Value)+" is not the name of a feature flag", "they begin with FF_; "+hint)
		case again:
			r.Problem(key, path+"."+key.Value, "is set twice", "remove one of them")
		default:
			flags[key.Value] = r.Boolean(value, path+"."+key.Value)
		}
	}
	return flags
}

const environmentHint = "write a list of KEY=value, or a mapping of keys to values"

// environment reads variables: gitlab-runner's list of KEY=value, a list of variables as GitLab's API has them, or a
// mapping.
func (r *reader) environment(n *yaml.Node, path string) []runnerapi.Variable {
	n = yamlform.Resolve(n)
	e := environment{reader: r, path: path, seen: map[string]int{}}
	count := len(n.Content)
	if n.Kind == yaml.MappingNode {
		count /= 2
	}
	switch {
	case count > maxVariables:
		r.Problem(n, path, fmt.Sprintf("has %d variables, more than %d", count, maxVariables), "")
	case n.Kind == yaml.SequenceNode:
		for i, item := range n.Content {
			e.item(yamlform.Resolve(item), fmt.Sprintf("%s[%d]", path, i))
		}
	case n.Kind == yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			at := path + "." + cmp.Or(n.Content[i].Value, "?")
			e.add(n.Content[i], at, runnerapi.Variable{Key: n.Content[i].Value, Value: e.value(n.Content[i+1], at)})
		}
	default:
		r.Problem(n, path, "must be a list or a mapping, not "+yamlform.Kind(n), environmentHint)
	}
	return e.variables
}

// environment gathers variables. Values are never shown: they may be secrets.
type environment struct {
	*reader
	path      string
	seen      map[string]int // lines of keys
	variables []runnerapi.Variable
}

func (e *environment) item(n *yaml.Node, path string) {
	if n.Kind == yaml.MappingNode {
		var v runnerapi.Variable
		named := false
		e.Mapping(n, path, yamlform.Fields{
			"key":    func(n *yaml.Node, p string) { v.Key, named = e.Text(n, p) },
			"value":  func(n *yaml.Node, p string) { v.Value = e.value(n, p) },
			"file":   func(n *yaml.Node, p string) { v.File = e.Boolean(n, p) },
			"masked": func(n *yaml.Node, p string) { v.Masked = e.Boolean(n, p) },
			"raw":    func(n *yaml.Node, p string) { v.Raw = e.Boolean(n, p) },
		})
		if v.Masked {
			e.inline(n, secret{noun: "a masked variable"})
		}
		switch {
		case named:
			e.add(n, path, v)
		case yamlform.Value(n, "key") == nil:
			e.Problem(n, path+".key", "is missing", environmentHint)
		}
		return
	}
	name, text, ok := strings.Cut(n.Value, "=")
	if n.Kind != yaml.ScalarNode || !ok {
		e.Problem(n, path, "is not KEY=value", environmentHint)
		return
	}
	if strings.ContainsRune(text, 0) {
		e.Problem(n, path, "the value has a NUL byte in it, which no process can be given", "")
		return
	}
	e.add(n, path, runnerapi.Variable{Key: name, Value: text})
}

func (e *environment) value(n *yaml.Node, path string) string {
	n = yamlform.Resolve(n)
	switch {
	case n.Kind != yaml.ScalarNode:
		e.Problem(n, path, "must be text, not "+yamlform.Kind(n), "")
	case n.ShortTag() == "!!null":
		e.Problem(n, path, "has no value", `write "" for a variable that is empty`)
	case strings.ContainsRune(n.Value, 0):
		e.Problem(n, path, "has a NUL byte in it, which no process can be given", "")
	default:
		return n.Value
	}
	return ""
}

func (e *environment) add(at *yaml.Node, path string, v runnerapi.Variable) {
	line, again := e.seen[v.Key]
	switch {
	case !envName.MatchString(v.Key):
		e.Problem(at, path, yamlform.Quoted(v.Key)+" is not the name of a variable", "it has letters, digits and _ and does not begin with a digit")
	case again:
		e.Problem(at, path, fmt.Sprintf("%s is set twice, first in line %d", v.Key, line), "remove one of them")
	default:
		e.seen[v.Key] = at.Line
		e.variables = append(e.variables, v)
	}
}
