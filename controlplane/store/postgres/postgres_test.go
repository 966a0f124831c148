package postgres_test

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/conformance"
	"github.com/switchyard-ci/switchyard/controlplane/store/postgres"
	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
	"github.com/switchyard-ci/switchyard/internal/testbed"
	"github.com/switchyard-ci/switchyard/internal/testbed/postgresql"
)

// shared is the server of all tests that do not stop theirs; nil without PostgreSQL.
var shared *postgresql.Server

func TestMain(m *testing.M) {
	conformance.CrashChild(openAt)
	leaderChild()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if testbed.PostgreSQL.Check() == nil {
		var err error
		if shared, err = postgresql.New(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	code := m.Run()
	if shared != nil {
		if err := shared.Close(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

var key = sealing.NewKey([32]byte{1, 2, 3})

func openAt(url string) (store.Store, error) {
	return postgres.Open(context.Background(), url, key, postgres.Options{Holder: "test"})
}

// database makes an empty place on the shared server.
func database(t testing.TB) (url string) {
	t.Helper()
	testbed.Need(t, testbed.PostgreSQL)
	url, err := shared.Schema()
	require.NoError(t, err)
	return url
}

// schema is the name that a URL of database leads to.
func schema(url string) string {
	_, rest, _ := strings.Cut(url, "search_path=")
	name, _, _ := strings.Cut(rest, "&")
	return name
}

func TestConformance(t *testing.T) {
	testbed.Need(t, testbed.PostgreSQL)
	places := map[string]string{}
	conformance.Run(t, func(t *testing.T) store.Store {
		t.Helper()
		if places[t.Name()] == "" {
			places[t.Name()] = database(t)
		}
		s, err := openAt(places[t.Name()])
		require.NoError(t, err)
		return s
	})
}

func TestCrash(t *testing.T) {
	testbed.Need(t, testbed.PostgreSQL)
	conformance.Crash(t, func() string { return database(t) }, openAt)
}
