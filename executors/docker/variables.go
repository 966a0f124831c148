package docker

import (
	"path"
	"strconv"
	"strings"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
	"github.com/switchyard-ci/switchyard/job/masking"
	"github.com/switchyard-ci/switchyard/job/variables"
)

// Variables that a runner may take from jobs: debugServices asks for services' logs, debugTrace for a shell's.
const (
	debugServices = "CI_DEBUG_SERVICES"
	debugTrace    = "CI_DEBUG_TRACE"
)

// readVariables makes the job's variables as far as they are known before the job starts. They are for names of images and
// volumes, for labels, and for the environment of containers. shared says that jobs share the folder of builds.
func (p *preparation) readVariables(shared bool) error {
	j, s := p.spec.Job, p.spec
	var before []runnerapi.Variable
	add := func(list []runnerapi.Variable, key, value string) []runnerapi.Variable {
		return append(list, runnerapi.Variable{Key: key, Value: value, Public: true, Raw: true})
	}
	if j.Image != nil && j.Image.Name != "" {
		before = append(before, runnerapi.Variable{Key: "CI_JOB_IMAGE", Value: j.Image.Name, Public: true})
	}
	before = add(before, "CI_RUNNER_SHORT_TOKEN", s.Runner.ShortToken)
	before = append(before, p.spec.Environment...)
	before = add(before, "CI_BUILDS_DIR", p.buildsDir())
	before = add(before, "CI_PROJECT_DIR", p.projectDir(shared))
	before = add(before, "CI_CONCURRENT_ID", strconv.Itoa(s.ConcurrentID))
	before = add(before, "CI_CONCURRENT_PROJECT_ID", strconv.Itoa(s.ConcurrentProjectID))
	before = add(before, "CI_SERVER", "yes")
	before = add(before, "CI_JOB_STATUS", "running")
	before = add(before, "CI_JOB_TIMEOUT", strconv.FormatInt(int64(s.Timeout.Seconds()), 10))
	var own []runnerapi.Variable
	for _, v := range j.Variables {
		if s.Settings.DebugTraceDisabled && (v.Key == debugServices || v.Key == debugTrace) {
			continue
		}
		own = append(own, v)
	}
	var after []runnerapi.Variable
	after = add(after, "CI_DISPOSABLE_ENVIRONMENT", "true")
	after = add(after, "CI_RUNNER_VERSION", s.Runner.Version)
	after = add(after, "CI_RUNNER_REVISION", s.Runner.Revision)
	after = add(after, variables.TempDir, p.projectDir(shared)+".tmp")
	if name := p.networkName(); name != "" {
		after = add(after, networkVariable, name)
	}
	set, err := variables.New(before, own, after)
	if err != nil {
		return failure(runnerapi.ReasonConfiguration, "%w", err)
	}
	p.vars = set
	p.public = append(append(append([]runnerapi.Variable{}, before...), own...), after...)
	return nil
}

// projectDir is where the job's project will be.
func (p *preparation) projectDir(shared bool) string {
	s := folder.Spec{
		BuildsDir: p.buildsDir(), SharedBuildsDir: shared, Runner: p.spec.Runner, ConcurrentProjectID: p.spec.ConcurrentProjectID,
	}
	return s.ProjectDir(p.spec.Job)
}

// expand replaces variables in text that is limited already.
func (p *preparation) expand(text string) string {
	if !strings.Contains(text, "$") {
		return text
	}
	expanded, err := p.vars.Expand(text)
	if err != nil {
		return text
	}
	return expanded
}

func (p *preparation) enabled(key string) bool {
	on, err := strconv.ParseBool(p.vars.Value(key))
	return err == nil && on
}

// protected says whether the job's ref is, so that jobs of other refs must not see its volumes nor it theirs.
func (p *preparation) protected() bool {
	if on := p.spec.Job.GitInfo.Protected; on != nil {
		return *on
	}
	for _, v := range p.spec.Job.Variables { // the first is GitLab's own
		if v.Key == "CI_COMMIT_REF_PROTECTED" {
			on, err := strconv.ParseBool(v.Value)
			return err == nil && on
		}
	}
	return false
}

// environment is what the user's containers have in their environment: the job's public variables and more. Who may ask
// the engine about containers sees it, so secrets are not in it: scripts get those otherwise.
func (p *preparation) environment(more ...runnerapi.Variable) []string {
	list := make([]runnerapi.Variable, 0, len(p.public)+len(more))
	for _, v := range p.public {
		if v.Public && !v.Masked && !v.File && v.Key != debugTrace { // that one is for scripts, and they get it otherwise
			list = append(list, v)
		}
	}
	for _, v := range more {
		if !v.Raw {
			v.Value, v.Raw = p.expand(v.Value), true
		}
		list = append(list, v)
	}
	set, err := variables.New(list)
	if err != nil { // the whole list was accepted before
		return nil
	}
	var env []string
	set.Winning(func(key, value string) { env = append(env, key+"="+value) })
	return env
}

func (p *preparation) buildsDir() string { return path.Clean(p.executor.options.BuildsDir) }
func (p *preparation) cacheDir() string  { return path.Clean(p.executor.options.CacheDir) }

// masker hides what a job's trace must not show.
func (p *preparation) masker() *masking.Masker {
	phrases := p.vars.Masked()
	if t := p.spec.Job.Token; len(t) >= 8 {
		phrases = append(phrases, t)
	}
	for _, c := range p.spec.Job.Credentials {
		if len(c.Password) >= 8 {
			phrases = append(phrases, c.Password)
		}
	}
	return masking.New(phrases, append(masking.DefaultTokenPrefixes(), p.spec.Job.Features.TokenMaskPrefixes...))
}
