//go:build !linux

package client

import "syscall"

// limitUnacknowledged has no counterpart here: a dead peer is found by the request's own timeout.
func limitUnacknowledged(string, string, syscall.RawConn) error { return nil }
