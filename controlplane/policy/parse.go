package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/controlplane/placement"
	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

// reading is one text on its way to a Policy.
type reading struct {
	*yamlform.Reader
	granted map[string]bool // classes that some node grants
}

func (r *reading) policy(root *yaml.Node, path string) *Policy {
	p := Default()
	p.Places = nil
	r.granted = make(map[string]bool)
	if root.Kind == yaml.MappingNode { // others refer to them, wherever they stand
		if n := yamlform.Value(root, "classes"); n != nil {
			p.Classes = r.classes(n, strings.TrimPrefix(path+".classes", "."))
		}
	}
	var rules *yaml.Node
	r.Mapping(root, path, yamlform.Fields{
		"share": func(n *yaml.Node, at string) {
			p.Mode = Mode(r.Choice(n, at, string(Fair), string(GitLab), string(FIFO)))
		},
		"ageing":         func(n *yaml.Node, at string) { p.Ageing = r.Duration(n, at, time.Second, longest) },
		"class_patience": func(n *yaml.Node, at string) { p.ClassPatience = r.Duration(n, at, time.Second, longest) },
		"credit":         func(n *yaml.Node, at string) { p.Credit = r.Duration(n, at, time.Second, longest) },
		"half_life":      func(n *yaml.Node, at string) { p.HalfLife = r.Duration(n, at, time.Second, longest) },
		"first_guess":    func(n *yaml.Node, at string) { p.FirstGuess = r.Duration(n, at, time.Second, longest) },
		"classes":        func(*yaml.Node, string) {},
		"projects":       func(n *yaml.Node, at string) { r.Mapping(n, at, r.share(&p.Projects)); r.checkShare(n, at, p.Projects) },
		"groups":         func(n *yaml.Node, at string) { r.Mapping(n, at, r.share(&p.Groups)); r.checkShare(n, at, p.Groups) },
		"nodes":          func(n *yaml.Node, at string) { p.Nodes = r.nodes(n, at, p.Classes) },
		"runners":        func(n *yaml.Node, at string) { p.Runners = r.runners(n, at) },
		"placement":      func(n *yaml.Node, at string) { p.Places = r.places(n, at) },
		"rules":          func(n *yaml.Node, _ string) { rules = n },
	})
	if rules != nil { // after the nodes, which grant classes
		p.rules = r.rules(rules, strings.TrimPrefix(path+".rules", "."), p.Classes)
	}
	return p
}

var className = regexp.MustCompile(`^[a-z][a-z0-9_-]{0,31}$`)

func (r *reading) classes(n *yaml.Node, path string) []string {
	var classes []string
	r.List(n, path, maxClasses, func(item *yaml.Node, at string) {
		name, ok := r.Text(item, at)
		switch {
		case !ok:
		case !className.MatchString(name):
			r.Problem(item, at, yamlform.Quoted(name)+" cannot be the name of a class", "at most 32 of a-z 0-9 _ -, beginning with a letter")
		case slices.Contains(classes, name):
			r.Problem(item, at, yamlform.Quoted(name)+" is there twice", "remove one of them")
		default:
			classes = append(classes, name)
		}
	})
	if !slices.Contains(classes, ClassNormal) {
		r.Problem(yamlform.Resolve(n), path, "does not have the class normal", "list it where jobs without a class belong: what stands before it goes first, what stands behind it last")
		classes = append(classes, ClassNormal)
	}
	return classes
}

// share are the keys of a Share.
func (r *reading) share(s *Share) yamlform.Fields {
	slots := func(to *int) func(*yaml.Node, string) {
		return func(n *yaml.Node, at string) {
			if yamlform.Resolve(n).Value == "none" {
				*to = Unlimited
			} else if v, ok := r.Number(n, at, 1, maxSlots, "none takes away what the defaults say"); ok {
				*to = int(v)
			}
		}
	}
	return yamlform.Fields{
		"weight": func(n *yaml.Node, at string) {
			if v, ok := r.Number(n, at, 1, maxWeight, ""); ok {
				s.Weight = int(v)
			}
		},
		"guaranteed": slots(&s.Guaranteed),
		"soft_quota": slots(&s.Soft),
		"hard_quota": slots(&s.Hard),
		"paused":     func(n *yaml.Node, at string) { s.Paused = r.Boolean(n, at) },
	}
}

func (r *reading) checkShare(n *yaml.Node, path string, s Share) {
	switch {
	case s.Hard > 0 && s.Guaranteed > s.Hard:
		r.Problem(n, path, fmt.Sprintf("guaranteed (%d) is more than hard_quota (%d)", s.Guaranteed, s.Hard), "a quota always holds: lower the one or raise the other")
	case s.Hard > 0 && s.Soft > s.Hard:
		r.Problem(n, path, fmt.Sprintf("soft_quota (%d) is more than hard_quota (%d), so it has no effect", s.Soft, s.Hard), "lower the one or raise the other")
	case s.Soft > 0 && s.Guaranteed > s.Soft:
		r.Problem(n, path, fmt.Sprintf("guaranteed (%d) is more than soft_quota (%d)", s.Guaranteed, s.Soft), "lower the one or raise the other")
	}
}

func (r *reading) nodes(n *yaml.Node, path string, classes []string) []Node {
	var nodes []Node
	seen := make(map[[2]string]string)
	r.List(n, path, maxNodes, func(item *yaml.Node, at string) {
		var node Node
		known := r.share(&node.Share)
		known["gitlab"] = func(n *yaml.Node, at string) { node.GitLab = r.address(n, at) }
		known["path"] = func(n *yaml.Node, at string) { node.Path = r.path(n, at) }
		known["classes"] = func(n *yaml.Node, at string) {
			r.List(n, at, maxClasses, func(item *yaml.Node, at string) {
				if name := r.class(item, at, classes); name != "" {
					node.Classes = append(node.Classes, name)
					r.granted[name] = true
				}
			})
		}
		if !r.Mapping(item, at, known) {
			return
		}
		if node.GitLab == "" && node.Path == "" {
			r.Problem(item, at, "names neither a path nor a gitlab", "say which group, project or GitLab is meant, for example path: group/project")
			return
		}
		r.checkShare(item, at, node.Share)
		key := [2]string{node.GitLab, node.Path}
		if first, again := seen[key]; again {
			r.Problem(item, at, "is the same node as "+first, "put them together")
			return
		}
		seen[key] = at
		nodes = append(nodes, node)
	})
	return nodes
}

func (r *reading) address(n *yaml.Node, path string) string {
	text, ok := r.Text(n, path)
	if !ok {
		return ""
	}
	if !strings.HasPrefix(text, "https://") && !strings.HasPrefix(text, "http://") {
		r.Problem(n, path, yamlform.Quoted(text)+" is no address of a GitLab", "write it like in the runners' url, for example https://gitlab.example.com")
		return ""
	}
	return strings.TrimRight(text, "/")
}

func (r *reading) path(n *yaml.Node, path string) string {
	text, ok := r.Text(n, path)
	if !ok {
		return ""
	}
	trimmed := strings.Trim(text, "/")
	if trimmed == "" || strings.Contains(trimmed, "//") || strings.ContainsAny(trimmed, "*? ") || strings.Contains(trimmed, "://") {
		r.Problem(n, path, yamlform.Quoted(text)+" is no path of a group or project", "write it like in GitLab's addresses, for example group/subgroup/project; patterns are not possible")
		return ""
	}
	return strings.ToLower(trimmed)
}

func (r *reading) class(n *yaml.Node, path string, classes []string) string {
	name, ok := r.Text(n, path)
	switch {
	case !ok:
		return ""
	case !slices.Contains(classes, name):
		r.Problem(n, path, yamlform.Quoted(name)+" is no class", "known classes: "+strings.Join(classes, ", ")+"; add it to classes")
		return ""
	}
	return name
}

func (r *reading) runners(n *yaml.Node, path string) []Runner {
	var runners []Runner
	r.List(n, path, maxRunners, func(item *yaml.Node, at string) {
		x := Runner{Hold: DefaultHold, AheadFor: maxAhead}
		known := r.share(&x.Share)
		known["name"] = func(n *yaml.Node, at string) { x.Name, _ = r.Text(n, at) }
		known["group"] = func(n *yaml.Node, at string) { x.Group = r.path(n, at) }
		known["project"] = func(n *yaml.Node, at string) { x.Project = r.path(n, at) }
		known["hold"] = func(n *yaml.Node, at string) {
			if v, ok := r.Number(n, at, 1, maxHold, ""); ok {
				x.Hold = int(v)
			}
		}
		known["claim_ahead"] = func(n *yaml.Node, at string) {
			r.Mapping(n, at, yamlform.Fields{
				"jobs": func(n *yaml.Node, at string) {
					if v, ok := r.Number(n, at, 0, maxHold, ""); ok {
						x.Ahead = int(v)
					}
				},
				"for": func(n *yaml.Node, at string) { x.AheadFor = r.Duration(n, at, time.Second, maxAhead) },
			})
		}
		if !r.Mapping(item, at, known) {
			return
		}
		switch i := slices.IndexFunc(runners, func(other Runner) bool { return other.Name == x.Name }); {
		case x.Name == "" && yamlform.Value(item, "name") == nil:
			r.Problem(item, at+".name", "is missing", "name a runner of switchyard.yaml")
		case x.Name == "":
		case x.Group != "" && x.Project != "":
			r.Problem(item, at, "has a group and a project", "a runner is registered for one of them")
		case i >= 0:
			r.Problem(item, at, fmt.Sprintf("%s is there already, as %s[%d]", x.Name, path, i), "put them together")
		default:
			r.checkShare(item, at, x.Share)
			runners = append(runners, x)
		}
	})
	return runners
}

func (r *reading) places(n *yaml.Node, path string) []Place {
	var places []Place
	r.List(n, path, maxRunners, func(item *yaml.Node, at string) {
		x := Place{Strategy: placement.Spread, Warm: true}
		if !r.Mapping(item, at, yamlform.Fields{
			"runners": func(n *yaml.Node, at string) {
				r.List(n, at, maxRunners, func(item *yaml.Node, at string) {
					if name, ok := r.Text(item, at); ok {
						x.Runners = append(x.Runners, name)
					}
				})
			},
			"strategy": func(n *yaml.Node, at string) {
				x.Strategy = placement.Strategy(r.Choice(n, at, string(placement.Spread), string(placement.Pack)))
			},
			"warm":      func(n *yaml.Node, at string) { x.Warm = r.Boolean(n, at) },
			"warm_wait": func(n *yaml.Node, at string) { x.WarmWait = r.Duration(n, at, 0, 5*time.Minute) },
		}) {
			return
		}
		if x.WarmWait > 0 && !x.Warm {
			r.Problem(item, at, "has a warm_wait, but warm is false", "remove one of them")
		}
		if len(places) > 0 && len(places[len(places)-1].Runners) == 0 {
			r.Warn(item, at, "has no effect: the entry before it is for all runners", "put the entry without runners last")
		}
		places = append(places, x)
	})
	return places
}

func (r *reading) rules(n *yaml.Node, path string, classes []string) []rule {
	var rules []rule
	r.List(n, path, maxRules, func(item *yaml.Node, at string) {
		x := rule{name: at, class: ClassNormal}
		var condition, class *yaml.Node
		if !r.Mapping(item, at, yamlform.Fields{
			"name":  func(n *yaml.Node, at string) { x.name, _ = r.Text(n, at) },
			"when":  func(n *yaml.Node, at string) { condition = n; x.when = r.condition(n, at) },
			"class": func(n *yaml.Node, at string) { class = n; x.class = r.class(n, at, classes) },
			"priority": func(n *yaml.Node, at string) {
				if v, ok := r.Number(n, at, -maxPriority, maxPriority, "the greater goes first; 0 is that of jobs without a rule"); ok {
					x.priority = int(v)
				}
			},
		}) {
			return
		}
		if class == nil && yamlform.Value(item, "priority") == nil {
			r.Problem(item, at, "gives neither a class nor a priority", "say what jobs get for which it holds")
		}
		if class != nil && x.class != "" && needsGrant(classes, x.class) && !r.granted[x.class] {
			r.Warn(class, at+".class", "is granted to nobody, so it has no effect", "list it in classes of a node: only jobs below such nodes may have it")
		}
		if len(rules) > 0 && rules[len(rules)-1].when == nil {
			r.Warn(item, at, "is never asked: the rule before it holds for all jobs", "put the rule without when last")
		}
		if condition == nil || x.when != nil {
			rules = append(rules, x)
		}
	})
	return rules
}

func (r *reading) condition(n *yaml.Node, path string) cel.Program {
	text, ok := r.Text(n, path)
	if !ok {
		return nil
	}
	program, err := compile(text)
	if err != nil {
		r.Problem(n, path, "is no condition: "+err.Error(), "it is written in CEL, over "+factNames+`; for example protected && environment == "production"`)
		return nil
	}
	return program
}
