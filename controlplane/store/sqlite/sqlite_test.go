package sqlite_test

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/conformance"
	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
	"github.com/switchyard-ci/switchyard/controlplane/store/sqlite"
)

func TestMain(m *testing.M) {
	conformance.CrashChild(openAt)
	goleak.VerifyTestMain(m)
}

var key = sealing.NewKey([32]byte{1, 2, 3})

// opener opens the same store for each call of one test.
func opener() func(t *testing.T) store.Store {
	folders := map[string]string{}
	return func(t *testing.T) store.Store {
		t.Helper()
		if folders[t.Name()] == "" {
			folders[t.Name()] = t.TempDir()
		}
		s, err := sqlite.Open(t.Context(), filepath.Join(folders[t.Name()], "store.db"), key)
		require.NoError(t, err)
		return s
	}
}

func TestConformance(t *testing.T) {
	conformance.Run(t, opener())
}
