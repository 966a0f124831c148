package ciconfig

import (
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// layer is a list of variables in which the last of a key counts.
type layer map[string]Variable

func newLayer(variables []Variable) layer {
	l := make(layer, len(variables))
	for _, v := range variables {
		l[v.Key] = v
	}
	return l
}

// scope is what an expression sees: layers from the lowest precedence to the highest.
type scope struct {
	layers []layer
}

func (s *scope) variable(key string) (Variable, bool) {
	for _, l := range slices.Backward(s.layers) {
		if v, ok := l[key]; ok {
			return v, true
		}
	}
	return Variable{}, false
}

// lookup returns a value as it is written, with the variables inside it untouched: GitLab evaluates rules so.
func (s *scope) lookup(key string) (string, bool) {
	v, ok := s.variable(key)
	return v.Value, ok
}

// references returns the keys whose values may name other variables, sorted.
func (s *scope) references() []string {
	var keys []string
	for _, l := range s.layers {
		for k, v := range l {
			if strings.ContainsAny(v.Value, "$%") {
				keys = append(keys, k)
			}
		}
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// contextLayers are the parts of a scope that are equal for all jobs.
type contextLayers struct {
	predefined, project, pipeline layer
}

// globalScope is what `workflow:rules` see; without YAML variables, what `include` sees.
func (c *compiler) globalScope(variables []Variable) *scope {
	return &scope{layers: []layer{c.context.predefined, newLayer(variables), c.context.project, c.context.pipeline}}
}

// jobScope is what the rules of one job see.
func (c *compiler) jobScope(j *job, i instance, variables []Variable) *scope {
	own := layer{}
	set := func(key, value string) { own[key] = Variable{Key: key, Value: value, Public: true} }
	set("CI_JOB_NAME", i.name)
	set("CI_JOB_NAME_SLUG", slug(i.name))
	set("CI_JOB_GROUP_NAME", groupName(i.name))
	set("CI_JOB_STAGE", j.stage)
	set("CI_NODE_TOTAL", strconv.Itoa(max(1, i.total)))
	if i.total > 0 {
		set("CI_NODE_INDEX", strconv.Itoa(i.index))
	}
	if j.when == Manual || j.when == Delayed {
		set("CI_JOB_MANUAL", "true")
	}
	return &scope{layers: []layer{own, c.context.predefined, newLayer(variables), c.context.project, c.context.pipeline}}
}

var (
	notSlug     = regexp.MustCompile(`[^a-z0-9]`)
	groupSuffix = regexp.MustCompile(`(?:[\s:]+(?:\[.*\]|\d+[\s:/\\]+\d+)){1,3}\s*$`)
)

// slug is GitLab's form of a name for host names: lower case, at most 63 characters, only letters, digits and "-".
func slug(name string) string {
	s := notSlug.ReplaceAllString(strings.ToLower(name), "-")
	return strings.Trim(s[:min(len(s), 63)], "-")
}

// groupName is a job's name without what looks like a number or a matrix at its end ("test 1/3", "test: [a, b]").
func groupName(name string) string {
	return strings.TrimSpace(groupSuffix.ReplaceAllString(name, ""))
}

// mergeVariables returns base with over on top: a key of both keeps its place and gets the new value.
func mergeVariables(base, over []Variable) []Variable {
	if len(over) == 0 {
		return base
	}
	out := slices.Clone(base)
	at := make(map[string]int, len(base)+len(over))
	for i, v := range out {
		at[v.Key] = i
	}
	for _, v := range over {
		if i, ok := at[v.Key]; ok {
			out[i] = v
			continue
		}
		at[v.Key] = len(out)
		out = append(out, v)
	}
	return out
}
