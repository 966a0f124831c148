package agent_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/agent"
	"github.com/switchyard-ci/switchyard/agent/internal/fakefleet"
	"github.com/switchyard-ci/switchyard/agent/internal/fakejob"
)

func TestTracesThatAreNotReportedTakeTheirPlace(t *testing.T) {
	f, x := fakefleet.Start(t), fakejob.New(t)
	f.SetPayload(1, fakejob.Payload(1, "bytes 1500000"))
	f.SetPayload(2, fakejob.Payload(2, "wait"))
	f.SetPayload(3, fakejob.Payload(3, "print hello"))
	r := start(t, f, x, t.TempDir(), func(a *agent.Agent) {
		a.SetSpool(agent.Spool{MaxSize: 4 << 20}) // 2 MiB for each slot
	})
	s := f.Next()
	s.Welcome(period, forever)
	run(s, two)
	s.Started(two)
	run(s, one)
	result := s.Finished(one)
	require.Equal(t, "success", result.GetState())
	specs, err := filepath.Glob(filepath.Join(r.dir, "jobs", "*", "*", "spec.json"))
	require.NoError(t, err)
	require.Len(t, specs, 2)
	spec, err := os.ReadFile(specs[0])
	require.NoError(t, err)
	require.Contains(t, string(spec), `"output_limit":2097152`)
	require.Contains(t, string(spec), "spool.max_size")

	require.True(t, s.Status().GetDraining(), "one runs, and one's trace waits to be reported")
	s.Offer(three)
	require.Contains(t, s.Refused(three), "of spool.max_size (4 MiB)")
	s.Forget(one)
	require.False(t, s.Status().GetDraining())
	run(s, three)
	require.Equal(t, "success", s.Finished(three).GetState())
	s.Cancel(two, graceful)
	s.Finished(two)
}

func TestSpoolLimitsThatCannotBe(t *testing.T) {
	for name, c := range map[string]struct {
		spool agent.Spool
		want  string
	}{
		"negative":   {agent.Spool{MinFree: -1}, "neither may be negative"},
		"too little": {agent.Spool{MaxSize: 3 << 20}, "give each at least 1 MiB"},
	} {
		_, err := agent.New(agent.Config{
			Server: "localhost:1", Data: t.TempDir(), Name: "a", Slots: 4, Spool: c.spool,
		})
		require.ErrorContains(t, err, c.want, name)
	}
}
