package pipeline

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestEvents has a line for each event and status: where it leads without guards, "-" where it is not possible.
func TestEvents(t *testing.T) {
	statuses := []Status{
		Created, WaitingForResource, Preparing, WaitingForCallback, Pending, Running, Success, Failed, Canceled, Skipped, Manual, Scheduled, Canceling,
	}
	table := map[Event][13]string{
		//                       created     w4resource  preparing   w4callback  pending     running     success failed canceled skipped    manual      scheduled   canceling
		EventProcess:                   {"-", "-", "-", "-", "-", "-", "-", "-", "-", "created", "created", "-", "-"},
		EventEnqueue:                   {"pending", "-", "-", "-", "-", "-", "-", "-", "-", "pending", "pending", "pending", "-"},
		EventEnqueueScheduled:          {"-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "pending", "-"},
		EventEnqueueWaitingForResource: {"-", "pending", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-"},
		EventEnqueuePreparing:          {"-", "-", "pending", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-"},
		EventActionize:                 {"manual", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-"},
		EventSchedule:                  {"scheduled", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-"},
		EventUnschedule:                {"-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "manual", "-"},
		EventRun:                       {"-", "-", "-", "-", "running", "-", "-", "-", "-", "-", "-", "-", "-"},
		EventSkip:                      {"skipped", "skipped", "skipped", "-", "skipped", "-", "-", "-", "-", "-", "-", "-", "-"},
		EventDrop:                      {"failed", "failed", "failed", "failed", "failed", "failed", "-", "-", "-", "-", "failed", "failed", "canceled"},
		EventSucceed:                   {"success", "success", "success", "success", "success", "success", "-", "-", "-", "-", "-", "-", "canceled"},
		EventCancel:                    {"canceled", "canceled", "canceled", "canceled", "canceled", "canceled", "-", "-", "-", "-", "canceled", "canceled", "-"},
		EventForceCancel:               {"-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "-", "canceled"},
	}
	require.Len(t, table, int(numEvents))
	require.Len(t, statuses, int(numStatuses))
	for e, row := range table {
		for i, from := range statuses {
			to, ok := Next(from, e, Guards{})
			if row[i] == "-" {
				require.False(t, ok, "%s in %s", e, from)
				require.Equal(t, from, to, "%s in %s", e, from)
				continue
			}
			require.True(t, ok, "%s in %s", e, from)
			require.Equal(t, row[i], to.String(), "%s in %s", e, from)
		}
	}
	_, ok := Next(Created, numEvents, Guards{})
	require.False(t, ok)
	require.Equal(t, "invalid", numEvents.String())
	require.Equal(t, "invalid", numStatuses.String())
}

func TestGuardsLeadElsewhere(t *testing.T) {
	for _, c := range []struct {
		from Status
		e    Event
		g    Guards
		to   Status
	}{
		{Created, EventEnqueue, Guards{ResourceGroup: true}, WaitingForResource},
		{Created, EventEnqueue, Guards{ResourceGroup: true, Prerequisites: true}, WaitingForResource},
		{Created, EventEnqueue, Guards{Prerequisites: true}, Preparing},
		{Scheduled, EventEnqueueScheduled, Guards{ResourceGroup: true}, WaitingForResource},
		{Scheduled, EventEnqueueScheduled, Guards{Prerequisites: true}, Preparing},
		{WaitingForResource, EventEnqueueWaitingForResource, Guards{ResourceGroup: true}, Pending},
		{WaitingForResource, EventEnqueueWaitingForResource, Guards{ResourceGroup: true, Prerequisites: true}, Preparing},
		{Running, EventCancel, Guards{CancelGracefully: true}, Canceling},
		{Pending, EventCancel, Guards{CancelGracefully: true}, Canceled},
	} {
		to, ok := Next(c.from, c.e, c.g)
		require.True(t, ok, c)
		require.Equal(t, c.to, to, c)
	}
}

func TestStatusNumbersAreGitLabs(t *testing.T) {
	require.Equal(t, []string{
		"created", "pending", "running", "success", "failed", "canceled", "skipped", "manual", "scheduled", "preparing",
		"waiting_for_resource", "waiting_for_callback", "canceling",
	}, statusNames[:])
	for _, s := range Statuses() {
		require.Equal(t, slices.Contains([]Status{Success, Failed, Canceled, Skipped}, s), s.Completed(), s)
	}
	require.True(t, Scheduled.Cancelable())
	require.False(t, Manual.Cancelable())
	require.False(t, Canceling.Cancelable())
	require.True(t, Pending.Active())
	require.False(t, Created.Active())
}

// compositeByTheBook is the composite rules written down a second time, rule by rule over lists of names.
func compositeByTheBook(jobs []Outcome, dag bool) string {
	if len(jobs) == 0 {
		return "success"
	}
	var names []string
	for _, j := range jobs {
		name := j.Status.String()
		if j.AllowFailure && (name == "failed" || name == "canceled") {
			name = "warning"
		}
		if j.AllowFailure && name == "manual" {
			name = "ignored"
		}
		names = append(names, name)
	}
	only := func(allowed ...string) bool {
		for _, n := range names {
			if !slices.Contains(allowed, n) {
				return false
			}
		}
		return true
	}
	some := func(wanted ...string) bool {
		return slices.ContainsFunc(names, func(n string) bool { return slices.Contains(wanted, n) })
	}
	rules := []struct {
		holds  bool
		status string
	}{
		{dag && some("skipped", "ignored"), "skipped"},
		{only("skipped", "ignored"), "skipped"},
		{only("success", "skipped", "warning", "ignored"), "success"},
		{only("created", "warning", "ignored"), "created"},
		{only("preparing", "warning", "ignored"), "preparing"},
		{only("canceled", "success", "skipped", "warning", "ignored"), "canceled"},
		{only("pending", "created", "skipped", "warning", "ignored"), "pending"},
		{some("running", "pending"), "running"},
		{some("waiting_for_resource"), "waiting_for_resource"},
		{some("waiting_for_callback"), "waiting_for_callback"},
		{some("manual"), "manual"},
		{some("scheduled"), "scheduled"},
		{some("preparing"), "preparing"},
		{some("created"), "running"},
		{some("canceling"), "canceling"},
	}
	for _, r := range rules {
		if r.holds {
			return r.status
		}
	}
	return "failed"
}

// TestCompositeEverySet compares the two on every set of up to four different jobs, and on the full sets.
func TestCompositeEverySet(t *testing.T) {
	var all []Outcome
	for _, s := range Statuses() {
		all = append(all, Outcome{s, false}, Outcome{s, true})
	}
	checked := 0
	var walk func(from int, jobs []Outcome)
	walk = func(from int, jobs []Outcome) {
		for _, dag := range []bool{false, true} {
			got, want := Composite(jobs, dag).String(), compositeByTheBook(jobs, dag)
			if got != want {
				t.Fatalf("composite(%v, dag %v) = %s, want %s", jobs, dag, got, want)
			}
			checked++
		}
		if len(jobs) == 4 {
			return
		}
		for i := from; i < len(all); i++ {
			walk(i+1, append(slices.Clone(jobs), all[i]))
		}
	}
	walk(0, nil)
	require.Greater(t, checked, 30_000)
	require.Equal(t, compositeByTheBook(all, false), Composite(all, false).String())
}

func TestCompositeRows(t *testing.T) {
	ok, warn, manual := Outcome{Success, false}, Outcome{Failed, true}, Outcome{Manual, true}
	for _, c := range []struct {
		jobs []Outcome
		dag  bool
		want Status
	}{
		{nil, false, Success},
		{nil, true, Success},
		{[]Outcome{{Skipped, false}}, false, Skipped},
		{[]Outcome{manual}, false, Skipped},
		{[]Outcome{warn}, false, Success},
		{[]Outcome{warn}, true, Success},
		{[]Outcome{ok, {Skipped, false}}, false, Success},
		{[]Outcome{ok, {Skipped, false}}, true, Skipped},
		{[]Outcome{ok, manual}, false, Success},
		{[]Outcome{ok, manual}, true, Skipped},
		{[]Outcome{{Created, false}, warn}, false, Created},
		{[]Outcome{{Canceled, false}, ok}, false, Canceled},
		{[]Outcome{{Canceled, true}, ok}, false, Success},
		{[]Outcome{{Pending, false}, {Created, false}}, false, Pending},
		{[]Outcome{{Pending, false}, ok}, false, Running},
		{[]Outcome{{Created, false}, ok}, false, Running},
		{[]Outcome{{Manual, false}, ok}, false, Manual},
		{[]Outcome{{Manual, false}, {Scheduled, false}}, false, Manual},
		{[]Outcome{{Scheduled, false}, {Preparing, false}}, false, Scheduled},
		{[]Outcome{{WaitingForResource, false}, {Manual, false}}, false, WaitingForResource},
		{[]Outcome{{Canceling, false}, ok}, false, Canceling},
		{[]Outcome{{Canceling, false}, {Failed, false}}, false, Canceling},
		{[]Outcome{{Failed, false}, {Canceled, false}}, false, Failed},
	} {
		require.Equal(t, c.want.String(), Composite(c.jobs, c.dag).String(), "%v dag=%v", c.jobs, c.dag)
	}
}
