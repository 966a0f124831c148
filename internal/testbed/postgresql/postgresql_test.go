//go:build unix

package postgresql_test

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/internal/testbed/postgresql"
)

func TestAServerThatCrashesAndStartsAgain(t *testing.T) {
	s := postgresql.Start(t)
	_, err := s.SQL("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)")
	require.NoError(t, err)
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGQUIT, syscall.SIGKILL} {
		require.NoError(t, s.Stop(signal))
		_, err = s.SQL("SELECT 1")
		require.Error(t, err)
		require.NoError(t, s.Start())
		kept, err := s.SQL("SELECT n FROM kept")
		require.NoError(t, err)
		require.Equal(t, "7", kept)
	}
}
