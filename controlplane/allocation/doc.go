// Package allocation says who is served next. It is pure: no clock, no I/O; the same calls give the same answers, on
// every machine.
//
// # The rule
//
// Everything that can be charged is a node of a tree: the fleet, its GitLabs, their groups and subgroups, projects, and
// runners below the node that they are bound to. What waits are jobs (below their project) and runners that want to
// claim. A free slot goes down the tree; at each level the child is chosen that
//
//  1. may be served: neither it nor a node above it is paused or at its hard quota;
//  2. is below its guaranteed minimum, or else not over its soft quota;
//  3. would still be within its part of the slots with one lease more, by weight among the siblings that wait: of these,
//     the one with the fewest leases per weight;
//  4. has used the least slot-time per weight (start-time fair queueing: Goyal, Vin, Cheng 1996);
//  5. has waited longest; then the lowest job id, then the name.
//
// The length of a job is not known when it starts. It is charged what jobs of its name, or else of its project, have
// lasted, and what it really took when it ends. Being idle earns nothing; what a node was ahead of or behind its
// siblings when it became idle is forgiven with a half-life, and it is never behind by more than Policy.CreditCap. Step 3
// keeps newcomers from waiting for the estimates to come true, and it stops where parts are smaller than a slot: fewest
// running per weight alone would never serve a weight of 1 beside one of 3 on two slots.
//
// Inside a project priority and waiting count (Policy.Ageing). Across projects a granted class goes first, but not for
// longer than Policy.ClassPatience. Jobs that GitLab takes for running already (Job.Committed) come before all others
// and know no quota.
//
// Pools are kinds of slots. Shares are judged among the pools whose slots may be the same ones (those that Next was
// called with together): a project with a full Linux pool loses no turn on macOS. Quotas, minimums and learned lengths
// are the same everywhere.
//
// # How it is used
//
// The caller owns slots, agents and claims; the Scheduler owns the order.
//
//	s := allocation.New(policy)        // SetPolicy at any later time
//	s.Restore(now, snapshot)           // after a restart, then Arrive and Resume for what the store has
//	s.SetRunner(now, runner)           // for each runner, and when it changes; RemoveRunner
//
//	s.Want(now, runner, n)             // it would begin n claims; again whenever n changes
//	s.Arrive(now, job)                 // a claimed job that waits for a slot; Withdraw when it is gone
//	s.Hold(now, key, why)              // no agent with room may run it now; Release when that may have changed
//
//	for agent has a free slot {        // pools: all that the agent serves
//		d, ok := s.Next(now, pools...)
//		// !ok: nobody that may wants it
//		// d.Claim: s.StartClaim(now, d.Runner), and the runner asks GitLab
//		// else: s.Start(now, d.Job), and the agent gets the job
//	}
//
//	s.EndClaim(now, runner)            // the claim is over; if it brought a job: Arrive, then Start, which hands the
//	                                   // claim's slot to it, or Next, which gives the slot to whoever is first
//	s.Finish(now, key)                 // the slot is free, the job ran; Return if it did not and waits again
//
// A runner that looks ahead claims without StartClaim: the jobs that come Arrive, and wait. Hard and soft quotas count
// leases, claims under way included. Snapshot is for the store, every minute or so; Explain says why something waits.
package allocation
