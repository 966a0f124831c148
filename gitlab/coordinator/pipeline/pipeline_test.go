package pipeline

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// parse reads jobs, one a line: "name stage [when] [allow_failure] [needs:a,b|needs:] [in:10m]".
func parse(t *testing.T, text string) (*Pipeline, []string) {
	t.Helper()
	var jobs []Job
	var stages []string
	at := map[string]int{}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		j := Job{Name: f[0], When: ciconfig.OnSuccess}
		if !slices.Contains(stages, f[1]) {
			stages = append(stages, f[1])
		}
		j.Stage = slices.Index(stages, f[1])
		for _, word := range f[2:] {
			needs, isNeeds := strings.CutPrefix(word, "needs:")
			in, isIn := strings.CutPrefix(word, "in:")
			switch {
			case isNeeds:
				j.DAG = true
				for _, n := range strings.FieldsFunc(needs, func(r rune) bool { return r == ',' }) {
					j.Needs = append(j.Needs, at[n])
				}
			case isIn:
				d, err := time.ParseDuration(in)
				require.NoError(t, err)
				j.StartIn = d
			case word == "allow_failure":
				j.AllowFailure = true
			case word == "resource":
				j.ResourceGroup = true
			default:
				j.When = ciconfig.When(word)
			}
		}
		at[j.Name] = len(jobs)
		jobs = append(jobs, j)
	}
	p, err := New(len(stages), jobs)
	require.NoError(t, err)
	return p, stages
}

// show is the state as "pipeline | stages | jobs".
func show(p *Pipeline) string {
	var stages, jobs []string
	for i := range p.stages {
		stages = append(stages, p.StageStatus(i).String())
	}
	for i := range p.jobs {
		jobs = append(jobs, p.jobs[i].Name+":"+p.JobStatus(i).String())
	}
	return p.Status().String() + " | " + strings.Join(stages, " ") + " | " + strings.Join(jobs, " ")
}

// step does "event job job" and processes.
func step(t *testing.T, p *Pipeline, now time.Time, text string) {
	t.Helper()
	events := map[string]Event{"run": EventRun, "success": EventSucceed, "drop": EventDrop, "cancel": EventCancel, "skip": EventSkip}
	words := strings.Fields(text)
	for _, name := range words[1:] {
		job := slices.IndexFunc(p.jobs, func(n node) bool { return n.Name == name })
		require.GreaterOrEqual(t, job, 0, name)
		var err error
		switch words[0] {
		case "play":
			_, err = p.Play(job)
		case "retry":
			_, err = p.Retry(job)
		case "due":
			_, ok := p.RunScheduled(job, now)
			require.True(t, ok)
		default:
			e, known := events[words[0]]
			require.True(t, known, words[0])
			_, err = p.Fire(job, e, Guards{CancelGracefully: true})
		}
		require.NoError(t, err)
	}
	if words[0] == "retryall" {
		p.RetryAll()
	}
	p.Process(now)
}

func TestScenarios(t *testing.T) {
	type scenario struct {
		name  string
		jobs  string
		steps []string // "event jobs => state", the first without event
	}
	for _, s := range []scenario{
		{"stages follow one another", `
			a build
			b test
			c deploy`, []string{
			"=> pending | pending created created | a:pending b:created c:created",
			"run a => running | running created created | a:running b:created c:created",
			"success a => running | success pending created | a:success b:pending c:created",
			"success b => running | success success pending | a:success b:success c:pending",
			"success c => success | success success success | a:success b:success c:success",
		}},
		{"a failure skips what comes after it", `
			a build
			b test
			cleanup deploy always
			alarm deploy on_failure`, []string{
			"=> pending | pending created created | a:pending b:created cleanup:created alarm:created",
			"drop a => running | failed skipped pending | a:failed b:skipped cleanup:pending alarm:pending",
			"success cleanup alarm => failed | failed skipped success | a:failed b:skipped cleanup:success alarm:success",
		}},
		{"an allowed failure is a success", `
			a build allow_failure
			b test
			alarm test on_failure`, []string{
			"=> pending | pending created | a:pending b:created alarm:created",
			"drop a => pending | success pending | a:failed b:pending alarm:skipped",
			"success b => success | success success | a:failed b:success alarm:skipped",
		}},
		{"after a cancelled stage nothing runs, not even always", `
			a build
			b test
			cleanup deploy always
			alarm deploy on_failure`, []string{
			"=> pending | pending created created | a:pending b:created cleanup:created alarm:created",
			"cancel a => canceled | canceled skipped skipped | a:canceled b:skipped cleanup:skipped alarm:skipped",
		}},
		{"needs do not wait for stages", `
			a build
			slow build
			b test needs:a
			c deploy needs:b
			d deploy needs:`, []string{
			"=> pending | pending created pending | a:pending slow:pending b:created c:created d:pending",
			"success a => running | running pending pending | a:success slow:pending b:pending c:created d:pending",
			"success b => running | running success pending | a:success slow:pending b:success c:pending d:pending",
			"success c d => running | running success success | a:success slow:pending b:success c:success d:success",
		}},
		{"a failed need skips, on_failure runs after it", `
			a build
			b test needs:a
			alarm test needs:a on_failure
			cleanup test needs:a always`, []string{
			"=> pending | pending created | a:pending b:created alarm:created cleanup:created",
			"drop a => running | failed pending | a:failed b:skipped alarm:pending cleanup:pending",
		}},
		{"a need that was allowed to fail is a success", `
			a build allow_failure
			alarm test needs:a on_failure
			b deploy needs:alarm`, []string{
			"=> pending | pending created created | a:pending alarm:created b:created",
			"drop a => success | success skipped skipped | a:failed alarm:skipped b:skipped",
		}},
		{"an optional manual job blocks nobody in stages", `
			m build manual allow_failure
			b test`, []string{
			"=> pending | skipped pending | m:manual b:pending",
			"success b => success | skipped success | m:manual b:success",
			"play m => running | pending success | m:pending b:success",
			"drop m => success | success success | m:failed b:success",
		}},
		{"an optional manual job skips what needs it, until it is played", `
			m build manual allow_failure
			b test needs:m`, []string{
			"=> skipped | skipped skipped | m:manual b:skipped",
			"play m => pending | pending skipped | m:pending b:created",
			"run m => running | running skipped | m:running b:created",
			"success m => running | success pending | m:success b:pending",
		}},
		{"a blocking manual job blocks", `
			m build manual
			b test
			free test needs:`, []string{
			"=> running | manual pending | m:manual b:created free:pending",
			"success free => manual | manual running | m:manual b:created free:success",
			"play m => running | pending running | m:pending b:created free:success",
			"success m => running | success running | m:success b:pending free:success",
		}},
		{"a delayed job waits for its time", `
			d build delayed in:10m
			b test`, []string{
			"=> scheduled | scheduled created | d:scheduled b:created",
			"due d => pending | pending created | d:pending b:created",
			"success d => running | success pending | d:success b:pending",
		}},
		{"a delayed job can be played", `
			d build delayed in:10m`, []string{
			"=> scheduled | scheduled | d:scheduled",
			"play d => pending | pending | d:pending",
		}},
		{"retry of a failed job gives the skipped ones another chance", `
			a build
			b test
			c deploy`, []string{
			"=> pending | pending created created | a:pending b:created c:created",
			"drop a => failed | failed skipped skipped | a:failed b:skipped c:skipped",
			"retry a => running | pending skipped skipped | a:pending b:created c:created",
			"success a => running | success pending skipped | a:success b:pending c:created",
		}},
		{"retry of the pipeline: a failed manual job is manual again and the pipeline a success", `
			a build
			m test manual allow_failure`, []string{
			"=> pending | pending created | a:pending m:created",
			"success a => success | success skipped | a:success m:manual",
			"play m => running | success pending | a:success m:pending",
			"drop m => success | success success | a:success m:failed",
			"retryall => success | success skipped | a:success m:manual",
		}},
		{"retry of the pipeline starts failed and canceled jobs again", `
			a build
			b build
			c test`, []string{
			"=> pending | pending created | a:pending b:pending c:created",
			"run a => running | running created | a:running b:pending c:created",
			"drop a => running | running created | a:failed b:pending c:created",
			"cancel b => failed | failed skipped | a:failed b:canceled c:skipped",
			"retryall => running | pending skipped | a:pending b:pending c:created",
			"success a b => running | success pending | a:success b:success c:pending",
		}},
		{"graceful cancel ends in canceled whatever the runner says", `
			a build
			b build
			c test`, []string{
			"=> pending | pending created | a:pending b:pending c:created",
			"run a b => running | running created | a:running b:running c:created",
			"cancel a b => running | canceling created | a:canceling b:canceling c:created",
			"success a => running | canceling created | a:canceled b:canceling c:created",
			"drop b => canceled | canceled skipped | a:canceled b:canceled c:skipped",
		}},
		{"always runs as soon as one need is skipped, even if others are still at work", `
			a build
			m build manual allow_failure
			c deploy needs:a,m always
			d deploy needs:a,m`, []string{
			"=> pending | pending pending | a:pending m:manual c:pending d:skipped",
		}},
		{"a chain within one stage", `
			a test
			b test needs:a
			c test needs:b
			d test needs:c on_failure
			e test needs:d always`, []string{
			"=> pending | pending | a:pending b:created c:created d:created e:created",
			"success a => running | running | a:success b:pending c:created d:created e:created",
			"drop b => running | running | a:success b:failed c:skipped d:skipped e:pending",
			"success e => failed | failed | a:success b:failed c:skipped d:skipped e:success",
		}},
		{"a job in a resource group waits for it", `
			a build resource
			b test`, []string{
			"=> waiting_for_resource | waiting_for_resource created | a:waiting_for_resource b:created",
		}},
	} {
		t.Run(s.name, func(t *testing.T) {
			p, _ := parse(t, s.jobs)
			now := start
			for i, line := range s.steps {
				event, want, _ := strings.Cut(line, "=> ")
				if i == 0 {
					p.Process(now)
				} else {
					now = now.Add(20 * time.Minute)
					step(t, p, now, event)
				}
				require.Equal(t, want, show(p), "after %q (step %d)", event, i)
				require.Empty(t, p.Process(now), "a second pass changes nothing")
			}
		})
	}
}

func TestANewPipelineRefusesWhatCannotBeProcessed(t *testing.T) {
	for _, c := range []struct {
		stages int
		jobs   []Job
		want   string
	}{
		{1, []Job{{Name: "a", Stage: 1}}, `job "a" is in stage 1 of 1`},
		{1, []Job{{Name: "a", Stage: -1}}, `job "a" is in stage -1 of 1`},
		{1, []Job{{Name: "a", Needs: []int{7}}}, `job "a" needs job 7 of 1`},
		{2, []Job{{Name: "a", Needs: []int{1}}, {Name: "b", Stage: 1}}, `job "a" needs "b", which is in a later stage`},
		{1, []Job{{Name: "a", Needs: []int{1}, DAG: true}, {Name: "b", Needs: []int{0}, DAG: true}}, `go in a circle`},
		{1, []Job{{Name: "a", Needs: []int{0}, DAG: true}}, `the needs of job "a" go in a circle`},
	} {
		_, err := New(c.stages, c.jobs)
		require.ErrorContains(t, err, c.want)
	}
}

func TestActionsSayWhyTheyAreNotPossible(t *testing.T) {
	p, _ := parse(t, "a build\nm build manual")
	p.Process(start)
	_, err := p.Play(0)
	require.EqualError(t, err, `job "a" cannot be played: its status is pending, not manual or scheduled`)
	_, err = p.Retry(1)
	require.EqualError(t, err, `job "m" cannot be retried: its status is manual, not success, failed or canceled`)
	_, err = p.Fire(0, EventForceCancel, Guards{})
	require.EqualError(t, err, `job "a": event force_cancel is not possible in status pending`)
}

func TestADelayedJobIsNotStartedBeforeItsTime(t *testing.T) {
	p, _ := parse(t, "d build delayed in:10m")
	p.Process(start)
	require.Equal(t, start.Add(10*time.Minute), p.ScheduledAt(0))
	_, ok := p.RunScheduled(0, start.Add(10*time.Minute-1))
	require.False(t, ok)
	c, ok := p.RunScheduled(0, start.Add(10*time.Minute))
	require.True(t, ok)
	require.Equal(t, Change{0, Scheduled, Pending}, c)
	_, ok = p.RunScheduled(0, start.Add(11*time.Minute))
	require.False(t, ok)
}

func TestAnExitCodeCanAllowAFailure(t *testing.T) {
	p, _ := parse(t, "a build\nb test")
	p.Process(start)
	_, err := p.Fire(0, EventDrop, Guards{})
	require.NoError(t, err)
	p.SetAllowFailure(0, true)
	p.Process(start)
	require.Equal(t, "pending | success pending | a:failed b:pending", show(p))
	// The next attempt is judged anew.
	step(t, p, start, "retry a")
	require.False(t, p.AllowFailure(0))
	step(t, p, start, "drop a")
	require.Equal(t, Failed, p.StageStatus(0))
}

// BenchmarkWidePipeline: the cost of one job's end must not depend on how many jobs there are.
func BenchmarkWidePipeline(b *testing.B) {
	for _, n := range []int{100, 1_000, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			jobs := make([]Job, n)
			for i := range jobs {
				jobs[i] = Job{Name: fmt.Sprint(i), Stage: i % 10, When: ciconfig.OnSuccess}
			}
			p, err := New(10, jobs)
			require.NoError(b, err)
			p.Process(start)
			b.ResetTimer()
			for i := range b.N {
				j := i / 3 % (n / 10) * 10
				e := []Event{EventRun, EventDrop}[min(i%3, 1)]
				if i%3 == 2 {
					_, _ = p.Retry(j)
				} else {
					_, _ = p.Fire(j, e, Guards{})
				}
				p.Process(start)
			}
		})
	}
}
