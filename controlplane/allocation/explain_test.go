package allocation

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func (f *fleet) explain(id int64, c Capacity) Explanation {
	f.t.Helper()
	e, err := f.s.ExplainJob(f.now, JobKey{gitlabURL, id}, c)
	require.NoError(f.t, err)
	return e
}

// What people read.
func TestTheSentencesOfExplain(t *testing.T) {
	f := newFleet(t, Policy{Nodes: map[string]Rule{
		NodeName(gitlabURL, "full"): {Hard: 1}, NodeName(gitlabURL, "off"): {Paused: true}, NodeName(gitlabURL, "shop"): {Weight: 2},
	}}, Runner{Name: "shared"}, Runner{Name: "one", Limit: 1})
	full, free := Capacity{Total: 8}, Capacity{Free: 2, Total: 8}

	f.arrive(1, "full/p")
	f.arrive(2, "full/p")
	f.arrive(3, "off/p")
	f.serve()
	require.Equal(t, "Job 1 has a slot and runs.", f.explain(1, free).Sentence)
	require.Equal(t, "Job 2 is not served: group https://gitlab.example.com/full uses 1 of the 1 slots of its quota.", f.explain(2, free).Sentence)
	require.Equal(t, "Job 3 is not served: group https://gitlab.example.com/off is paused; all slots of pool linux are in use (8 of 8).",
		f.explain(3, full).Sentence)

	f.arrive(4, "shop/web")
	f.arrive(5, "shop/web")
	f.arrive(6, "tools/cli")
	f.serve()
	f.after(time.Minute)
	require.Equal(t, "Job 6 gets the next free slot.", f.explain(6, free).Sentence)
	require.Equal(t, "Job 6 gets the next slot that becomes free: all slots of pool linux are in use (8 of 8).", f.explain(6, full).Sentence)
	require.Equal(t, "Job 6 gets the next slot that becomes free: all slots of pool linux are in use (3 of 8) or of agents that drain (5).",
		f.explain(6, Capacity{Draining: 5, Total: 8}).Sentence)
	require.Equal(t, "Job 6 gets the next slot that becomes free: all agents of pool linux drain: they take no more jobs.",
		f.explain(6, Capacity{Draining: 8, Total: 8}).Sentence)
	require.Equal(t, "Job 5 waits for its turn: in GitLab https://gitlab.example.com it is behind "+
		"group https://gitlab.example.com/tools (0 running, weight 1, 0 slot-seconds).", f.explain(5, free).Sentence)

	f.arrive(7, "tools/cli", func(j *Job) { j.Class = 1 })
	f.arrive(8, "tools/cli")
	e := f.explain(8, free)
	require.Equal(t, Behind, e.Verdict)
	require.Equal(t, "Job 8 waits for its turn: 1 job goes first that is of a higher class; 1 job of its own project goes first.", e.Sentence)
	require.Equal(t, 3, e.Waiting)

	f.arrive(9, "x/p", func(j *Job) { j.Runner = "one"; j.Committed = true })
	f.arrive(10, "x/p", func(j *Job) { j.Runner = "one" })
	f.serve()
	require.Equal(t, "Job 10 is not served: runner one uses 1 of the 1 slots of its limit.", f.explain(10, free).Sentence)
	require.NoError(t, f.s.Hold(f.now, JobKey{gitlabURL, 6}, "agent a7, which is to be avoided, is the only one with a free slot"))
	require.Equal(t, "Job 6 is not served: agent a7, which is to be avoided, is the only one with a free slot.", f.explain(6, free).Sentence)

	runner, err := f.s.ExplainRunner(f.now, "shared", free)
	require.NoError(t, err)
	require.Equal(t, "Runner shared waits for nothing: it does not ask for a slot to claim with.", runner.Sentence)
	project := f.s.ExplainProject(f.now, gitlabURL, "full/p", func(string) Capacity { return free })
	require.Equal(t, "Project https://gitlab.example.com/full/p: 1 running, 1 waiting. "+
		"Job 2 is not served: group https://gitlab.example.com/full uses 1 of the 1 slots of its quota.", project.Sentence)
	project = f.s.ExplainProject(f.now, gitlabURL, "full/q", func(string) Capacity { return free })
	require.Equal(t, "Project https://gitlab.example.com/full/q waits for nothing: GitLab has given no job of it that waits.", project.Sentence)
	_, err = f.s.ExplainJob(f.now, JobKey{gitlabURL, 99}, free)
	require.ErrorIs(t, err, ErrUnknownJob)
}
