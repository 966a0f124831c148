package dispatch

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
)

// noSlot says that the runner may not claim.
func noSlot(t *testing.T, f *fleet, runner string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err := f.d.Reserve(ctx, runner)
	require.ErrorIs(t, err, context.DeadlineExceeded)
}

func TestADrainedAgentGetsNothingNewUntilItIsUndrained(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGitLab()
		f := start(t, t.TempDir(), g)
		defer f.stop()
		a, _ := f.join("a", hello("1", 4))
		running := f.claim("any")
		ref := a.begin()
		f.claim("any")
		asked := a.next().GetOffer().GetRef()
		reserved, err := f.d.Reserve(t.Context(), "any") // a claim is on its way
		require.NoError(t, err)

		require.Equal(t, 2, f.d.DrainAgent("a", "new disks"))
		require.Equal(t, "new disks", a.next().GetDrain().GetReason())
		a.reply(asked, false)
		synctest.Wait()
		s := f.d.Agents()[0]
		require.True(t, s.Online && s.Draining)
		noSlot(t, f, "any")

		late := f.claimed("any", reserved)
		synctest.Wait()
		why, err := f.d.ExplainJob(late)
		require.NoError(t, err)
		require.Contains(t, why.Sentence, "are in use (1 of 4) or of agents that drain (3)")
		b, _ := f.join("b", hello("2", 2))
		defer b.leave()
		first, second := b.next().GetOffer().GetRef(), b.next().GetOffer().GetRef()
		require.Contains(t, []int64{first.GetJob(), second.GetJob()}, asked.GetJob(), "what had not begun goes elsewhere, like what came late")
		require.NotEqual(t, first.GetJob(), second.GetJob())
		require.NotZero(t, late)
		noSlot(t, f, "any")

		f.d.UndrainAgent("a")
		_, err = a.stream.Recv()
		require.Equal(t, codes.Unavailable, status.Code(err), "it has to come back to hear that")
		a.leave()
		h := hello("1", 4)
		h.Jobs = []*fleetv1.HeldJob{{Ref: ref, State: fleetv1.JobState_JOB_STATE_STARTED}}
		back, w := f.join("a", h)
		defer back.leave()
		require.Equal(t, fleetv1.Verdict_VERDICT_KEEP, w.GetJobs()[0].GetVerdict(), "its job went on")
		f.claim("any")
		require.NotNil(t, back.next().GetOffer(), "no Drain follows the Welcome")
		back.finish(ref, "done")
		synctest.Wait()
		_, _, ended := g.result(running)
		require.True(t, ended)
		f.d.UndrainAgent("a")
		f.claim("any")
		require.NotNil(t, back.next().GetOffer(), "nobody is sent away who was not drained")
	})
}

func TestADrainHoldsOverRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		drained := map[string]string{"a": ""}
		f := start(t, t.TempDir(), newGitLab(), func(c *Config) { c.Drained = drained })
		defer f.stop()
		for range 2 { // the agent is restarted, too
			a, _ := f.join("a", hello("1", 1))
			require.NotNil(t, a.next().GetDrain())
			noSlot(t, f, "any")
			a.leave()
		}
		require.Zero(t, f.d.DrainAgent("b", "before it was ever here"))
		b, _ := f.join("b", hello("2", 1))
		require.Equal(t, "before it was ever here", b.next().GetDrain().GetReason())
		noSlot(t, f, "any")
		b.leave()
		f.d.UndrainAgent("a")
		a, _ := f.join("a", hello("1", 1))
		defer a.leave()
		f.claim("any")
		require.NotNil(t, a.next().GetOffer())
		require.Equal(t, map[string]string{"a": ""}, drained, "what Config has is the caller's")
	})
}
