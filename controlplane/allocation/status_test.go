package allocation

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// A share is what somebody may have now: who is paused has none, and the others divide all of it.
func TestSharesOfThoseThatArePaused(t *testing.T) {
	f := newFleet(t, Policy{Nodes: map[string]Rule{
		NodeName(gitlabURL, "off"): {Paused: true}, NodeName(gitlabURL, "shop/old"): {Paused: true}, NodeName(gitlabURL, "shop"): {Weight: 3},
	}}, Runner{Name: "shared"})
	shares := func() map[string]float64 {
		all := make(map[string]float64)
		for _, n := range f.s.Status(f.now) {
			if n.Kind == kindProject.String() {
				all[n.Name[len(gitlabURL)+1:]] = n.Share
			}
		}
		return all
	}
	f.arrive(1, "off/p")
	f.arrive(2, "shop/old")
	f.arrive(3, "shop/web")
	f.arrive(4, "tools/cli")
	require.Equal(t, map[string]float64{"off/p": 0, "shop/old": 0, "shop/web": 0.75, "tools/cli": 0.25}, shares())

	// What runs already when it is paused goes on, and counts.
	f.s.SetPolicy(f.now, Policy{})
	f.serveAll()
	f.s.SetPolicy(f.now, Policy{Nodes: map[string]Rule{NodeName(gitlabURL, "tools"): {Paused: true}}})
	require.Greater(t, shares()["tools/cli"], 0.0)
}
