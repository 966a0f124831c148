package sqlite_test

import (
	"path/filepath"
	"testing"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/conformance"
	"github.com/switchyard-ci/switchyard/controlplane/store/sqlite"
)

func BenchmarkJob(b *testing.B) {
	conformance.Benchmark(b, func(b *testing.B) (store.Store, func() int64) {
		s, err := sqlite.Open(b.Context(), filepath.Join(b.TempDir(), "store.db"), key)
		if err != nil {
			b.Fatal(err)
		}
		return s, s.Commits
	})
}
