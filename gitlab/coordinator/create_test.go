package coordinator

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/gitrepo"
)

var gitNotFound = gitrepo.ErrNotFound

func jobNames(p Pipeline) []string {
	var names []string
	for _, j := range p.Jobs {
		names = append(names, j.Name)
	}
	return names
}

func TestTheConfigurationIsThatOfTheCommit(t *testing.T) {
	s := newServer(t, Options{})
	dir := repository(t, map[string]string{
		".gitlab-ci.yml": "include:\n  - local: ci/one.yml\n  - local: ci/more/**.yml\n",
		"ci/one.yml":     "one:\n  script: [a]\n",
		"ci/more/x.yml":  "two:\n  script: [a]\n", "ci/more/y/z.yml": "three:\n  script: [a]\n", "ci/more/no.txt": "x",
	})
	p := s.projectWith(ProjectOptions{Path: "g/p", RepoDir: dir})
	old := strings.TrimSpace(git(t, dir, "rev-parse", "HEAD"))
	commit(t, dir, "another", map[string]string{".gitlab-ci.yml": "new:\n  script: [a]\n", "ci/one.yml": "broken: ["})
	run := s.runWith(p, PipelineOptions{SHA: old})
	require.ElementsMatch(t, []string{"one", "two", "three"}, jobNames(run))
	run = s.runWith(p, PipelineOptions{})
	require.Equal(t, []string{"new"}, jobNames(run))
	// The work tree is of no account.
	git(t, dir, "rm", "-q", "--cached", "-r", ".")
	require.Equal(t, []string{"new"}, jobNames(s.runWith(p, PipelineOptions{})))
}

func TestWhatRulesSee(t *testing.T) {
	s := newServer(t, Options{})
	dir := repository(t, map[string]string{"src/deep/a.c": "1", ".gitlab-ci.yml": `
.job: {script: [a]}
on-main: {extends: .job, rules: [{if: '$CI_COMMIT_BRANCH == $CI_DEFAULT_BRANCH'}]}
on-tag: {extends: .job, rules: [{if: '$CI_COMMIT_TAG'}]}
by-hand: {extends: .job, rules: [{if: '$CI_PIPELINE_SOURCE == "web"'}]}
asked: {extends: .job, rules: [{if: '$ASKED'}]}
of-project: {extends: .job, rules: [{if: '$OF_PROJECT == "yes" && $GITLAB_USER_LOGIN == "root"'}]}
has-c: {extends: .job, rules: [{exists: ['src/**/*.c']}]}
has-go: {extends: .job, rules: [{exists: ['**/*.go']}]}
changes-c: {extends: .job, rules: [{changes: ['src/**/*']}]}
protected: {extends: .job, rules: [{if: '$CI_COMMIT_REF_PROTECTED == "true"'}]}
`})
	git(t, dir, "tag", "v1")
	git(t, dir, "branch", "topic")
	p := s.projectWith(ProjectOptions{
		Path: "g/p", RepoDir: dir, Variables: []ciconfig.Variable{{Key: "OF_PROJECT", Value: "yes"}}, ProtectedRefs: []string{"v*"},
	})
	names := func(o PipelineOptions) []string { return jobNames(s.runWith(p, o)) }
	require.ElementsMatch(t, []string{"on-main", "of-project", "has-c", "changes-c", "protected"}, names(PipelineOptions{}))
	require.ElementsMatch(t, []string{"on-tag", "of-project", "has-c", "changes-c", "protected"}, names(PipelineOptions{Ref: "v1", Tag: true}))
	require.ElementsMatch(t, []string{"by-hand", "asked", "of-project", "has-c", "changes-c"}, names(PipelineOptions{
		Ref: "topic", Source: "web", Variables: []ciconfig.Variable{{Key: "ASKED", Value: "1"}},
	}))
	commit(t, dir, "elsewhere", map[string]string{"README": "x"})
	require.ElementsMatch(t, []string{"on-main", "of-project", "has-c", "protected"}, names(PipelineOptions{}), "nothing in src has changed")
	commit(t, dir, "there", map[string]string{"src/deep/a.c": "2"})
	require.Contains(t, names(PipelineOptions{}), "changes-c")
	commit(t, dir, "elsewhere again", map[string]string{"README": "y"})
	require.Contains(t, names(PipelineOptions{BeforeSHA: strings.Repeat("ab", 20)}), "changes-c", "a commit that is gone")
	_, err := s.CreatePipeline(t.Context(), p.ID, PipelineOptions{BeforeSHA: "--output=x"})
	require.ErrorContains(t, err, `"--output=x" is no id of a commit`)
}

func TestNoPipeline(t *testing.T) {
	s := newServer(t, Options{})
	for name, c := range map[string]struct {
		yaml string
		want string
		none bool
	}{
		"no job":            {"test: {script: [a], rules: [{if: '$NO'}]}", "leave no job", true},
		"workflow says no":  {"workflow: {rules: [{if: '$NO'}]}\ntest: {script: [a]}", "workflow:rules", true},
		"a broken file":     {"test: [", ".gitlab-ci.yml:1", false},
		"an unknown need":   {"test: {script: [a], needs: [no]}", ".gitlab-ci.yml:1", false},
		"a missing include": {"include: {local: no.yml}\ntest: {script: [a]}", "no.yml", false},
	} {
		dir := repository(t, map[string]string{".gitlab-ci.yml": c.yaml})
		p := s.projectWith(ProjectOptions{Path: "g/" + strings.ReplaceAll(name, " ", "-"), RepoDir: dir})
		_, err := s.CreatePipeline(t.Context(), p.ID, PipelineOptions{})
		require.ErrorContains(t, err, c.want, name)
		if c.none {
			require.ErrorIs(t, err, ErrNoPipeline, name)
		} else {
			require.NotErrorIs(t, err, ErrNoPipeline, name)
		}
	}
	dir := repository(t, map[string]string{"README": "x"})
	p := s.projectWith(ProjectOptions{Path: "g/none", RepoDir: dir, CIConfigPath: "ci/main.yml"})
	_, err := s.CreatePipeline(t.Context(), p.ID, PipelineOptions{})
	require.Regexp(t, `^project g/none, main: commit [0-9a-f]{8} has no ci/main.yml$`, err.Error())
	commit(t, dir, "add", map[string]string{"ci/main.yml": oneJob})
	require.Equal(t, []string{"test"}, jobNames(s.runWith(p, PipelineOptions{})))

	_, err = s.CreatePipeline(t.Context(), 99, PipelineOptions{})
	require.ErrorIs(t, err, ErrNotFound)
	empty := s.project("g/empty")
	_, err = s.CreatePipeline(t.Context(), empty.ID, PipelineOptions{})
	require.ErrorContains(t, err, "has no repository")
	for want, def := range map[string]*ciconfig.Pipeline{
		"has no jobs": {},
		`is in stage "x", which the pipeline does not have`: {Jobs: []ciconfig.Job{{Name: "a", Stage: "x"}}},
		`job "a" needs "b", which the pipeline does not have`: config(ciconfig.Job{
			Name: "a", NeedsDeclared: true, Needs: []ciconfig.Need{{Job: "b"}},
		}),
		"go in a circle": config(ciconfig.Job{Name: "a", NeedsDeclared: true, Needs: []ciconfig.Need{{Job: "a"}}}),
	} {
		_, err = s.CreatePipeline(t.Context(), empty.ID, PipelineOptions{Config: def})
		require.ErrorContains(t, err, want)
	}
	run := s.run(empty, ciconfig.Job{Name: "a", NeedsDeclared: true, Needs: []ciconfig.Need{{Job: "b", Optional: true}}})
	require.Equal(t, "pending", run.Jobs[0].Status, "an optional need may be absent")
}

func TestOnlySomeJobs(t *testing.T) {
	s := newServer(t, Options{})
	dir := repository(t, map[string]string{".gitlab-ci.yml": `
stages: [build, test, deploy]
compile: {stage: build, script: [a]}
lint: {stage: build, script: [a]}
unit: {stage: test, needs: [compile], parallel: 2, script: [a]}
slow: {stage: test, script: [a]}
ship: {stage: deploy, needs: [unit], when: manual, script: [a]}
alarm: {stage: deploy, when: on_failure, script: [a]}
`})
	p := s.projectWith(ProjectOptions{Path: "g/p", RepoDir: dir})
	only := func(jobs ...string) Pipeline { return s.runWith(p, PipelineOptions{Jobs: jobs}) }
	require.Equal(t, []string{"compile", "unit 1/2", "unit 2/2"}, jobNames(only("unit")))
	require.Equal(t, []string{"compile", "unit 2/2"}, jobNames(only("unit 2/2")))
	slow := only("slow")
	require.Equal(t, []string{"slow"}, jobNames(slow), "earlier stages are not what it names")
	require.Equal(t, "pending", slow.Jobs[0].Status)
	require.Equal(t, []Stage{{"test", "pending"}}, slow.Stages)
	ship := only("ship", "lint")
	require.Equal(t, []string{"compile", "lint", "unit 1/2", "unit 2/2", "ship"}, jobNames(ship))
	require.Equal(t, "pending", only("alarm").Jobs[0].Status, "who names a job wants it to run")

	r := s.runner()
	_, err := s.CancelPipeline(ship.ID)
	require.NoError(t, err)
	ship = only("ship")
	for j := s.request(r, nil); j.Code == 201; j = s.request(r, nil) {
		for _, job := range s.Jobs() {
			if job.Status == "running" {
				s.finish(s.wire(job.ID), "success")
			}
		}
	}
	end, err := s.Wait(t.Context(), ship.ID)
	require.NoError(t, err)
	require.Equal(t, "success", end.Status)
	require.Equal(t, "success", end.Jobs[3].Status, "the manual job that was named has run")

	_, err = s.CreatePipeline(t.Context(), p.ID, PipelineOptions{Jobs: []string{"nope"}})
	require.EqualError(t, err, `there is no job "nope" in this pipeline; its jobs are: compile, lint, unit 1/2, unit 2/2, slow, ship, alarm`)
}

func TestProjectOptionsAreChecked(t *testing.T) {
	s := newServer(t, Options{})
	for path, want := range map[string]string{
		"name":       "a project is in a group",
		"":           "a project is in a group",
		"g//p":       `"" is no valid name`,
		"g/p.git":    `"p.git" is no valid name`,
		"../p":       `".." is no valid name`,
		"g/-":        `"-" is no valid name`,
		"api/p":      `"api" is no valid name`,
		"g/a b":      `"a b" is no valid name`,
		"g/p\n":      "is no valid name",
		"g/ends.in.": `"ends.in." is no valid name`,
	} {
		_, err := s.AddProject(t.Context(), ProjectOptions{Path: path})
		require.ErrorContains(t, err, want, path)
	}
	_, err := s.AddProject(t.Context(), ProjectOptions{Path: "g/p", Timeout: -1})
	require.ErrorContains(t, err, "must not be negative")
	p := s.project("g/p")
	_, err = s.AddProject(t.Context(), ProjectOptions{Path: "g/p"})
	require.EqualError(t, err, "project g/p exists already")
	got, err := s.Project("g/p")
	require.NoError(t, err)
	require.Equal(t, p, got)
	_, err = s.Project("g/none")
	require.ErrorIs(t, err, ErrNotFound)
}

func TestOptionsAreChecked(t *testing.T) {
	_, err := New(Options{AckExpiry: -1})
	require.Error(t, err)
	for _, bad := range []string{"ftp://x", "http://", "http://x/path", ":", "x"} {
		_, err = New(Options{URL: bad, Dir: t.TempDir()})
		require.ErrorContains(t, err, "URL", bad)
	}
	_, err = New(Options{Dir: "/dev/null/x"})
	require.ErrorContains(t, err, "make the coordinator's folder")
}

func TestWildcards(t *testing.T) {
	for pattern, names := range map[string]map[string]bool{
		"main":      {"main": true, "main2": false, "": false},
		"v*":        {"v1": true, "v": true, "xv1": false},
		"*-stable":  {"17-0-stable": true, "stable": false},
		"a*b*c":     {"abc": true, "aXbYc": true, "ab": false, "abcb": false, "a/b/c": true},
		"*":         {"": true, "x/y": true},
		"rel/*/ok*": {"rel/1/ok": true, "rel/1/okay": true, "rel/ok": false},
	} {
		for _, name := range slices.Collect(maps.Keys(names)) {
			require.Equal(t, names[name], matchWildcard(pattern, name), "%q %q", pattern, name)
		}
	}
}
