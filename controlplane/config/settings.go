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
)

// Limits of a runner's settings. GitLab gives a job a month at most.
const (
	maxVariables = 1000
	maxFlags     = 200
	longestLimit = 30 * 24 * time.Hour
)

// settings adds the keys of what a runner asks of its jobs; the names are gitlab-runner's.
func (r *reader) settings(known fields, s *registry.Settings) {
	script := func(to *string) func(*yaml.Node, string) {
		return func(n *yaml.Node, p string) { *to = r.script(n, p) }
	}
	limit := func(to *time.Duration) func(*yaml.Node, string) {
		return func(n *yaml.Node, p string) { *to = r.duration(n, p, time.Second, longestLimit) }
	}
	known["environment"] = func(n *yaml.Node, p string) { s.Environment = r.environment(n, p) }
	known["pre_get_sources_script"] = script(&s.PreGetSourcesScript)
	known["post_get_sources_script"] = script(&s.PostGetSourcesScript)
	known["pre_build_script"] = script(&s.PreBuildScript)
	known["post_build_script"] = script(&s.PostBuildScript)
	known["clone_url"] = func(n *yaml.Node, p string) { s.CloneURL = r.url(n, p) }
	known["debug_trace_disabled"] = func(n *yaml.Node, p string) { s.DebugTraceDisabled = r.boolean(n, p) }
	known["feature_flags"] = func(n *yaml.Node, p string) { s.FeatureFlags = r.featureFlags(n, p) }
	known["prepare_timeout"] = limit(&s.PrepareTimeout)
	known["get_sources_timeout"] = limit(&s.GetSourcesTimeout)
	known["artifact"] = func(n *yaml.Node, p string) {
		r.mapping(n, p, fields{
			"upload_timeout":          limit(&s.ArtifactUploadTimeout),
			"response_header_timeout": limit(&s.ArtifactResponseHeaderTimeout),
		})
	}
	known["cache"] = func(n *yaml.Node, p string) { s.Cache = r.cache(n, p) }
}

// script reads a script of the runner's.
func (r *reader) script(n *yaml.Node, path string) string {
	text, ok := r.text(n, path)
	if ok && strings.ContainsRune(text, 0) {
		r.problem(resolve(n), path, "has a NUL byte in it, which no shell can be given", "")
		return ""
	}
	return text
}

var flagName = regexp.MustCompile(`^FF_[A-Z0-9_]{1,120}$`)

// featureFlags reads flags. Which there are is the jobs' affair: they say in their traces what they cannot do.
func (r *reader) featureFlags(n *yaml.Node, path string) map[string]bool {
	n = resolve(n)
	const hint = "write flags and whether they are on, for example {FF_SCRIPT_SECTIONS: true}"
	switch {
	case n.Kind != yaml.MappingNode:
		r.problem(n, path, "must be a mapping of flags to true or false, not "+kind(n), hint)
		return nil
	case len(n.Content)/2 > maxFlags:
		r.problem(n, path, fmt.Sprintf("has %d flags, more than %d", len(n.Content)/2, maxFlags), "")
		return nil
	}
	flags := make(map[string]bool, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		_, again := flags[key.Value]
		switch {
		case key.Kind != yaml.ScalarNode || !flagName.MatchString(key.Value):
			r.problem(key, path, quoted(key.Value)+" is not the name of a feature flag", "they begin with FF_; "+hint)
		case again:
			r.problem(key, path+"."+key.Value, "is set twice", "remove one of them")
		default:
			flags[key.Value] = r.boolean(value, path+"."+key.Value)
		}
	}
	return flags
}

const environmentHint = "write a list of KEY=value, or a mapping of keys to values"

// environment reads variables: gitlab-runner's list of KEY=value, a list of variables as GitLab's API has them, or a
// mapping.
func (r *reader) environment(n *yaml.Node, path string) []runnerapi.Variable {
	n = resolve(n)
	e := environment{reader: r, path: path, seen: map[string]int{}}
	count := len(n.Content)
	if n.Kind == yaml.MappingNode {
		count /= 2
	}
	switch {
	case count > maxVariables:
		r.problem(n, path, fmt.Sprintf("has %d variables, more than %d", count, maxVariables), "")
	case n.Kind == yaml.SequenceNode:
		for i, item := range n.Content {
			e.item(resolve(item), fmt.Sprintf("%s[%d]", path, i))
		}
	case n.Kind == yaml.MappingNode:
		for i := 0; i+1 < len(n.Content); i += 2 {
			at := path + "." + cmp.Or(n.Content[i].Value, "?")
			e.add(n.Content[i], at, runnerapi.Variable{Key: n.Content[i].Value, Value: e.value(n.Content[i+1], at)})
		}
	default:
		r.problem(n, path, "must be a list or a mapping, not "+kind(n), environmentHint)
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
		e.mapping(n, path, fields{
			"key":    func(n *yaml.Node, p string) { v.Key, named = e.text(n, p) },
			"value":  func(n *yaml.Node, p string) { v.Value = e.value(n, p) },
			"file":   func(n *yaml.Node, p string) { v.File = e.boolean(n, p) },
			"masked": func(n *yaml.Node, p string) { v.Masked = e.boolean(n, p) },
			"raw":    func(n *yaml.Node, p string) { v.Raw = e.boolean(n, p) },
		})
		if v.Masked {
			e.inline(n, secret{noun: "a masked variable"})
		}
		switch {
		case named:
			e.add(n, path, v)
		case value(n, "key") == nil:
			e.problem(n, path+".key", "is missing", environmentHint)
		}
		return
	}
	name, text, ok := strings.Cut(n.Value, "=")
	if n.Kind != yaml.ScalarNode || !ok {
		e.problem(n, path, "is not KEY=value", environmentHint)
		return
	}
	if strings.ContainsRune(text, 0) {
		e.problem(n, path, "the value has a NUL byte in it, which no process can be given", "")
		return
	}
	e.add(n, path, runnerapi.Variable{Key: name, Value: text})
}

func (e *environment) value(n *yaml.Node, path string) string {
	n = resolve(n)
	switch {
	case n.Kind != yaml.ScalarNode:
		e.problem(n, path, "must be text, not "+kind(n), "")
	case n.ShortTag() == "!!null":
		e.problem(n, path, "has no value", `write "" for a variable that is empty`)
	case strings.ContainsRune(n.Value, 0):
		e.problem(n, path, "has a NUL byte in it, which no process can be given", "")
	default:
		return n.Value
	}
	return ""
}

func (e *environment) add(at *yaml.Node, path string, v runnerapi.Variable) {
	line, again := e.seen[v.Key]
	switch {
	case !envName.MatchString(v.Key):
		e.problem(at, path, quoted(v.Key)+" is not the name of a variable", "it has letters, digits and _ and does not begin with a digit")
	case again:
		e.problem(at, path, fmt.Sprintf("%s is set twice, first in line %d", v.Key, line), "remove one of them")
	default:
		e.seen[v.Key] = at.Line
		e.variables = append(e.variables, v)
	}
}
