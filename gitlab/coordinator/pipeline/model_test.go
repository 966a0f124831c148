package pipeline

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
)

// model is GitLab's pass as it is written there: every created job of every stage is looked at, again and again until
// nothing changes. The real one must come to the same.
type model struct {
	jobs   []Job
	status []string
	allow  []bool
	tries  []int // attempts before the present one
	stages []string
	whole  string
}

func newModel(stages int, jobs []Job) *model {
	m := &model{jobs: jobs, stages: slices.Repeat([]string{"created"}, stages), whole: "created"}
	for _, j := range jobs {
		m.status = append(m.status, "created")
		m.allow = append(m.allow, j.AllowFailure)
		m.tries = append(m.tries, 0)
	}
	return m
}

func (m *model) composite(which func(i int) bool, dag bool) string {
	var list []Outcome
	for i := range m.jobs {
		if which(i) {
			at := slices.Index(statusNames[:], m.status[i])
			list = append(list, Outcome{Status(at), m.allow[i]})
		}
	}
	return compositeByTheBook(list, dag)
}

func (m *model) process() {
	for changed := true; changed; {
		changed = false
		for s := range m.stages {
			for {
				again := false
				for i, j := range m.jobs {
					if j.Stage != s || m.status[i] != "created" {
						continue
					}
					var prev string
					if j.DAG {
						prev = m.composite(func(k int) bool { return slices.Contains(j.Needs, k) }, true)
					} else {
						prev = m.composite(func(k int) bool { return m.jobs[k].Stage < s }, false)
					}
					if slices.Contains([]string{"success", "failed", "canceled", "skipped"}, prev) {
						m.status[i] = m.next(j, prev)
						again, changed = true, true
					}
				}
				if !again {
					break
				}
			}
			if st := m.composite(func(k int) bool { return m.jobs[k].Stage == s }, false); st != "created" {
				if slices.ContainsFunc(m.jobs, func(j Job) bool { return j.Stage == s }) {
					m.stages[s] = st
				}
			}
		}
	}
	switch st := m.composite(func(int) bool { return true }, false); {
	case st == "created":
	case st == "pending" && slices.Contains([]string{"success", "failed", "canceling", "canceled", "running"}, m.whole):
		m.whole = "running"
	default:
		m.whole = st
	}
}

func (m *model) next(j Job, prev string) string {
	ok := []string{"success"}
	switch {
	case j.When == ciconfig.OnFailure:
		ok = []string{"failed"}
	case j.When == ciconfig.Always:
		ok = []string{"success", "failed", "skipped"}
	case !j.DAG:
		ok = []string{"success", "skipped"}
	}
	switch {
	case !slices.Contains(ok, prev):
		return "skipped"
	case j.When == ciconfig.Delayed:
		return "scheduled"
	case j.When == ciconfig.Manual:
		return "manual"
	default:
		return "pending"
	}
}

// pipelines draws pipelines in which needs go to the same or earlier stages.
func pipelines(t *rapid.T) (int, []Job) {
	stages := rapid.IntRange(1, 4).Draw(t, "stages")
	n := rapid.IntRange(1, 9).Draw(t, "jobs")
	jobs := make([]Job, n)
	for i := range jobs {
		j := Job{
			Name:         fmt.Sprint("j", i),
			Stage:        rapid.IntRange(0, stages-1).Draw(t, "stage"),
			When:         rapid.SampledFrom([]ciconfig.When{ciconfig.OnSuccess, ciconfig.OnSuccess, ciconfig.OnFailure, ciconfig.Always, ciconfig.Manual, ciconfig.Delayed}).Draw(t, "when"),
			AllowFailure: rapid.Bool().Draw(t, "allow"),
			DAG:          rapid.Bool().Draw(t, "dag"),
		}
		if j.When == ciconfig.Delayed {
			j.StartIn = time.Minute
		}
		if rapid.Bool().Draw(t, "with retry") {
			j.Retry = retries(t)
		}
		j.AllowFailureExitCodes = rapid.SliceOfN(exitCodes(), 0, 1).Draw(t, "allowed codes")
		if j.DAG {
			for k := range i {
				if jobs[k].Stage <= j.Stage && rapid.Bool().Draw(t, "need") {
					j.Needs = append(j.Needs, k)
				}
			}
		}
		jobs[i] = j
	}
	return stages, jobs
}

func compare(t *rapid.T, p *Pipeline, m *model, after string) {
	for i := range m.jobs {
		if p.JobStatus(i).String() != m.status[i] {
			t.Fatalf("after %s: job %d is %s, the model says %s", after, i, p.JobStatus(i), m.status[i])
		}
	}
	for s := range m.stages {
		if p.StageStatus(s).String() != m.stages[s] {
			t.Fatalf("after %s: stage %d is %s, the model says %s", after, s, p.StageStatus(s), m.stages[s])
		}
	}
	if p.Status().String() != m.whole {
		t.Fatalf("after %s: the pipeline is %s, the model says %s", after, p.Status(), m.whole)
	}
}

// TestProcessingIsGitLabs sends random events to random pipelines and compares with the model after each.
func TestProcessingIsGitLabs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		stages, jobs := pipelines(t)
		p, err := New(stages, jobs)
		if err != nil {
			t.Fatal(err)
		}
		m := newModel(stages, jobs)
		p.Process(start)
		m.process()
		compare(t, p, m, "the start")
		for range rapid.IntRange(0, 25).Draw(t, "events") {
			job := rapid.IntRange(0, len(jobs)-1).Draw(t, "job")
			action := rapid.SampledFrom([]string{"run", "run", "success", "success", "drop", "cancel", "play", "retry", "due", "retryall"}).Draw(t, "action")
			for _, c := range perform(p, action, job) {
				m.status[c.Job] = c.To.String()
			}
			for i := range jobs {
				m.allow[i], m.tries[i] = p.AllowFailure(i), p.Retries(i)
			}
			p.Process(start.Add(time.Hour))
			m.process()
			compare(t, p, m, fmt.Sprintf("%s of job %d", action, job))
		}
	})
}

// perform does an action if it is possible.
func perform(p *Pipeline, action string, job int) []Change {
	fire := func(e Event, g Guards) []Change {
		c, err := p.Fire(job, e, g)
		if err != nil {
			return nil
		}
		return []Change{c}
	}
	switch action {
	case "run":
		return fire(EventRun, Guards{})
	case "success":
		if p.JobStatus(job) != Created {
			return fire(EventSucceed, Guards{})
		}
	case "drop":
		if p.JobStatus(job) != Created {
			return fire(EventDrop, Guards{})
		}
	case "cancel":
		return fire(EventCancel, Guards{CancelGracefully: job%2 == 0})
	case "play":
		changes, _ := p.Play(job)
		return changes
	case "retry":
		changes, _ := p.Retry(job)
		return changes
	case "retryall":
		return p.RetryAll()
	case "due":
		if c, ok := p.RunScheduled(job, start.Add(time.Hour)); ok {
			return []Change{c}
		}
	}
	return nil
}

// TestEveryPipelineEnds plays every manual job, ends every job somehow, and expects the end; no job may start before
// what it waits for has ended.
func TestEveryPipelineEnds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		stages, jobs := pipelines(t)
		p, err := New(stages, jobs)
		if err != nil {
			t.Fatal(err)
		}
		now := start
		p.Process(now)
		played := false // then jobs that were skipped get another chance, after later ones have begun
		for range 20 * len(jobs) {
			var alive []int
			for i := range jobs {
				switch p.JobStatus(i) {
				case Pending, Running, Canceling, Manual, Scheduled:
					alive = append(alive, i)
				}
			}
			if len(alive) == 0 {
				break
			}
			now = now.Add(time.Hour)
			job := rapid.SampledFrom(alive).Draw(t, "job")
			switch p.JobStatus(job) {
			case Pending:
				if !played {
					mayRun(t, p, job)
				}
				perform(p, rapid.SampledFrom([]string{"run", "run", "run", "cancel"}).Draw(t, "pending"), job)
			case Running:
				perform(p, rapid.SampledFrom([]string{"success", "drop", "cancel"}).Draw(t, "running"), job)
			case Canceling:
				perform(p, rapid.SampledFrom([]string{"success", "drop"}).Draw(t, "canceling"), job)
			case Manual:
				if _, err := p.Play(job); err != nil {
					t.Fatal(err)
				}
				played = true
			case Scheduled:
				if _, ok := p.RunScheduled(job, now); !ok {
					t.Fatalf("job %d is scheduled for %s and not due at %s", job, p.ScheduledAt(job), now)
				}
			}
			p.Process(now)
		}
		for i := range jobs {
			if !p.JobStatus(i).Completed() {
				t.Fatalf("job %d is %s at the end", i, p.JobStatus(i))
			}
		}
		if !p.Status().Completed() {
			t.Fatalf("all jobs have ended and the pipeline is %s", p.Status())
		}
	})
}

// mayRun checks that what a pending job waits for has ended, an optional manual job excepted. A job of `always` may run
// as soon as one of its needs is skipped: that is GitLab's rule.
func mayRun(t *rapid.T, p *Pipeline, job int) {
	n := &p.jobs[job]
	ended := func(i int) bool {
		o := p.jobs[i]
		return o.status.Completed() || o.When == ciconfig.Manual && o.AllowFailure
	}
	if !n.DAG {
		for i := range p.jobs {
			if p.jobs[i].Stage < n.Stage && !ended(i) {
				t.Fatalf("job %d is pending while job %d of an earlier stage is %s", job, i, p.JobStatus(i))
			}
		}
		return
	}
	skipped := func(i int) bool { return p.JobStatus(i) == Skipped || p.jobs[i].When == ciconfig.Manual }
	if n.When == ciconfig.Always && slices.ContainsFunc(n.Needs, skipped) {
		return
	}
	for _, need := range n.Needs {
		if !p.JobStatus(need).Completed() {
			t.Fatalf("job %d is pending while it needs job %d, which is %s", job, need, p.JobStatus(need))
		}
	}
}
