package usage

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

var t0 = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func at(d time.Duration) time.Time { return t0.Add(d) }

var (
	first  = Project{"https://gitlab.example.com", 1}
	second = Project{"https://gitlab.example.com", 2}
)

func job(n int64) Job { return Job{"https://gitlab.example.com", n} }

func TestSlotSecondsOfTheLastHourAndDay(t *testing.T) {
	b := New()
	b.Start(at(0), job(1), first, "group/first", time.Second)
	b.Finish(at(30*time.Minute), job(1))
	b.Start(at(2*time.Hour), job(2), first, "group/first", 3*time.Second)
	b.Start(at(2*time.Hour), job(3), second, "group/second", 0)
	b.Finish(at(2*time.Hour+10*time.Minute), job(3))

	rows := b.Report(at(2*time.Hour + 20*time.Minute))
	require.Len(t, rows, 2)
	require.Equal(t, "group/first", rows[0].Path)
	require.Equal(t, 1, rows[0].Slots)
	require.InDelta(t, 1200, rows[0].Hour.SlotSeconds, 0.01, "what runs counts")
	require.InDelta(t, 3000, rows[0].Day.SlotSeconds, 0.01)
	require.InDelta(t, 600, rows[1].Hour.SlotSeconds, 0.01)
	require.Equal(t, 0, rows[1].Slots)

	b.Finish(at(2*time.Hour+20*time.Minute), job(2))
	rows = b.Report(at(3 * time.Hour))
	require.InDelta(t, 1200, rows[0].Hour.SlotSeconds, 0.01)
	rows = b.Report(at(25 * time.Hour))
	require.Zero(t, rows[0].Hour.SlotSeconds)
	require.InDelta(t, 1200, rows[0].Day.SlotSeconds, 0.01, "the job of the first half hour is more than a day old")
	require.Empty(t, b.Report(at(28*time.Hour)), "nothing of it is left")
}

func TestAJobLongerThanADay(t *testing.T) {
	b := New()
	b.Start(at(0), job(1), first, "p", 0)
	rows := b.Report(at(50 * time.Hour))
	require.InDelta(t, 86400, rows[0].Day.SlotSeconds, 1)
	require.InDelta(t, 3600, rows[0].Hour.SlotSeconds, 1)
	b.Finish(at(50*time.Hour), job(1))
	rows = b.Report(at(50 * time.Hour))
	require.InDelta(t, 86400, rows[0].Day.SlotSeconds, step.Seconds())
	require.InDelta(t, 3600, rows[0].Hour.SlotSeconds, 1)
}

func TestWaits(t *testing.T) {
	b := New()
	for i := range 100 {
		wait := time.Second
		if i >= 90 {
			wait = 10 * time.Minute
		}
		b.Start(at(time.Duration(i)*time.Second), job(int64(i)), first, "p", wait)
	}
	u := b.Report(at(2 * time.Minute))[0].Hour
	require.Equal(t, 100, u.Jobs)
	require.InDelta(t, 1, u.P50.Seconds(), 0.5)
	require.InDelta(t, 600, u.P95.Seconds(), 250)
}

func TestStartsAndEndsThatAreToldTwice(t *testing.T) {
	b := New()
	b.Start(at(0), job(1), first, "p", 0)
	b.Resume(at(time.Minute), job(1), first, "p")
	require.Equal(t, 1, b.Report(at(time.Minute))[0].Slots)
	b.Finish(at(2*time.Minute), job(1))
	b.Finish(at(9*time.Minute), job(1))
	row := b.Report(at(10 * time.Minute))[0]
	require.Equal(t, 0, row.Slots)
	require.InDelta(t, 120, row.Hour.SlotSeconds, 0.01)
}

func TestProjectsAreForgottenButNotWhileTheyRun(t *testing.T) {
	b := New()
	b.Start(at(0), job(0), Project{ID: 1}, "runs", 0)
	for i := range int64(maxProjects + 10) {
		b.Start(at(0), job(i+1), Project{ID: i + 2}, fmt.Sprint(i), 0)
		b.Finish(at(time.Second), job(i+1))
	}
	require.Len(t, b.projects, maxProjects)
	require.Equal(t, maxProjects, b.recent.Len())
	require.NotNil(t, b.projects[Project{ID: 1}])
	require.Nil(t, b.projects[Project{ID: 2}])
}

// What was used is what was told, whatever the order, and a restart changes nothing.
func TestAgainstASum(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := New()
		now := at(0)
		type run struct {
			p        Project
			from, to time.Time
		}
		var runs []*run
		open := map[Job]*run{}
		for i := range rapid.IntRange(1, 60).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.IntRange(0, 3600).Draw(t, "seconds")) * time.Second)
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0, 1:
				r := &run{p: rapid.SampledFrom([]Project{first, second}).Draw(t, "project"), from: now}
				runs, open[job(int64(i))] = append(runs, r), r
				b.Start(now, job(int64(i)), r.p, "p", 0)
			case 2:
				for j, r := range open {
					r.to = now
					b.Finish(now, j)
					delete(open, j)
					break
				}
			case 3:
				body, err := b.Snapshot(now).Encode()
				require.NoError(t, err)
				if b, err = Restore(now, body); err != nil {
					t.Fatal(err)
				}
				for j, r := range open {
					b.Resume(now, j, r.p, "p")
				}
			}
		}
		for _, window := range []time.Duration{Short, Long} {
			want := map[Project]float64{}
			for _, r := range runs {
				from, to := r.from, r.to
				if to.IsZero() {
					to = now
				}
				if begin := now.Add(-window); from.Before(begin) {
					from = begin
				}
				if from.Before(to) {
					want[r.p] += to.Sub(from).Seconds()
				}
			}
			got := map[Project]float64{}
			for _, row := range b.Report(now) {
				u := row.Hour
				if window == Long {
					u = row.Day
				}
				got[row.Project] = u.SlotSeconds
			}
			for p, w := range want {
				// The step in which the window begins counts in part, for each job that ran in it.
				if diff := got[p] - w; diff > step.Seconds()*float64(len(runs)) || diff < -step.Seconds()*float64(len(runs)) {
					t.Fatalf("%v: %v slot-seconds in %s, want %v", p, got[p], window, w)
				}
			}
		}
	})
}

func TestSnapshotsThatAreNot(t *testing.T) {
	for _, text := range []string{"", "{", `{"version": 2}`, `[]`} {
		b, err := Restore(t0, []byte(text))
		require.ErrorContains(t, err, "read what was used before", text)
		require.Empty(t, b.Report(t0))
	}
	b, err := Restore(t0, []byte(`{"version":1,"projects":[{"id":1,"used":{"-5":1,"99999999999":5},"waits":{"9999999":{"1":1},"492780":{"-1":3,"99":3}}}]}`))
	require.NoError(t, err)
	require.Empty(t, b.Report(t0))
}

func TestClasses(t *testing.T) {
	for class := range classes - 1 {
		require.Equal(t, class, classOf(end(class)), "class %d", class)
		require.Equal(t, class+1, classOf(end(class)+end(class)/100), "class %d", class)
	}
	require.Equal(t, classes-1, classOf(1000*time.Hour))
}
