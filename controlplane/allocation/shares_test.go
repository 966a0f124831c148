package allocation

import (
	"cmp"
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// load is a project that always has a job waiting from a time on, to a time.
type load struct {
	path       string
	weight     float64
	shortest   time.Duration
	longest    time.Duration
	from, to   time.Duration // to 0: for ever
	names      int           // its jobs have so many names by turns
	runners    []string      // by turns; none: "shared"
	misleading bool          // its first job is much longer than the others
}

// play gives slots to loads and tells of what happens.
type play struct {
	slots   int
	policy  Policy
	loads   []load
	seed    uint64
	horizon time.Duration

	started  func(at time.Duration, l int)
	finished func(at time.Duration, l int)
	moment   func(at time.Duration, service []time.Duration)
}

type ending struct {
	at    time.Duration
	seq   int
	load  int
	job   int64
	start time.Duration
}

type endings []ending

func (e endings) Len() int { return len(e) }
func (e endings) Less(i, j int) bool {
	return cmp.Or(cmp.Compare(e[i].at, e[j].at), cmp.Compare(e[i].seq, e[j].seq)) < 0
}
func (e endings) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *endings) Push(x any)   { *e = append(*e, x.(ending)) }
func (e *endings) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// run returns the slot-time that each load had.
func (p play) run() []time.Duration {
	if p.policy.Nodes == nil {
		p.policy.Nodes = map[string]Rule{}
	}
	for _, l := range p.loads {
		if l.weight != 0 {
			p.policy.Nodes[NodeName(gitlabURL, l.path)] = Rule{Weight: l.weight}
		}
	}
	s := New(p.policy)
	for _, name := range []string{"shared", "second"} {
		s.SetRunner(start, Runner{Name: name, GitLab: gitlabURL, Pool: "linux"})
	}
	done := make([]time.Duration, len(p.loads))
	lengths := make([]*rand.Rand, len(p.loads))
	counts := make([]int, len(p.loads))
	arrive := func(at time.Duration, i int) {
		l := p.loads[i]
		counts[i]++
		j := Job{
			GitLab: gitlabURL, ID: int64(i+1)*1_000_000 + int64(counts[i]), Project: Project{int64(i + 1), l.path}, Runner: "shared",
			Since: start.Add(at),
		}
		if l.names > 0 {
			j.Name = fmt.Sprint(counts[i] % l.names)
		}
		if len(l.runners) > 0 {
			j.Runner = l.runners[counts[i]%len(l.runners)]
		}
		must(s.Arrive(start.Add(at), j))
	}
	var ends endings
	var now time.Duration
	seq, free := 0, p.slots
	coming := map[int]bool{}
	for i := range p.loads {
		lengths[i] = rand.New(rand.NewPCG(p.seed, uint64(i)))
		coming[i] = true
	}
	for now < p.horizon {
		for i := range p.loads {
			if coming[i] && p.loads[i].from <= now {
				delete(coming, i)
				arrive(now, i)
			}
		}
		for free > 0 {
			d, ok := s.Next(start.Add(now), "linux")
			if !ok {
				break
			}
			must(s.Start(start.Add(now), d.Job))
			free--
			i := int(d.Job.ID/1_000_000) - 1
			l := p.loads[i]
			length := l.shortest + time.Duration(lengths[i].Float64()*float64(l.longest-l.shortest))
			if l.misleading && d.Job.ID%1_000_000 == 1 {
				length *= 50
			}
			seq++
			heap.Push(&ends, ending{now + length, seq, i, d.Job.ID, now})
			if l.to == 0 || now < l.to {
				arrive(now, i)
			}
			if p.started != nil {
				p.started(now, i)
			}
		}
		next := p.horizon
		if len(ends) > 0 {
			next = min(next, ends[0].at)
		}
		for i := range p.loads {
			if coming[i] {
				next = min(next, p.loads[i].from)
			}
		}
		now = next
		if p.moment != nil {
			service := append([]time.Duration(nil), done...)
			for _, e := range ends {
				service[e.load] += now - e.start
			}
			p.moment(now, service)
		}
		for len(ends) > 0 && ends[0].at <= now {
			e := heap.Pop(&ends).(ending)
			must(s.Finish(start.Add(now), JobKey{gitlabURL, e.job}))
			free++
			done[e.load] += e.at - e.start
			if p.finished != nil {
				p.finished(now, e.load)
			}
		}
	}
	for _, e := range ends {
		done[e.load] += now - e.start
	}
	return done
}

func genLoads(least, most int, weights []float64) *rapid.Generator[[]load] {
	return rapid.Custom(func(t *rapid.T) []load {
		loads := make([]load, rapid.IntRange(least, most).Draw(t, "projects"))
		for i := range loads {
			l := &loads[i]
			l.path = fmt.Sprintf("g/p%d", i)
			l.weight = rapid.SampledFrom(weights).Draw(t, "weight")
			l.shortest = time.Duration(rapid.IntRange(60, 600).Draw(t, "shortest")) * time.Second
			l.longest = l.shortest + time.Duration(rapid.IntRange(0, 600).Draw(t, "spread"))*time.Second
		}
		return loads
	})
}

// Two projects that always have jobs waiting never drift apart by more than a few of their jobs, over whatever time. For
// one slot, start-time fair queueing promises one job of each; more slots and lengths that are guessed add to it.
func TestBacklogsDoNotDriftApart(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		loads := genLoads(2, 8, []float64{1, 1, 2, 4}).Draw(t, "loads")
		slots := rapid.IntRange(1, 12).Draw(t, "slots")
		const guess = 5 * time.Minute
		lowest, highest := map[[2]int]float64{}, map[[2]int]float64{}
		play{
			slots: slots, policy: Policy{FirstGuess: guess}, loads: loads, seed: rapid.Uint64().Draw(t, "seed"), horizon: 16 * time.Hour,
			moment: func(at time.Duration, service []time.Duration) {
				for i := range loads {
					for j := range i {
						k := [2]int{i, j}
						lag := service[i].Seconds()/loads[i].weight - service[j].Seconds()/loads[j].weight
						lowest[k], highest[k] = min(lowest[k], lag), max(highest[k], lag)
						job := func(l load) float64 { return max(l.longest, guess).Seconds() / l.weight }
						if bound := float64(slots+1) * (job(loads[i]) + job(loads[j])); highest[k]-lowest[k] > bound {
							t.Fatalf("at %v %d and %d have drifted apart by %.0f s, %.0f s are allowed", at, i, j, highest[k]-lowest[k], bound)
						}
					}
				}
			},
		}.run()
	})
}

// Where all jobs are of one length, nobody waits for more completions than all together have weight in units of its
// own, and one for each slot; and if weights differ, one for each of the others, whose turn may be at the same moment.
func TestNobodyStarves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		loads := genLoads(2, 10, []float64{1, 1, 2, 3, 7}).Draw(t, "loads")
		length := 5 * time.Minute
		total, alike := 0.0, true
		for i := range loads {
			loads[i].shortest, loads[i].longest = length, length
			total += loads[i].weight
			alike = alike && loads[i].weight == loads[0].weight
		}
		slots := rapid.IntRange(1, 12).Draw(t, "slots")
		waited := make([]int, len(loads))
		play{
			slots: slots, policy: Policy{FirstGuess: length}, loads: loads, horizon: 8 * time.Hour,
			started: func(at time.Duration, l int) {
				waited[l] = 0
			},
			finished: func(time.Duration, int) {
				for i := range waited {
					waited[i]++
				}
			},
			// Whoever is to be served for the completions of one moment has been by the next.
			moment: func(at time.Duration, _ []time.Duration) {
				for i := range waited {
					bound := int(math.Ceil(total/loads[i].weight)) + slots
					if !alike {
						bound += len(loads) - 1
					}
					if waited[i] > bound {
						t.Fatalf("at %v project %d has waited for %d completions, %d are allowed", at, i, waited[i], bound)
					}
				}
			},
		}.run()
	})
}

// More weight never means less service, but for a few jobs: they cannot be interrupted.
func TestMoreWeightNeverMeansLess(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := play{
			slots: rapid.IntRange(1, 12).Draw(t, "slots"), loads: genLoads(2, 6, []float64{1, 2, 3}).Draw(t, "loads"),
			seed: rapid.Uint64().Draw(t, "seed"), horizon: 8 * time.Hour,
		}
		before := p.run()
		p.loads[0].weight *= rapid.Float64Range(1, 5).Draw(t, "more")
		after := p.run()
		slack := 2 * max(p.loads[0].longest, 5*time.Minute)
		if after[0] < before[0]-slack {
			t.Fatalf("with more weight: %v instead of %v", after[0], before[0])
		}
	})
}

// Jain's index of slot-time per weight is near 1 whatever the lengths, weights and slots are.
func TestSharesAreEven(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		loads := genLoads(2, 12, []float64{1, 1, 2, 3}).Draw(t, "loads")
		slots, longest := rapid.IntRange(1, 24).Draw(t, "slots"), 5*time.Minute
		for _, l := range loads {
			longest = max(longest, l.longest)
		}
		service := play{
			slots: slots, loads: loads, seed: rapid.Uint64().Draw(t, "seed"),
			horizon: time.Duration(200*len(loads)/slots) * longest, // what each gets is some hundred jobs
		}.run()
		sum, squares := 0.0, 0.0
		for i, d := range service {
			x := d.Seconds() / loads[i].weight
			sum, squares = sum+x, squares+x*x
		}
		if jain := sum * sum / (squares * float64(len(loads))); jain < 0.98 {
			t.Fatalf("Jain's index is %.4f: %v", jain, service)
		}
	})
}

// Who was away gets no more than its share when it comes back, nor, within the cap, does one whose jobs turned out
// shorter than was charged.
func TestNothingIsSavedUpWhileIdle(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		loads := genLoads(2, 5, []float64{1}).Draw(t, "loads")
		away := time.Duration(rapid.IntRange(1, 6).Draw(t, "hours away")) * time.Hour
		loads[0].from = away
		loads[1].misleading = rapid.Bool().Draw(t, "misleading")
		creditCap := 30 * time.Minute
		slots := rapid.IntRange(1, 8).Draw(t, "slots")
		var before []time.Duration
		longest := 5 * time.Minute
		for _, l := range loads {
			longest = max(longest, l.longest)
		}
		play{
			slots: slots, policy: Policy{CreditCap: creditCap, HalfLife: 1000 * time.Hour}, loads: loads, seed: rapid.Uint64().Draw(t, "seed"), horizon: away + 3*time.Hour,
			moment: func(at time.Duration, service []time.Duration) {
				if at <= away {
					before = service
					return
				}
				for j := 1; j < len(loads); j++ {
					if loads[j].misleading {
						continue // it has had more than its share, and waits for the others
					}
					ahead := service[0] - before[0] - (service[j] - before[j])
					if bound := creditCap + time.Duration(slots+1)*2*longest; ahead > bound {
						t.Fatalf("%v after it came it has had %v more than %d", at-away, ahead, j)
					}
				}
			},
		}.run()
	})
}

// Cutting a project's jobs in two streams, or a group into more projects, changes what nobody else gets.
func TestSplittingGainsNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		slots := rapid.IntRange(1, 8).Draw(t, "slots")
		length := time.Duration(rapid.IntRange(60, 900).Draw(t, "length")) * time.Second
		other := load{path: "other/p", shortest: length / 2, longest: length}
		p := play{slots: slots, horizon: 12 * time.Hour, seed: rapid.Uint64().Draw(t, "seed")}
		slack := float64(time.Duration(2*slots+2) * max(length, 5*time.Minute))

		one := load{path: "greedy/p", shortest: length, longest: length}
		p.loads = []load{other, one}
		plain := p.run()[0]

		split := one
		split.names, split.runners = 2, []string{"shared", "second"}
		p.loads = []load{other, split}
		if got := p.run()[0]; math.Abs(float64(got-plain)) > slack {
			t.Fatalf("beside two streams: %v instead of %v", got, plain)
		}

		p.loads = []load{other}
		for i := range rapid.IntRange(2, 12).Draw(t, "projects") {
			l := one
			l.path = fmt.Sprintf("greedy/sub%d/p%d", i%3, i)
			p.loads = append(p.loads, l)
		}
		if got := p.run()[0]; math.Abs(float64(got-plain)) > slack {
			t.Fatalf("beside a group of %d projects: %v instead of %v", len(p.loads)-1, got, plain)
		}
	})
}

// What a project used beyond the others is forgotten when it was away for long enough.
func TestUsageIsForgivenByAndBy(t *testing.T) {
	require.Equal(t, int64(1000), decay(1000, 0, 3600e6))
	require.Equal(t, int64(500e6), decay(1000e6, 3600e6, 3600e6))
	require.InDelta(t, 750e6, decay(1000e6, 1800e6, 3600e6), 1e6)
	require.Equal(t, int64(0), decay(1<<62, 70*3600e6, 3600e6))
	last := int64(math.MaxInt64)
	for minutes := range int64(600) {
		d := decay(9e15, minutes*60e6, 3600e6)
		require.LessOrEqual(t, d, last)
		last = d
	}

	f := newFleet(t, Policy{HalfLife: time.Hour}, Runner{Name: "shared"})
	f.arrive(1, "g/burst")
	f.serve()
	f.after(8 * time.Hour)
	f.finish(1)
	f.after(40 * time.Hour)
	f.arrive(2, "g/burst")
	f.after(time.Second)
	f.arrive(3, "g/other")
	require.Equal(t, int64(2), f.serve(), "two days later only age counts")
}
