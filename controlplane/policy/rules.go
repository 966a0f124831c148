package policy

import (
	"errors"
	"fmt"
	"strings"
	"sync"

	"cel.dev/cel-go/cel"
)

// Bounds of one rule's condition.
const (
	maxCondition = 4 << 10 // bytes
	maxDepth     = 40
	maxCost      = 10000 // steps of evaluation
)

// Facts are what rules know of a job. All of it is what GitLab says in the job's payload.
type Facts struct {
	GitLab      string // address
	Project     string // full path
	Ref         string // branch or tag
	Tag         string // the tag; empty for a branch
	Protected   bool   // the ref is protected
	Stage       string
	Job         string // name
	Environment string // CI_ENVIRONMENT_NAME; empty if the job deploys nowhere
	Source      string // CI_PIPELINE_SOURCE: push, schedule, merge_request_event, …
	User        string // login of who started the pipeline
	Runner      string // name of the runner that claimed the job
}

// Ranking is what the rules make of a job.
type Ranking struct {
	Class    string
	Priority int    // the greater goes first, inside the project's share
	Rule     string // name of the rule that said so; empty: none did
}

// rule is one entry of rules.
type rule struct {
	name     string
	when     cel.Program // nil: always
	class    string      // empty: ClassNormal
	priority int
}

// environment is what conditions are checked against. Making it takes milliseconds and it never changes.
var environment = sync.OnceValues(func() (*cel.Env, error) {
	return cel.NewEnv(
		cel.Variable("gitlab", cel.StringType),
		cel.Variable("project", cel.StringType),
		cel.Variable("ref", cel.StringType),
		cel.Variable("tag", cel.StringType),
		cel.Variable("protected", cel.BoolType),
		cel.Variable("stage", cel.StringType),
		cel.Variable("job", cel.StringType),
		cel.Variable("environment", cel.StringType),
		cel.Variable("source", cel.StringType),
		cel.Variable("user", cel.StringType),
		cel.Variable("runner", cel.StringType),
		cel.ParserExpressionSizeLimit(maxCondition),
		cel.ParserRecursionLimit(maxDepth),
		cel.RegexProgramSizeLimit(1000),
	)
})

const factNames = "gitlab, project, ref, tag, protected, stage, job, environment, source, user, runner"

func (f Facts) variables() map[string]any {
	return map[string]any{
		"gitlab": f.GitLab, "project": f.Project, "ref": f.Ref, "tag": f.Tag, "protected": f.Protected, "stage": f.Stage,
		"job": f.Job, "environment": f.Environment, "source": f.Source, "user": f.User, "runner": f.Runner,
	}
}

// compile checks a condition. The error says where in the condition the mistake is.
func compile(condition string) (cel.Program, error) {
	env, err := environment()
	if err != nil {
		return nil, fmt.Errorf("make the environment of conditions: %w", err)
	}
	ast, issues := env.Compile(condition)
	if issues.Err() != nil {
		e := issues.Errors()[0]
		line := ""
		if strings.Contains(condition, "\n") {
			line = fmt.Sprintf("line %d, ", e.Location.Line())
		}
		return nil, fmt.Errorf("%scolumn %d: %s", line, e.Location.Column()+1, e.Message)
	}
	if !ast.OutputType().IsExactType(cel.BoolType) {
		return nil, fmt.Errorf("it is of the type %s, not true or false", ast.OutputType())
	}
	program, err := env.Program(ast, cel.CostLimit(maxCost), cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return nil, fmt.Errorf("it cannot be evaluated: %w", err)
	}
	return program, nil
}

// Rank says what the first rule that holds for a job makes of it. A rule that cannot be evaluated for this job (it takes
// too many steps, say) is passed over; the error names all such rules, and the ranking is good all the same.
func (p *Policy) Rank(f Facts) (Ranking, error) {
	if len(p.rules) == 0 {
		return Ranking{Class: ClassNormal}, nil
	}
	var failed []error
	variables := f.variables()
	for i := range p.rules {
		r := &p.rules[i]
		if r.when != nil {
			holds, _, err := r.when.Eval(variables)
			if err != nil {
				failed = append(failed, fmt.Errorf("rule %q: %w", r.name, err))
				continue
			}
			if holds.Value() != true {
				continue
			}
		}
		return Ranking{Class: r.class, Priority: r.priority, Rule: r.name}, errors.Join(failed...)
	}
	return Ranking{Class: ClassNormal}, errors.Join(failed...)
}
