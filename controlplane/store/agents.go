package store

import (
	"strconv"
	"time"
)

// JoinTokenMemory is how long an expired join token is remembered, so that whoever still uses it is told that it has
// expired. AddJoinToken forgets older ones.
const JoinTokenMemory = 30 * 24 * time.Hour

// Check returns by which rule the token is not good at that time, or nil.
func (t JoinToken) Check(now time.Time) error {
	switch {
	case t.Revoked:
		return ErrTokenRevoked
	case !now.Before(t.ExpiresAt):
		return ErrTokenExpired
	case t.Uses <= 0:
		return ErrTokenUsed
	}
	return nil
}

// maxAgentName is the limit of EnrollRequest.name, in bytes.
const maxAgentName = 63

// AgentName returns the n-th name to try for an agent, from 1: the wanted one, then with the suffixes -2, -3, …. A long
// name is cut so that it stays within 63 bytes.
func AgentName(wanted string, n int) string {
	if n <= 1 {
		return wanted
	}
	suffix := "-" + strconv.Itoa(n)
	return wanted[:min(len(wanted), maxAgentName-len(suffix))] + suffix
}
