// Package fleettest tests and measures whole fleets: the embedded GitLab, the control plane, agents and jobs, in one
// process (localfleet) or as the processes that users run. It has no code but tests.
package fleettest
