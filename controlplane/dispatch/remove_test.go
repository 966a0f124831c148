package dispatch

import (
	"context"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestARemovedAgentsJobsAreLostAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGitLab()
		var removed atomic.Bool
		f := start(t, t.TempDir(), g, func(c *Config) {
			identity := c.Identity
			c.Identity = func(ctx context.Context) (id, name string, err error) {
				if id, name, err = identity(ctx); err == nil && id == "a" && removed.Load() {
					err = errRemoved
				}
				return id, name, err
			}
		})
		defer f.stop()
		require.Zero(t, f.d.RemoveAgent("a"), "nobody knows it")
		a, _ := f.join("a", hello("1", 2))
		defer a.leave()
		running := f.claim("any")
		ref := a.begin()
		f.claim("any")
		asked := a.next().GetOffer().GetRef()
		b, _ := f.join("b", hello("2", 1))
		defer b.leave()

		removed.Store(true)
		require.Equal(t, 1, f.d.RemoveAgent("a"))
		told := map[int64]bool{}
		for range 2 {
			m := a.next()
			told[m.GetForget().GetRef().GetJob()+m.GetWithdraw().GetRef().GetJob()] = true
		}
		require.Equal(t, map[int64]bool{ref.GetJob(): true, asked.GetJob(): true}, told, "it hears what becomes of its jobs")
		_, err := a.stream.Recv()
		require.Equal(t, codes.PermissionDenied, status.Code(err))
		require.ErrorContains(t, err, "removed from the fleet")
		synctest.Wait()
		u, trace, ended := g.result(running)
		require.True(t, ended)
		require.EqualValues(t, "runner_system_failure", u.FailureReason)
		require.Contains(t, trace, "agent agent-a was removed from the fleet by an administrator while it had the job")
		next := b.begin()
		require.Equal(t, asked.GetJob(), next.GetJob(), "what had not begun goes elsewhere")
		b.finish(next, "")
		require.Len(t, f.d.Agents(), 1)

		again := f.dial("a")
		defer again.leave()
		_, err = again.stream.Recv()
		require.Equal(t, codes.PermissionDenied, status.Code(err))
	})
}
