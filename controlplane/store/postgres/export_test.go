package postgres

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// SynchronousCommit is what the leader's session commits with.
func (s *Store) SynchronousCommit(t *testing.T) (setting string) {
	t.Helper()
	require.NoError(t, s.writer.do(t.Context(), func(t *tx) error { return t.row("SHOW synchronous_commit").Scan(&setting) }))
	return setting
}
