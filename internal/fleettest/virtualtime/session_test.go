package virtualtime

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/dispatch"
)

// A connection that is dead in one direction or in both is found by both sides within two ping periods, whenever it dies,
// and the agent is back soon after the network is.
func TestAHalfOpenConnectionIsFoundByBothSides(t *testing.T) {
	for _, d := range []direction{up, down, both} {
		for seed := range uint64(6) {
			t.Run(fmt.Sprintf("%s/%d", d, seed), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					r := rand.New(rand.NewPCG(seed, uint64(d))) //nolint:gosec // not negative
					period := time.Second + time.Duration(r.Int64N(int64(24*time.Second)))
					delay := time.Duration(r.Int64N(int64(200 * time.Millisecond)))
					f := start(t, options{period: period, delay: delay, runners: []dispatch.Runner{{Name: "any"}}})
					defer f.stop()
					job := f.claim("any")
					f.pass(time.Duration(r.Int64N(int64(4 * period))))
					cutAt := time.Now()
					f.net.set(d)
					f.pass(2*period + 10*time.Second)
					trip := 8 * delay
					for _, side := range []struct{ name, says string }{
						{"control plane", `msg="agent left" of=plane`},
						{"agent", `msg="not connected`},
					} {
						at, _ := f.log.after(cutAt, side.says)
						require.False(t, at.IsZero(), "the %s has not noticed", side.name)
						require.WithinRange(t, at, cutAt.Add(period-trip), cutAt.Add(2*period+trip), "the %s", side.name)
					}
					f.net.set(0)
					f.until(f.online)
					told, _ := f.place.times(job)
					require.Zero(t, told, "the job has noticed nothing")
				})
			})
		}
	}
}
