package dispatch

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

func TestABacklogAgreesWithAList(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := newBacklog()
		jobs := make([]*job, 8)
		for i := range jobs {
			jobs[i] = &job{row: store.Job{ID: int64(i), Envelope: store.Envelope{ProjectID: int64(i % 3)}}}
		}
		var want []*job
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			j := rapid.SampledFrom(jobs).Draw(t, "job")
			at := slices.Index(want, j)
			if rapid.Bool().Draw(t, "add") {
				b.add(j)
				if at < 0 {
					want = append(want, j)
				}
			} else {
				b.remove(j)
				if at >= 0 {
					want = slices.Delete(want, at, at+1)
				}
			}
			most := map[int64]int{}
			for _, j := range want {
				most[j.row.Envelope.ProjectID]++
			}
			require.Equal(t, len(want), b.len())
			require.Equal(t, want, append(want[:0:0], slices.Collect(b.all())...))
			require.Equal(t, max(most[0], most[1], most[2]), b.most())
			if len(want) == 0 {
				require.Nil(t, b.oldest())
			} else {
				require.Same(t, want[0], b.oldest())
			}
		}
	})
}
