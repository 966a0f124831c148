package queue

import (
	"cmp"
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// documented is the queue of GitLab's documentation: jobs 1 to 3 of project 1, 4 and 5 of project 2, 6 of project 3.
func documented() *Queue {
	q := New()
	for job, project := range map[int64]int64{1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3} {
		q.Push(Entry{Job: job, Project: project, Instance: true})
	}
	return q
}

var anyJob = &Runner{Kind: Instance, RunUntagged: true}

var documentedProject = map[int64]int64{1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 3}

// take picks a job for an instance runner and starts it.
func take(t *testing.T, q *Queue) int64 {
	t.Helper()
	job, ok := q.Best(anyJob)
	require.True(t, ok)
	require.Equal(t, job, q.Candidates(anyJob, 1)[0])
	require.True(t, q.Remove(job))
	q.AddRunning(documentedProject[job], 1)
	return job
}

func TestManyJobsAtOnceAsDocumented(t *testing.T) {
	q := documented()
	var order []int64
	for range 6 {
		order = append(order, take(t, q))
	}
	require.Equal(t, []int64{1, 4, 6, 2, 5, 3}, order)
	_, ok := q.Best(anyJob)
	require.False(t, ok)
}

// TestOneJobAtATimeAsDocumented follows the text to the letter: jobs 1 and 4 finish, the others do not.
func TestOneJobAtATimeAsDocumented(t *testing.T) {
	q := documented()
	require.Equal(t, int64(1), take(t, q))
	q.AddRunning(1, -1)
	require.Equal(t, int64(2), take(t, q))
	require.Equal(t, int64(4), take(t, q))
	q.AddRunning(2, -1)
	for _, want := range []int64{5, 6, 3} {
		require.Equal(t, want, take(t, q))
	}
}

func TestGroupAndProjectRunnersGoByID(t *testing.T) {
	q := New()
	for _, e := range []Entry{
		{Job: 7, Project: 1, Namespaces: []int64{10}},
		{Job: 3, Project: 2, Namespaces: []int64{10, 11}},
		{Job: 5, Project: 3, Namespaces: []int64{20}, Instance: true},
		{Job: 9, Project: 1, Namespaces: []int64{10}, Instance: true},
	} {
		q.Push(e)
	}
	q.AddRunning(2, 5) // of no account to them
	all := func(r *Runner) []int64 { return q.Candidates(r, 100) }
	require.Equal(t, []int64{3, 7, 9}, all(&Runner{Kind: Group, Namespaces: []int64{10}, RunUntagged: true}))
	require.Equal(t, []int64{3}, all(&Runner{Kind: Group, Namespaces: []int64{11}, RunUntagged: true}))
	require.Equal(t, []int64{3, 5, 7, 9}, all(&Runner{Kind: Group, Namespaces: []int64{10, 11, 20}, RunUntagged: true}), "each once")
	require.Empty(t, all(&Runner{Kind: Group, RunUntagged: true}))
	require.Equal(t, []int64{5, 7, 9}, all(&Runner{Kind: Project, Projects: []int64{1, 3}, RunUntagged: true}))
	require.Equal(t, []int64{5, 9}, all(anyJob), "job 7 is of a project without shared runners")
	require.Equal(t, []int64{5}, q.Candidates(anyJob, 1))
}

func TestMatching(t *testing.T) {
	for _, c := range []struct {
		name      string
		runner    Runner
		tags      []string
		protected bool
		want      bool
	}{
		{"same tag", Runner{Tags: []string{"linux"}}, []string{"linux"}, false, true},
		{"another tag", Runner{Tags: []string{"win32"}}, []string{"linux"}, false, false},
		{"a runner without tags", Runner{RunUntagged: true}, []string{"linux"}, false, false},
		{"a tagged runner that runs untagged", Runner{Tags: []string{"win32"}, RunUntagged: true}, nil, false, true},
		{"a tagged runner that does not", Runner{Tags: []string{"win32"}}, nil, false, false},
		{"more tags than the job asks for", Runner{Tags: []string{"a", "b", "c"}}, []string{"b"}, false, true},
		{"fewer tags than the job asks for", Runner{Tags: []string{"a", "c"}}, []string{"a", "b"}, false, false},
		{"a protected runner and a protected job", Runner{RunUntagged: true, Protected: true}, nil, true, true},
		{"a protected runner and another job", Runner{RunUntagged: true, Protected: true}, nil, false, false},
		{"any runner and a protected job", Runner{RunUntagged: true}, nil, true, true},
	} {
		require.Equal(t, c.want, c.runner.Matches(c.tags, c.protected), c.name)
		q := New()
		q.Push(Entry{Job: 1, Project: 1, Instance: true, Tags: c.tags, Protected: c.protected})
		_, ok := q.Best(&c.runner)
		require.Equal(t, c.want, ok, c.name)
	}
}

func TestPushAndRemoveTwice(t *testing.T) {
	q := New()
	q.Push(Entry{Job: 1, Project: 1, Instance: true})
	q.Push(Entry{Job: 1, Project: 2, Instance: true})
	require.Equal(t, 1, q.Len())
	require.True(t, q.Remove(1))
	require.False(t, q.Remove(1))
	require.Zero(t, q.Len())
	require.Zero(t, q.Size(anyJob))
}

func TestTagsOfTheirOwnLeaveNothingBehind(t *testing.T) {
	q := New()
	for i := range int64(1000) {
		q.Push(Entry{Job: i, Project: 1, Instance: true, Tags: []string{fmt.Sprint(i)}})
		if i%2 == 0 {
			q.Remove(i)
		}
		q.AddRunning(1, 1)
	}
	for i := range int64(1000) {
		q.Remove(i)
	}
	q.Push(Entry{Job: 1000, Project: 1, Instance: true, Tags: []string{"last"}})
	require.LessOrEqual(t, len(q.classes), manyClasses)
	require.LessOrEqual(t, len(q.byProj[1]), manyClasses)
	best, ok := q.Best(&Runner{Tags: []string{"last"}})
	require.True(t, ok)
	require.Equal(t, int64(1000), best)
	require.Equal(t, 1000, q.Running(1))
}

// TestAgainstASortedList compares with a list that is sorted for each question.
func TestAgainstASortedList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := New()
		rows := map[int64]Entry{}
		running := map[int64]int{}
		tagSets := [][]string{nil, {"a"}, {"a", "b"}, {"b"}}
		next := int64(0)
		for range rapid.IntRange(1, 150).Draw(t, "steps") {
			switch rapid.SampledFrom([]string{"push", "push", "push", "remove", "running", "ask"}).Draw(t, "step") {
			case "push":
				next = max(0, next+rapid.Int64Range(-3, 5).Draw(t, "gap"))
				e := Entry{
					Job: next, Project: rapid.Int64Range(1, 4).Draw(t, "project"), Instance: rapid.Bool().Draw(t, "instance"),
					Protected: rapid.Bool().Draw(t, "protected"), Tags: rapid.SampledFrom(tagSets).Draw(t, "tags"),
				}
				if rapid.Bool().Draw(t, "group runners") {
					e.Namespaces = []int64{1 + e.Project%2, 10 + e.Project}
				}
				q.Push(e)
				if _, known := rows[e.Job]; !known {
					rows[e.Job] = e
				}
			case "remove":
				job := rapid.Int64Range(0, next+1).Draw(t, "job")
				_, known := rows[job]
				if q.Remove(job) != known {
					t.Fatalf("remove %d: known is %v", job, known)
				}
				delete(rows, job)
			case "running":
				p := rapid.Int64Range(1, 4).Draw(t, "project")
				n := rapid.SampledFrom([]int{1, 1, -1}).Draw(t, "n")
				if running[p]+n >= 0 {
					running[p] += n
					q.AddRunning(p, n)
				}
				if q.Running(p) != running[p] {
					t.Fatalf("project %d: %d running, want %d", p, q.Running(p), running[p])
				}
			case "ask":
				ask(t, q, rows, running)
			}
		}
		ask(t, q, rows, running)
	})
}

func ask(t *rapid.T, q *Queue, rows map[int64]Entry, running map[int64]int) {
	r := &Runner{
		Kind:        rapid.SampledFrom([]Kind{Instance, Group, Project}).Draw(t, "kind"),
		Tags:        rapid.SampledFrom([][]string{nil, {"a"}, {"a", "b"}}).Draw(t, "tags"),
		RunUntagged: rapid.Bool().Draw(t, "untagged"),
		Protected:   rapid.Bool().Draw(t, "protected"),
		Namespaces:  rapid.SliceOfDistinct(rapid.SampledFrom([]int64{1, 2, 11, 12}), rapid.ID).Draw(t, "namespaces"),
		Projects:    rapid.SliceOfDistinct(rapid.Int64Range(1, 4), rapid.ID).Draw(t, "projects"),
	}
	var want []int64
	for job, e := range rows {
		ok := r.Matches(e.Tags, e.Protected)
		switch r.Kind {
		case Instance:
			ok = ok && e.Instance
		case Group:
			ok = ok && slices.ContainsFunc(e.Namespaces, func(n int64) bool { return slices.Contains(r.Namespaces, n) })
		case Project:
			ok = ok && slices.Contains(r.Projects, e.Project)
		}
		if ok {
			want = append(want, job)
		}
	}
	slices.SortFunc(want, func(a, b int64) int {
		if r.Kind == Instance {
			if c := cmp.Compare(running[rows[a].Project], running[rows[b].Project]); c != 0 {
				return c
			}
		}
		return cmp.Compare(a, b)
	})
	if n := q.Size(r); n != len(want) {
		t.Fatalf("size %d, want %d", n, len(want))
	}
	limit := rapid.IntRange(1, 50).Draw(t, "limit")
	got := q.Candidates(r, limit)
	if !slices.Equal(got, want[:min(limit, len(want))]) {
		t.Fatalf("candidates %v, want %v", got, want)
	}
	best, ok := q.Best(r)
	if ok != (len(want) > 0) || ok && best != want[0] {
		t.Fatalf("best %d %v, want %v", best, ok, want)
	}
}

// BenchmarkTake: what it costs to hand out a job while n are pending in 50 projects.
func BenchmarkTake(b *testing.B) {
	for _, n := range []int{100, 10_000, 100_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			q := New()
			for i := range n {
				q.Push(Entry{Job: int64(i), Project: int64(i % 50), Instance: true, Namespaces: []int64{1}})
			}
			next := int64(n)
			b.ReportAllocs()
			b.ResetTimer()
			for range b.N {
				job, _ := q.Best(anyJob)
				q.Remove(job)
				q.AddRunning(job%50, 1)
				q.AddRunning(job%50, -1)
				q.Push(Entry{Job: next, Project: next % 50, Instance: true, Namespaces: []int64{1}})
				next++
			}
		})
	}
}
