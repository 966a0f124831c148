package placement

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// fill gives slots away until there are none, and returns to whom.
func fill(p *Pool, w Want, free map[string]int) []string {
	for agent, n := range free {
		p.Set(Agent{Name: agent, Free: n})
	}
	var got []string
	for {
		c, ok := p.Best(w)
		if !ok {
			return got
		}
		got = append(got, c.Agent)
		free[c.Agent]--
		p.Chosen(c.Agent)
		p.Set(Agent{Name: c.Agent, Free: free[c.Agent]})
	}
}

func TestSpreadGoesAround(t *testing.T) {
	var p Pool
	require.Equal(t, []string{"a", "b", "c", "a", "b", "c"}, fill(&p, Want{}, map[string]int{"a": 2, "b": 2, "c": 2}))
	require.Equal(t, []string{"b", "b", "a", "b"}, fill(&p, Want{Strategy: Spread}, map[string]int{"a": 1, "b": 3}))
}

func TestPackFillsOneAfterTheOther(t *testing.T) {
	var p Pool
	require.Equal(t, []string{"b", "a", "a", "c", "c", "c"}, fill(&p, Want{Strategy: Pack}, map[string]int{"a": 2, "b": 1, "c": 3}))
	require.Equal(t, []string{"a", "a", "b", "b"}, fill(&p, Want{Strategy: Pack}, map[string]int{"a": 2, "b": 2}), "the one that has begun")
}

func TestNobodyWithoutAFreeSlotIsChosen(t *testing.T) {
	var p Pool
	p.Set(Agent{Name: "full"})
	p.Set(Agent{Name: "shrunk", Free: -2})
	for _, s := range []Strategy{Spread, Pack} {
		_, ok := p.Best(Want{Strategy: s, Known: true, Warm: []string{"full", "gone"}})
		require.False(t, ok)
	}
	require.Equal(t, 2, p.Len())
	p.Set(Agent{Name: "full", Free: 1})
	p.Remove("full")
	_, ok := p.Best(Want{})
	require.False(t, ok)
}

func TestTheAgentThatHasBuiltTheProjectComesFirst(t *testing.T) {
	var p Pool
	p.Set(Agent{Name: "big", Free: 10})
	p.Set(Agent{Name: "last", Free: 0})
	p.Set(Agent{Name: "before", Free: 1})
	w := Want{Known: true, Warm: []string{"last", "before"}}
	best := func() Choice {
		c, ok := p.Best(w)
		require.True(t, ok)
		return c
	}
	require.Equal(t, Choice{"before", true}, best(), "the first that has room")
	w.Avoid = func(agent string) bool { return agent == "before" }
	require.Equal(t, Choice{"big", false}, best(), "not one that refused the job")
	p.Set(Agent{Name: "last", Free: 1})
	require.Equal(t, Choice{"last", true}, best())
	p.Set(Agent{Name: "last", Free: 1, ProtectedOnly: true})
	require.Equal(t, Choice{"big", false}, best(), "not one that is not for the job")
}

func TestAgentsForProtectedJobsOnly(t *testing.T) {
	var p Pool
	p.Set(Agent{Name: "open", Free: 1})
	p.Set(Agent{Name: "kept", Free: 9, ProtectedOnly: true})
	for want, w := range map[string][]Want{
		"kept": {{Known: true, Protected: true}, {Known: true, Protected: true, Strategy: Pack}},
		"open": {{Known: true}, {}, {Strategy: Pack}},
	} {
		for _, x := range w {
			c, ok := p.Best(x)
			require.True(t, ok)
			require.Equal(t, want, c.Agent, "%+v", x)
		}
	}
	p.Set(Agent{Name: "open", Free: 0})
	_, ok := p.Best(Want{Known: true})
	require.False(t, ok, "an unprotected job waits")
	require.False(t, p.Never(Want{Known: true}), "there is an agent for it, though it is full")
	c, ok := p.Best(Want{})
	require.True(t, ok)
	require.Equal(t, "kept", c.Agent, "a claim may bring a protected job")
	p.Remove("open")
	require.True(t, p.Never(Want{Known: true}))
	require.False(t, p.Never(Want{Known: true, Protected: true}))
	require.False(t, p.Never(Want{}))
	require.False(t, new(Pool).Never(Want{Known: true}), "agents may still come")
}

func TestPassing(t *testing.T) {
	t0 := time.Unix(1000, 0)
	for _, c := range []struct {
		name      string
		after     time.Duration
		wait      time.Duration
		warm      bool
		somewhere bool
		others    bool
		want      bool
	}{
		{"a warm agent is busy and another job takes the slot", 0, time.Minute, false, true, true, true},
		{"nobody else takes the slot", 0, time.Minute, false, true, false, false},
		{"it has waited long enough", time.Minute, time.Minute, false, true, true, false},
		{"the slot is on a warm agent", 0, time.Minute, true, true, true, false},
		{"no agent has built the project", 0, time.Minute, false, false, true, false},
		{"the policy says not to wait", 0, 0, false, true, true, false},
	} {
		require.Equal(t, c.want, Pass(t0.Add(c.after), t0, c.wait, Choice{Warm: c.warm}, c.somewhere, c.others), c.name)
	}
}

// Against a plain list: what Best chooses may run the job and has room, no better one was left out, and it finds one
// whenever there is one.
func TestBestAgreesWithAList(t *testing.T) {
	names := []string{"a", "b", "c", "d", "e"}
	rapid.Check(t, func(t *rapid.T) {
		var p Pool
		model := map[string]Agent{}
		some := func(label string) []string {
			return rapid.SliceOfDistinct(rapid.SampledFrom(names), rapid.ID).Draw(t, label)
		}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			name := rapid.SampledFrom(names).Draw(t, "agent")
			switch rapid.IntRange(0, 3).Draw(t, "op") {
			case 0, 1:
				a := Agent{name, rapid.IntRange(-1, 4).Draw(t, "free"), rapid.Bool().Draw(t, "protected only")}
				p.Set(a)
				model[name] = a
			case 2:
				p.Remove(name)
				delete(model, name)
			case 3:
				p.Chosen(name)
			}
			avoided, warm := some("avoided"), some("warm")
			w := Want{
				Strategy: rapid.SampledFrom([]Strategy{Spread, Pack}).Draw(t, "strategy"), Known: rapid.Bool().Draw(t, "known"),
				Protected: rapid.Bool().Draw(t, "protected"), Warm: warm, Avoid: func(a string) bool { return slices.Contains(avoided, a) },
			}
			check(t, &p, model, w, avoided)
		}
	})
}

func check(t *rapid.T, p *Pool, model map[string]Agent, w Want, avoided []string) {
	fits := func(a Agent) bool { return a.Free > 0 && (!w.Known || w.Protected || !a.ProtectedOnly) }
	// rank is what must not be beaten: smaller is better.
	rank := func(a Agent) [3]int {
		r := [3]int{}
		if slices.Contains(avoided, a.Name) {
			r[0] = 2
		} else if !slices.Contains(w.Warm, a.Name) {
			r[0] = 1
		}
		if r[0] != 0 {
			keptFirst := w.Known && w.Protected
			if a.ProtectedOnly != keptFirst {
				r[1] = 1
			}
			r[2] = -a.Free
			if w.Strategy == Pack {
				r[2] = a.Free
			}
		} else {
			r[1] = slices.Index(w.Warm, a.Name)
		}
		return r
	}
	got, ok := p.Best(w)
	var census Census
	found := false
	for _, a := range model {
		census.Agents++
		switch {
		case a.Free <= 0:
			census.Full++
		case !fits(a):
			census.Forbidden++
		case slices.Contains(avoided, a.Name):
			census.Avoided++
		default:
			census.Fit++
		}
		if !fits(a) {
			continue
		}
		found = true
		if mine, best := rank(a), rank(model[got.Agent]); ok && slices.Compare(mine[:], best[:]) < 0 {
			t.Fatalf("%+v: %s was chosen, %s is better", w, got.Agent, a.Name)
		}
	}
	if ok != found || ok && !fits(model[got.Agent]) {
		t.Fatalf("%+v: Best says %v %v of %v", w, got, ok, model)
	}
	if ok && got.Warm != (slices.Contains(w.Warm, got.Agent) && !slices.Contains(avoided, got.Agent)) {
		t.Fatalf("%+v: %+v is called warm wrongly", w, got)
	}
	if c := p.Census(w); c != census {
		t.Fatalf("the census is %+v, want %+v", c, census)
	}
	if p.Len() != len(model) {
		t.Fatalf("the pool has %d agents, want %d", p.Len(), len(model))
	}
}

func TestWarmth(t *testing.T) {
	var w Warmth
	p, q := Project{"https://gitlab", 1}, Project{"https://gitlab", 2}
	require.Empty(t, w.Agents(p))
	for _, agent := range []string{"a", "b", "a", "c", "d", "e"} {
		w.Built(p, agent)
	}
	require.Equal(t, []string{"e", "d", "c", "a"}, w.Agents(p))
	before := w.Agents(p)
	w.Built(p, "c")
	require.Equal(t, []string{"c", "e", "d", "a"}, w.Agents(p))
	require.Equal(t, []string{"e", "d", "c", "a"}, before, "what was given out does not change")
	require.Empty(t, w.Agents(q))
}

func TestWarmthForgetsWhatWasNotBuiltForLongest(t *testing.T) {
	var w Warmth
	for i := range int64(maxWarmProjects) {
		w.Built(Project{ID: i}, "a")
	}
	w.Built(Project{ID: 0}, "b")
	w.Built(Project{ID: maxWarmProjects}, "a")
	require.Empty(t, w.Agents(Project{ID: 1}))
	require.Equal(t, []string{"b", "a"}, w.Agents(Project{ID: 0}))
	require.Len(t, w.projects, maxWarmProjects)
	require.Equal(t, maxWarmProjects, w.recent.Len())
}

// A placement in a fleet of 10,000 agents and 1,000 runners of 100 pools: the choice and what follows from it.
func BenchmarkPlace(b *testing.B) {
	for _, agents := range []int{100, 1000, 10000} {
		for _, s := range []Strategy{Spread, Pack} {
			b.Run(fmt.Sprintf("%d-agents-%s", agents, s), func(b *testing.B) { benchmarkPlace(b, agents, s) })
		}
	}
}

func benchmarkPlace(b *testing.B, agents int, s Strategy) {
	const runners, kinds = 1000, 100
	pools := make([]Pool, kinds)
	var warmth Warmth
	free := make([]int, agents)
	names := make([]string, agents)
	index := make(map[string]int, agents)
	set := func(i int) { // every agent is in ten pools
		for k := range 10 {
			pools[(i+k*7)%kinds].Set(Agent{Name: names[i], Free: free[i], ProtectedOnly: i%20 == 0})
		}
	}
	for i := range agents {
		names[i], free[i] = fmt.Sprintf("agent-%05d", i), 1+i%16
		index[names[i]] = i
		set(i)
	}
	b.ReportAllocs()
	b.ResetTimer()
	for n := range b.N {
		runner := n % runners
		p, project := &pools[runner%kinds], Project{ID: int64(n % 5000)}
		c, ok := p.Best(Want{Strategy: s, Known: true, Protected: n%3 == 0, Warm: warmth.Agents(project)})
		if ok {
			i := index[c.Agent]
			p.Chosen(c.Agent)
			warmth.Built(project, c.Agent)
			free[i]--
			set(i)
		}
		if n%2 == 1 { // as many end as begin
			j := (n * 7919) % agents
			free[j] += 2
			set(j)
		}
	}
}
