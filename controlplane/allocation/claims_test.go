package allocation

import (
	"container/heap"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Four runners, each with a project of its own that always has jobs, of 1, 3, 5 and 7 s, whose jobs are known only when a
// claim has brought them: whatever the slots are, and whether or not it is known what the runners are bound to, the four
// get the same slot-time.
func TestRunnersWithJobsOfDifferentLengthsGetTheSame(t *testing.T) {
	const claiming, horizon = 300 * time.Millisecond, time.Hour
	for _, scope := range []Scope{ProjectRunner, InstanceRunner} {
		for _, slots := range []int{1, 2, 3, 4, 5, 8} {
			t.Run(fmt.Sprintf("scope %d, %d slots", scope, slots), func(t *testing.T) {
				s := New(Policy{})
				runners := make([]string, 4)
				used := make([]float64, 4)
				for i := range runners {
					runners[i] = fmt.Sprintf("r%d", i)
					path := fmt.Sprintf("g%d/p", i)
					if scope == InstanceRunner {
						path = ""
					}
					s.SetRunner(start, Runner{Name: runners[i], GitLab: gitlabURL, Scope: scope, Path: path, Pool: "linux"})
				}
				var ends endings
				var now time.Duration
				free, id := slots, int64(0)
				for now < horizon {
					for i, name := range runners { // one claim under way at a time
						want := 1
						for _, e := range ends {
							if e.load == i && e.job == 0 {
								want = 0
							}
						}
						must(s.Want(start.Add(now), name, want))
					}
					for free > 0 {
						d, ok := s.Next(start.Add(now), "linux")
						if !ok {
							break
						}
						require.True(t, d.Claim)
						must(s.StartClaim(start.Add(now), d.Runner))
						free--
						heap.Push(&ends, ending{at: now + claiming, seq: len(ends), load: int(d.Runner[1] - '0'), start: now})
					}
					e := heap.Pop(&ends).(ending)
					now = e.at
					used[e.load] += (now - e.start).Seconds()
					if e.job != 0 {
						must(s.Finish(start.Add(now), JobKey{gitlabURL, e.job}))
						free++
						continue
					}
					id++
					must(s.EndClaim(start.Add(now), runners[e.load]))
					must(s.Arrive(start.Add(now), Job{
						GitLab: gitlabURL, ID: id, Runner: runners[e.load],
						Project: Project{int64(e.load + 1), fmt.Sprintf("g%d/p", e.load)},
					}))
					must(s.Start(start.Add(now), JobKey{gitlabURL, id}))
					heap.Push(&ends, ending{at: now + time.Duration(1+2*e.load)*time.Second, seq: len(ends), load: e.load, job: id, start: now})
				}
				sum, squares := 0.0, 0.0
				for _, x := range used {
					sum, squares = sum+x, squares+x*x
				}
				require.GreaterOrEqual(t, sum*sum/(4*squares), 0.97, "%v", used)
			})
		}
	}
}
