//go:build !linux

package postgres_test

import "testing"

func smallDisk(t *testing.T, _ int) string {
	t.Helper()
	t.Skip("needs a disk that is small")
	return ""
}
