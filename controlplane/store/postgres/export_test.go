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

// FlushStatistics has the leader's session tell the server what it has counted so far.
func (s *Store) FlushStatistics(t testing.TB) {
	t.Helper()
	require.NoError(t, s.writer.do(t.Context(), func(t *tx) error {
		_, err := t.exec("SELECT pg_stat_force_next_flush()")
		return err
	}))
}
