package postgres_test

import (
	"strconv"
	"testing"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/conformance"
	"github.com/switchyard-ci/switchyard/controlplane/store/postgres"
)

func BenchmarkJob(b *testing.B) {
	conformance.Benchmark(b, func(b *testing.B) (store.Store, func() int64) {
		s, err := postgres.Open(b.Context(), database(b), key, postgres.Options{})
		if err != nil {
			b.Fatal(err)
		}
		return s, func() int64 { return transactions(b, s) }
	})
}

// transactions is the server's own count of the commits that sessions have made.
func transactions(b *testing.B, s *postgres.Store) int64 {
	b.Helper()
	s.FlushStatistics(b)
	out, err := shared.SQL("SELECT xact_commit FROM pg_stat_database WHERE datname = 'postgres'")
	if err != nil {
		b.Fatal(err)
	}
	n, err := strconv.ParseInt(out, 10, 64)
	if err != nil {
		b.Fatal(err)
	}
	return n
}
