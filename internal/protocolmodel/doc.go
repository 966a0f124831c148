// Package protocolmodel is the test of both sides of the fleet's protocol together: the real dispatcher, relay and store of
// a control plane, and the real ledger and trace sender of up to three agents, with every message between them, every
// answer of GitLab and the time in the hands of a random plan that shrinks when it finds something.
//
// Agents and control planes must not know of one another; this package knows both and has nothing to be imported.
package protocolmodel
