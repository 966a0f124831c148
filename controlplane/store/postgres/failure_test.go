package postgres_test

import (
	"bytes"
	"errors"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/conformance"
	"github.com/switchyard-ci/switchyard/controlplane/store/postgres"
	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
	"github.com/switchyard-ci/switchyard/internal/testbed"
)

func sql(t *testing.T, statements string) string {
	t.Helper()
	out, err := shared.SQL(statements)
	require.NoError(t, err)
	return out
}

func TestSecretsAreSealed(t *testing.T) {
	place := database(t)
	s := opened(t, place, postgres.Options{})
	job := conformance.NewJob(1)
	_, err := s.InsertJob(t.Context(), job)
	require.NoError(t, err)
	require.NoError(t, s.SaveRunnerToken(t.Context(), "everything", store.RunnerToken{Token: "glrt-rotated"}))
	require.NoError(t, s.Close())

	dump, err := shared.Dump(schema(place))
	require.NoError(t, err)
	require.True(t, bytes.Contains(dump, []byte("group/project")), "the envelope is not sealed")
	for _, secret := range []string{job.Token, `"unknown"`, "glrt-rotated"} {
		require.False(t, bytes.Contains(dump, []byte(secret)), secret)
	}

	// Sealed values are bound to their job.
	sql(t, "UPDATE "+schema(place)+".jobs SET gitlab_job_id = 2")
	s = opened(t, place, postgres.Options{})
	_, err = s.LoadJobs(t.Context())
	require.ErrorIs(t, err, sealing.ErrOpen)
}

func TestAnotherMasterKey(t *testing.T) {
	place := database(t)
	require.NoError(t, opened(t, place, postgres.Options{}).Close())
	_, err := postgres.Open(t.Context(), place, sealing.NewKey([32]byte{9}), postgres.Options{})
	require.ErrorIs(t, err, sealing.ErrOpen)
	require.ErrorContains(t, err, "put the master.key that belongs to it into the data folder")
	require.NoError(t, opened(t, place, postgres.Options{}).Close(), "the lead was given up")
}

func TestANewerSchema(t *testing.T) {
	place := database(t)
	require.NoError(t, opened(t, place, postgres.Options{}).Close())
	sql(t, "INSERT INTO "+schema(place)+".goose_db_version (version_id, is_applied) VALUES (99, true)")
	_, err := postgres.Open(t.Context(), place, key, postgres.Options{})
	require.ErrorContains(t, err, "it was written by a newer Switchyard (schema 99; this one knows up to 1): run that version again")
}

// A restored backup must not give ids again that were given after it was made.
func TestIDsAfterARestoredBackup(t *testing.T) {
	place := database(t)
	require.NoError(t, opened(t, place, postgres.Options{}).Close())
	backup, err := shared.Dump(schema(place))
	require.NoError(t, err)

	s := opened(t, place, postgres.Options{})
	job, err := s.InsertJob(t.Context(), conformance.NewJob(1))
	require.NoError(t, err)
	require.NoError(t, s.Close())

	require.NoError(t, shared.Restore(schema(place), backup))
	s = opened(t, place, postgres.Options{})
	after, err := s.InsertJob(t.Context(), conformance.NewJob(2))
	require.NoError(t, err)
	require.Greater(t, after.ID, job.ID)
}

// with changes the query of a URL.
func with(t *testing.T, place string, change func(*url.URL, url.Values)) string {
	t.Helper()
	u, err := url.Parse(place)
	require.NoError(t, err)
	query := u.Query()
	change(u, query)
	u.RawQuery = query.Encode()
	return u.String()
}

func TestDatabasesThatCannotBeUsed(t *testing.T) {
	place := database(t)
	sql(t, "CREATE DATABASE latin ENCODING LATIN1 TEMPLATE template0")
	sql(t, "CREATE ROLE reader LOGIN")
	require.NoError(t, opened(t, place, postgres.Options{}).Close())
	sql(t, "GRANT USAGE ON SCHEMA "+schema(place)+" TO reader")
	sql(t, "GRANT SELECT ON ALL TABLES IN SCHEMA "+schema(place)+" TO reader")
	for want, change := range map[string]func(u *url.URL, q url.Values){
		`database "nowhere" does not exist`:          func(u *url.URL, _ url.Values) { u.Path = "/nowhere" },
		`role "nobody" does not exist`:               func(_ *url.URL, q url.Values) { q.Set("user", "nobody") },
		"the database's encoding is LATIN1":          func(u *url.URL, _ url.Values) { u.Path = "/latin" },
		"the server is read-only (a standby":         func(_ *url.URL, q url.Values) { q.Set("default_transaction_read_only", "on") },
		"the user of the database's URL has too few": func(_ *url.URL, q url.Values) { q.Set("user", "reader") },
		"no such file or directory":                  func(_ *url.URL, q url.Values) { q.Set("host", "/nowhere") },
		"sslmode is invalid":                         func(_ *url.URL, q url.Values) { q.Set("host", "127.0.0.1"); q.Set("sslmode", "perhaps") },
	} {
		t.Run(want, func(t *testing.T) {
			_, err := postgres.Open(t.Context(), with(t, place, change), key, postgres.Options{Patience: time.Millisecond})
			require.ErrorContains(t, err, want)
		})
	}
}

func TestPasswordsAreNotShown(t *testing.T) {
	testbed.Need(t, testbed.PostgreSQL)
	for _, place := range []string{
		"postgres://switchyard:S3CRET@127.0.0.1:1/x",
		"postgres://switchyard:S3CRET/1@127.0.0.1:1/x",
		"postgres://switchyard:S3CRET@127.0.0.1:1:2/x",
		"postgres://switchyard:S3CRET%ZZ@127.0.0.1/x",
		"postgres://switchyard:S3CRET@127.0.0.1/x?sslmode=S3CRET",
		"host=127.0.0.1 password=S3CRET port=x",
		"S3CRET",
		with(t, shared.URL(""), func(u *url.URL, q url.Values) { q.Set("password", "S3CRET"); q.Set("user", "nobody") }),
	} {
		_, err := postgres.Open(t.Context(), place, key, postgres.Options{Patience: time.Millisecond})
		require.Error(t, err)
		require.NotContains(t, err.Error(), "S3CRET")
	}
}

// Commits reach the disk although the server would answer before.
func TestSynchronousCommit(t *testing.T) {
	place := database(t)
	for setting, want := range map[string]string{"off": "on", "on": "on", "local": "local", "remote_apply": "remote_apply"} {
		s := opened(t, with(t, place, func(_ *url.URL, q url.Values) { q.Set("synchronous_commit", setting) }), postgres.Options{})
		require.Equal(t, want, s.SynchronousCommit(t))
		require.NoError(t, s.Close())
	}
}

// While a job that does not fit any more is refused, what fits is written: results first of all.
func TestFullDisk(t *testing.T) {
	place := database(t)
	disk := smallDisk(t, 4<<20)
	require.NoError(t, shared.Own(disk))
	s := opened(t, place, postgres.Options{})
	first, err := s.InsertJob(t.Context(), conformance.NewJob(1))
	require.NoError(t, err)
	require.NoError(t, s.StartJob(t.Context(), first.ID, 1, time.Now()))
	sql(t, "CREATE TABLESPACE small LOCATION '"+disk+"'")
	t.Cleanup(func() {
		sql(t, "ALTER TABLE "+schema(place)+".payloads SET TABLESPACE pg_default")
		sql(t, "CHECKPOINT")
		sql(t, "DROP TABLESPACE small")
	})
	sql(t, "ALTER TABLE "+schema(place)+".payloads SET TABLESPACE small")

	large := func(n int64) error {
		job := conformance.NewJob(n)
		job.Payload = bytes.Repeat([]byte("x"), 8<<20)
		_, err := s.InsertJob(t.Context(), job)
		return err
	}
	err = large(2)
	require.ErrorIs(t, err, store.ErrFull)
	require.ErrorContains(t, err, "free some space on the database's disk, a control plane that runs goes on by itself")

	// Beside large ones, which take the commit down that they share.
	var group sync.WaitGroup
	for n := range int64(8) {
		group.Go(func() {
			if err := large(100 + n); !errors.Is(err, store.ErrFull) {
				t.Errorf("a job that does not fit: %v", err)
			}
		})
	}
	require.NoError(t, s.FinishJob(t.Context(), first.ID, 1, store.Result{State: "success"}))
	group.Wait()
	jobs, err := s.LoadJobs(t.Context())
	require.NoError(t, err)
	require.Len(t, jobs, 1)
	require.Equal(t, store.JobFinished, jobs[0].State)
	require.NoError(t, s.DeleteJob(t.Context(), first.ID))
}
