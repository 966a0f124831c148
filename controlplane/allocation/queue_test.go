package allocation

import (
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var start = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func TestFewestRunningComesFirstThenTheLongestWait(t *testing.T) {
	var q Queue
	q.Set(Key{Runner: "busy", Running: 3, Since: start})
	q.Set(Key{Runner: "late", Running: 1, Since: start.Add(time.Second)})
	q.Set(Key{Runner: "early", Running: 1, Since: start})
	var got []string
	for q.Len() > 0 {
		k, ok := q.Next()
		require.True(t, ok)
		got = append(got, k.Runner)
		q.Remove(k.Runner)
	}
	require.Equal(t, []string{"early", "late", "busy"}, got)
	_, ok := q.Next()
	require.False(t, ok)
}

// Slots that are handed out one at a time end up even: the counts of runners that always wait differ by one at most.
func TestSharesOfRunnersThatAlwaysWaitAreEven(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q Queue
		names := []string{"a", "b", "c", "d"}
		running := map[string]int{}
		for i, n := range names {
			q.Set(Key{Runner: n, Since: start.Add(time.Duration(i) * time.Second)})
		}
		now := start.Add(time.Minute)
		for range rapid.IntRange(1, 60).Draw(t, "slots") {
			k, _ := q.Next()
			running[k.Runner]++
			now = now.Add(time.Second)
			q.Set(Key{Runner: k.Runner, Running: running[k.Runner], Since: now})
		}
		counts := make([]int, 0, len(names))
		for _, n := range names {
			counts = append(counts, running[n])
		}
		if slices.Max(counts)-slices.Min(counts) > 1 {
			t.Fatalf("uneven: %v", running)
		}
	})
}

// The queue agrees with sorting, whatever is set, changed and removed before.
func TestNextAgreesWithSorting(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var q Queue
		model := map[string]Key{}
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			name := rapid.SampledFrom([]string{"a", "b", "c", "d", "e", "f"}).Draw(t, "runner")
			if rapid.Bool().Draw(t, "remove") {
				q.Remove(name)
				delete(model, name)
			} else {
				k := Key{
					Runner: name, Running: rapid.IntRange(0, 3).Draw(t, "running"),
					Since: start.Add(time.Duration(rapid.IntRange(0, 3).Draw(t, "since")) * time.Second),
				}
				q.Set(k)
				model[name] = k
			}
			got, ok := q.Next()
			if ok != (len(model) > 0) {
				t.Fatalf("Next says %v with %d waiting", ok, len(model))
			}
			for _, k := range model {
				if k.Before(got) {
					t.Fatalf("%v comes before %v, which was returned", k, got)
				}
			}
		}
	})
}
