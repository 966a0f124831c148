package policy

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/allocation"
	"github.com/switchyard-ci/switchyard/controlplane/placement"
	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

const everything = `
share: fair
ageing: 5m
credit: 2m
half_life: 30m
first_guess: 1m
classes: [urgent, normal, background]
class_patience: 3m
projects: {hard_quota: 20}
groups: {weight: 2}
nodes:
  - path: Group/Platform
    weight: 3
    guaranteed: 2
    soft_quota: 8
    hard_quota: 10
    classes: [urgent]
  - gitlab: https://gitlab.example.com/
    path: group/paused
    paused: true
    hard_quota: none
  - gitlab: https://other.example.com
    weight: 2
runners:
  - {name: shared, hold: 5, claim_ahead: {jobs: 2, for: 1m}}
  - {name: big, group: group/platform, weight: 2, hard_quota: 4}
placement:
  - {runners: [big], strategy: pack, warm_wait: 10s}
  - {strategy: spread, warm: false}
rules:
  - name: production
    when: protected && environment.startsWith("production")
    class: urgent
    priority: 100
  - name: schedules
    when: source == "schedule"
    class: background
    priority: -10
  - {name: lint, when: 'job.matches("^lint")', priority: -1}
`

func TestEverythingThatAPolicyCanSay(t *testing.T) {
	p, warnings, err := Parse("policy.yaml", []byte(everything))
	require.NoError(t, err)
	require.Empty(t, texts(warnings))
	require.Equal(t, Fair, p.Mode)
	require.Equal(t, []time.Duration{5 * time.Minute, 3 * time.Minute, 2 * time.Minute, 30 * time.Minute, time.Minute},
		[]time.Duration{p.Ageing, p.ClassPatience, p.Credit, p.HalfLife, p.FirstGuess})
	require.Equal(t, Share{Hard: 20}, p.Projects)
	require.Equal(t, Share{Weight: 2}, p.Groups)
	require.Equal(t, []Node{
		{Path: "group/platform", Share: Share{Weight: 3, Guaranteed: 2, Soft: 8, Hard: 10}, Classes: []string{"urgent"}},
		{GitLab: "https://gitlab.example.com", Path: "group/paused", Share: Share{Hard: Unlimited, Paused: true}},
		{GitLab: "https://other.example.com", Share: Share{Weight: 2}},
	}, p.Nodes)
	require.Equal(t, Runner{Name: "shared", Hold: 5, Ahead: 2, AheadFor: time.Minute}, p.Runner("shared"))
	require.Equal(t, Runner{Name: "big", Share: Share{Weight: 2, Hard: 4}, Group: "group/platform", Hold: 3, AheadFor: 5 * time.Minute}, p.Runner("big"))
	require.Equal(t, Runner{Name: "unknown", Hold: 3}, p.Runner("unknown"))
	require.Equal(t, Place{Runners: []string{"big"}, Strategy: placement.Pack, Warm: true, WarmWait: 10 * time.Second}, p.Place("big"))
	require.Equal(t, Place{Strategy: placement.Spread}, p.Place("shared"))

	for want, facts := range map[Ranking]Facts{
		{Class: "urgent", Priority: 100, Rule: "production"}:    {Protected: true, Environment: "production/eu", Source: "schedule"},
		{Class: "background", Priority: -10, Rule: "schedules"}: {Environment: "production", Source: "schedule"},
		{Class: "normal", Priority: -1, Rule: "lint"}:           {Job: "lint go"},
		{Class: "normal"}: {Job: "golint", Protected: true},
	} {
		got, err := p.Rank(facts)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
}

func texts(problems []yamlform.Problem) []string {
	list := make([]string, len(problems))
	for i, p := range problems {
		list[i] = p.String()
	}
	return list
}

// A policy that is part of another file tells its mistakes with their places there.
func TestReadAPartOfAFile(t *testing.T) {
	form, root, err := yamlform.Parse("f", []byte("a: 1\nmy:\n  classes: [normal, 7]\n  rules: [{when: nonsense}]\n  nodes: [{path: a, hard_quota: 2, guaranteed: 1}]\n"))
	require.NoError(t, err)
	p := Read(form, yamlform.Value(root, "my"), "my")
	require.ErrorContains(t, form.Err(), `f:3:21: my.classes[1]: "7" cannot be the name of a class`)
	require.ErrorContains(t, form.Err(), "f:4:11: my.rules[0]: gives neither a class nor a priority")
	require.ErrorContains(t, form.Err(), "f:4:18: my.rules[0].when: is no condition")
	require.Equal(t, []Node{{Path: "a", Share: Share{Hard: 2, Guaranteed: 1}}}, p.Nodes)

	fifo := p.WithMode(FIFO)
	require.Equal(t, FIFO, fifo.Mode)
	require.Equal(t, Fair, p.Mode)
	require.Equal(t, p.Nodes, fifo.Nodes)
}

func TestAnEmptyPolicyIsTheDefault(t *testing.T) {
	p, warnings, err := Parse("p", []byte("{}"))
	require.NoError(t, err)
	require.Empty(t, warnings)
	d := Default()
	d.Places = nil
	require.Equal(t, d, p)
	require.Equal(t, Default().Place("any"), p.Place("any"))
	got, err := p.Rank(Facts{})
	require.NoError(t, err)
	require.Equal(t, Ranking{Class: ClassNormal}, got)
}

func TestMistakesAreToldWithTheirPlaces(t *testing.T) {
	for text, want := range map[string]string{
		"":                          "p: it is empty; {} is the policy that leaves everything to the defaults",
		"a: [":                      "p:1: did not find expected node content; the file must be YAML",
		"- 1":                       "p:1:1: must be a mapping of keys to values, not a list; known keys: ",
		"shares: fair":              `p:1:1: shares: unknown key; did you mean "share"?`,
		"share: drf":                `p:1:8: share: "drf" is unknown; available: fair, gitlab, fifo`,
		"ageing: 5":                 "p:1:9: ageing: must be a time with its unit, not the number 5; write it like",
		"half_life: 9000h":          "p:1:12: half_life: 9000h0m0s is not between 1s and 720h0m0s",
		"classes: [urgent]":         "p:1:10: classes: does not have the class normal; list it where jobs without a class belong",
		"classes: [Normal]":         `p:1:11: classes[0]: "Normal" cannot be the name of a class`,
		"classes: [normal, normal]": `p:1:19: classes[1]: "normal" is there twice`,
		"projects: {weight: 0}":     "p:1:20: projects.weight: 0 is less than 1",
		"projects: {guaranteed: 3, hard_quota: 2}":      "p:1:11: projects: guaranteed (3) is more than hard_quota (2); a quota always holds",
		"projects: {soft_quota: 3, hard_quota: 2}":      "p:1:11: projects: soft_quota (3) is more than hard_quota (2)",
		"projects: {guaranteed: 3, soft_quota: 2}":      "p:1:11: projects: guaranteed (3) is more than soft_quota (2)",
		"nodes: [{weight: 2}]":                          "p:1:9: nodes[0]: names neither a path nor a gitlab",
		"nodes: [{path: a/*}]":                          `p:1:16: nodes[0].path: "a/*" is no path of a group or project`,
		"nodes: [{gitlab: example.com}]":                `p:1:18: nodes[0].gitlab: "example.com" is no address of a GitLab`,
		"nodes: [{path: a}, {path: A/}]":                "p:1:20: nodes[1]: is the same node as nodes[0]; put them together",
		"nodes: [{path: a, classes: [urgent]}]":         `p:1:29: nodes[0].classes[0]: "urgent" is no class; known classes: normal; add it to classes`,
		"nodes: {}":                                     "p:1:8: nodes: must be a list, not a mapping",
		"runners: [{hold: 3}]":                          "p:1:11: runners[0].name: is missing; name a runner of switchyard.yaml",
		"runners: [{name: a}, {name: a}]":               "p:1:22: runners[1]: a is there already, as runners[0]; put them together",
		"runners: [{name: a, claim_ahead: {for: 6m}}]":  "p:1:40: runners[0].claim_ahead.for: 6m0s is not between 1s and 5m0s",
		"runners: [{name: a, group: g, project: g/p}]":  "p:1:11: runners[0]: has a group and a project; a runner is registered for one of them",
		"groups: {hard_quota: nothing}":                 `p:1:22: groups.hard_quota: must be a whole number, not the text "nothing"; none takes away what the defaults say`,
		"placement: [{strategy: best}]":                 `p:1:24: placement[0].strategy: "best" is unknown; available: spread, pack`,
		"placement: [{warm: false, warm_wait: 1s}]":     "p:1:13: placement[0]: has a warm_wait, but warm is false",
		"rules: [{when: 'true'}]":                       "p:1:9: rules[0]: gives neither a class nor a priority",
		"rules: [{when: stage, priority: 1}]":           "p:1:16: rules[0].when: is no condition: it is of the type string, not true or false; it is written in CEL",
		"rules: [{when: 'stag == \"x\"', priority: 1}]": "p:1:16: rules[0].when: is no condition: column 1: undeclared reference to 'stag'",
		"rules: [{when: 'protected &&', priority: 1}]":  "p:1:16: rules[0].when: is no condition: column ",
		"rules: [{priority: 5000}]":                     "p:1:20: rules[0].priority: 5000 is more than 1000; the greater goes first",
		"rules: [{class: urgent}]":                      `p:1:17: rules[0].class: "urgent" is no class`,
	} {
		_, _, err := Parse("p", []byte(text))
		require.ErrorContains(t, err, want, text)
	}
	_, _, err := Parse("p", []byte("rules:\n  - priority: 1\n    when: |\n      protected ||\n        stag\n"))
	require.ErrorContains(t, err, "p:3:11: rules[0].when: is no condition: line 2, column 3: undeclared reference to 'stag'")
}

func TestAllMistakesAreToldTogether(t *testing.T) {
	_, _, err := Parse("p", []byte("share: x\nageing: y\nrules: [{when: z, priority: 1}]\n"))
	require.Len(t, err, 3)
}

func TestALongPolicy(t *testing.T) {
	_, _, err := Parse("p", []byte(strings.Repeat("#", MaxSize+1)))
	require.ErrorContains(t, err, "p: it has more than 1024 KiB")
}

func TestEntriesThatHaveNoEffect(t *testing.T) {
	_, warnings, err := Parse("p", []byte("rules: [{name: all, priority: 1}, {when: protected, priority: 2}]\nplacement: [{strategy: pack}, {runners: [a]}]\n"+
		"classes: [urgent, normal, later]\nnodes: [{path: a}]\n"))
	require.NoError(t, err)
	require.Equal(t, []string{
		"p:1:35: rules[1]: is never asked: the rule before it holds for all jobs; put the rule without when last",
		"p:2:31: placement[1]: has no effect: the entry before it is for all runners; put the entry without runners last",
	}, texts(warnings))
}

// A rule that cannot be evaluated does not keep the next from being asked.
func TestARuleThatTakesTooLong(t *testing.T) {
	searches := make([]string, 60)
	for i := range searches {
		searches[i] = fmt.Sprintf(`job.contains(job + "%d")`, i)
	}
	p, _, err := Parse("p", fmt.Appendf(nil, `
rules:
  - {name: expensive, when: '%s', priority: 1}
  - {name: next, when: 'stage == "deploy"', priority: 2}
`, strings.Join(searches, " || ")))
	require.NoError(t, err)
	got, err := p.Rank(Facts{Job: strings.Repeat("x", 20000), Stage: "deploy"})
	require.Equal(t, Ranking{Class: ClassNormal, Priority: 2, Rule: "next"}, got)
	require.ErrorContains(t, err, `rule "expensive": operation cancelled: actual cost limit exceeded`)
	got, err = p.Rank(Facts{Job: "short", Stage: "deploy"})
	require.NoError(t, err)
	require.Equal(t, "next", got.Rule)
}

// Nobody is kept from going last, so a class behind normal needs no grant.
func TestClassesThatNeedAGrant(t *testing.T) {
	p, warnings, err := Parse("p", []byte("classes: [urgent, normal, later]\nrules: [{class: urgent, when: protected}, {class: later}]\n"))
	require.NoError(t, err)
	require.Equal(t, []string{"p:2:17: rules[0].class: is granted to nobody, so it has no effect; list it in classes of a node: only jobs below such nodes may have it"}, texts(warnings))
	require.True(t, p.NeedsGrant("urgent"))
	require.False(t, p.NeedsGrant("normal"))
	require.False(t, p.NeedsGrant("later"))
}

func TestWhatAllocationIsGiven(t *testing.T) {
	p, _, err := Parse("p", []byte(everything))
	require.NoError(t, err)
	const one, other = "https://gitlab.example.com", "https://other.example.com"
	a := p.Allocation([]string{one, other})
	require.Equal(t, allocation.Rule{Weight: 3, Min: 2, Soft: 8, Hard: 10}, a.Nodes[one+"/group/platform"])
	require.Equal(t, a.Nodes[one+"/group/platform"], a.Nodes[other+"/group/platform"])
	require.Equal(t, allocation.Rule{Hard: allocation.Unlimited, Paused: true}, a.Nodes[one+"/group/paused"])
	require.NotContains(t, a.Nodes, other+"/group/paused")
	require.Equal(t, allocation.Rule{Weight: 2}, a.Nodes[other])
	require.Equal(t, allocation.Rule{Weight: 2, Hard: 4}, a.Runners["big"])
	require.Equal(t, allocation.Rule{Hard: 20}, a.Defaults.Project)
	require.Equal(t, allocation.Fair, a.Mode)

	for _, c := range []struct {
		class, project string
		want           int
		granted        bool
	}{
		{"urgent", "Group/Platform/app", 2, true},
		{"urgent", "group/platform", 2, true},
		{"urgent", "group/platforms", 1, false},
		{"normal", "any/project", 1, true},
		{"background", "any/project", 0, true},
	} {
		class, granted := p.Class(c.class, one, c.project)
		require.Equal(t, c.want, class, c)
		require.Equal(t, c.granted, granted, c)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(everything)
	f.Add("rules: [{when: 'protected', priority: 1}]")
	f.Add("nodes: &a [{path: *a}]")
	f.Fuzz(func(t *testing.T, text string) {
		p, _, err := Parse("p", []byte(text))
		if err != nil {
			return
		}
		r, _ := p.Rank(Facts{Project: "group/project", Ref: "main", Protected: true})
		require.Contains(t, p.Classes, r.Class)
		require.Contains(t, p.Classes, ClassNormal)
	})
}

func BenchmarkRank(b *testing.B) {
	p, _, err := Parse("policy.yaml", []byte(everything))
	require.NoError(b, err)
	f := Facts{Project: "group/project", Ref: "main", Job: "build", Stage: "build", Source: "push", User: "somebody"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := p.Rank(f); err != nil {
			b.Fatal(err)
		}
	}
}
