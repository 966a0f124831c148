package placement

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestWorkSpreadsOverEqualAgents(t *testing.T) {
	var p Pool
	free := map[string]int{"a": 2, "b": 2, "c": 2}
	for agent, n := range free {
		p.Set(agent, n)
	}
	var got []string
	for {
		agent, ok := p.Best(nil)
		if !ok {
			break
		}
		got = append(got, agent)
		free[agent]--
		p.Chosen(agent)
		p.Set(agent, free[agent])
	}
	require.Equal(t, []string{"a", "b", "c", "a", "b", "c"}, got)
}

func TestTheAgentWithTheMostRoomComesFirst(t *testing.T) {
	var p Pool
	p.Set("small", 1)
	p.Set("big", 8)
	agent, ok := p.Best(nil)
	require.True(t, ok)
	require.Equal(t, "big", agent)
	p.Remove("big")
	agent, _ = p.Best(nil)
	require.Equal(t, "small", agent)
	p.Set("small", 0)
	_, ok = p.Best(nil)
	require.False(t, ok, "an agent without a free slot is never chosen")
}

// Against a plain list, the pool always names an agent with the greatest number of free slots.
func TestBestAgreesWithAList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var p Pool
		model := map[string]int{}
		for range rapid.IntRange(1, 80).Draw(t, "steps") {
			agent := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}).Draw(t, "agent")
			switch rapid.IntRange(0, 2).Draw(t, "op") {
			case 0:
				n := rapid.IntRange(-1, 4).Draw(t, "free")
				p.Set(agent, n)
				model[agent] = n
			case 1:
				p.Remove(agent)
				delete(model, agent)
			case 2:
				p.Chosen(agent)
			}
			most := 0
			for _, n := range model {
				most = max(most, n)
			}
			shy := rapid.SliceOfDistinct(rapid.SampledFrom([]string{"a", "b", "c", "d", "e"}), rapid.ID).Draw(t, "avoided")
			avoid := func(agent string) bool { return slices.Contains(shy, agent) }
			mostWilling := 0
			for agent, n := range model {
				if !avoid(agent) {
					mostWilling = max(mostWilling, n)
				}
			}
			if other, _ := p.Best(avoid); mostWilling > 0 && (avoid(other) || model[other] != mostWilling) {
				t.Fatalf("Best chose %s with %d free slots; of those that are not avoided one has %d", other, model[other], mostWilling)
			} else if _, ok := p.Best(avoid); ok != (most > 0) {
				t.Fatalf("Best says %v although the most free slots are %d", ok, most)
			}
			best, ok := p.Best(nil)
			if ok != (most > 0) {
				t.Fatalf("Best says %v although the most free slots are %d", ok, most)
			}
			if ok && model[best] != most {
				t.Fatalf("Best chose %s with %d free slots, there are %d elsewhere", best, model[best], most)
			}
			if p.Len() != len(model) {
				t.Fatalf("the pool has %d agents, want %d", p.Len(), len(model))
			}
		}
	})
}
