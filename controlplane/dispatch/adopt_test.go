package dispatch

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// restoredWithAClaim is a control plane whose store has a job as claimed in epoch 1, for agent a.
func restoredWithAClaim(t *testing.T, g *gitlabStub) (f *fleet, gitlabJob int64, ref *fleetv1.JobRef) {
	t.Helper()
	dir := t.TempDir()
	f = start(t, dir, g)
	a, _ := f.join("a", hello("1", 1))
	gitlabJob = f.claim("any")
	ref = a.next().GetOffer().GetRef()
	f.stop()
	a.leave()
	return start(t, dir, g), gitlabJob, ref
}

// takenOver is the session of an agent that has begun a job, after it was told to come back.
func (f *fleet) takenOver(id string, h *fleetv1.Hello) (*fake, *fleetv1.Welcome) {
	f.t.Helper()
	first := f.dial(id)
	first.send(&fleetv1.SessionRequest{Message: &fleetv1.SessionRequest_Hello{Hello: h}})
	_, err := first.stream.Recv()
	require.Equal(f.t, codes.Unavailable, status.Code(err), "%v", err)
	first.leave()
	synctest.Wait()
	return f.join(id, h)
}

func TestAJobThatARestoredStoreKnowsAsClaimedGoesOn(t *testing.T) {
	for _, missed := range []int64{0, 3} {
		synctest.Test(t, func(t *testing.T) {
			g := newGitLab()
			f, id, ref := restoredWithAClaim(t, g)
			defer f.stop()
			other, _ := f.join("b", hello("1", 1)) // would be asked at once
			defer other.leave()
			synctest.Wait()
			begun := &fleetv1.JobRef{Job: ref.GetJob(), Epoch: ref.GetEpoch() + missed}
			a, w := f.takenOver("a", helloWith("1", 1, begun, fleetv1.JobState_JOB_STATE_STARTED))
			defer a.leave()
			require.Equal(t, fleetv1.Verdict_VERDICT_KEEP, w.GetJobs()[0].GetVerdict())
			rows, err := f.store.LoadJobs(t.Context())
			require.NoError(t, err)
			require.Len(t, rows, 1)
			require.Equal(t, store.JobStarted, rows[0].State)
			require.Equal(t, begun.GetEpoch(), rows[0].Epoch)
			require.Equal(t, "a", rows[0].Agent)
			_, err = a.client.GetJob(a.ctx, &fleetv1.GetJobRequest{Ref: begun})
			require.Error(t, err, "what has begun needs no payload")
			a.finish(begun, "the whole trace")
			synctest.Wait()
			u, trace, ok := g.result(id)
			require.True(t, ok)
			require.Equal(t, runnerapi.StateSuccess, u.State)
			require.Equal(t, "the whole trace", trace)
			require.Empty(t, f.d.Jobs())
			for _, s := range f.d.Agents() {
				require.Zero(t, s.UsedSlots, s.Name)
			}
		})
	}
}

func TestAJobThatCannotBeTakenOverFails(t *testing.T) {
	for name, change := range map[string]func(ref *fleetv1.JobRef) (agent string, begun *fleetv1.JobRef){
		"an epoch that no backup explains": func(ref *fleetv1.JobRef) (string, *fleetv1.JobRef) {
			return "a", &fleetv1.JobRef{Job: ref.GetJob(), Epoch: ref.GetEpoch() + mostMissed + 1}
		},
		"another agent in the same epoch": func(ref *fleetv1.JobRef) (string, *fleetv1.JobRef) { return "b", ref },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				g := newGitLab()
				f, id, ref := restoredWithAClaim(t, g)
				defer f.stop()
				synctest.Wait()
				agent, begun := change(ref)
				a, w := f.join(agent, helloWith("1", 1, begun, fleetv1.JobState_JOB_STATE_STARTED))
				defer a.leave()
				require.Equal(t, fleetv1.Verdict_VERDICT_KILL, w.GetJobs()[0].GetVerdict())
				synctest.Wait()
				u, trace, ok := g.result(id)
				require.True(t, ok)
				require.Equal(t, runnerapi.ReasonRunnerSystem, u.FailureReason)
				require.Contains(t, trace, "restored from a backup, and agent agent-"+agent+" had begun the job")
			})
		})
	}
}

// Whoever begins a job although another is being asked by now has it taken away, and nobody runs it a second time.
func TestAJobThatIsFoundBegunTooLateFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGitLab()
		f, id, ref := restoredWithAClaim(t, g)
		defer f.stop()
		other, _ := f.join("b", hello("1", 1))
		defer other.leave()
		began := time.Now()
		offer := other.next().GetOffer().GetRef()
		require.Equal(t, ref.GetEpoch()+1, offer.GetEpoch(), "the agent has not come back in time")
		require.GreaterOrEqual(t, time.Since(began), returnPatience)
		a, w := f.join("a", helloWith("1", 1, ref, fleetv1.JobState_JOB_STATE_STARTED))
		defer a.leave()
		require.Equal(t, fleetv1.Verdict_VERDICT_KILL, w.GetJobs()[0].GetVerdict())
		require.NotNil(t, other.next().GetWithdraw())
		synctest.Wait()
		u, _, ok := g.result(id)
		require.True(t, ok)
		require.Equal(t, runnerapi.ReasonRunnerSystem, u.FailureReason)
	})
}
