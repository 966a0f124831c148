package sqlite_test

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/conformance"
	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
	"github.com/switchyard-ci/switchyard/controlplane/store/sqlite"
)

func openAt(location string) (store.Store, error) {
	return sqlite.Open(context.Background(), filepath.Join(location, "store.db"), key)
}

func TestCrash(t *testing.T) {
	conformance.Crash(t, t.TempDir, openAt)
}

// raw opens the database behind the store's back.
func raw(t *testing.T, path string) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	return db
}

func TestFilesAreClosedToOthers(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "made", "data")
	s, err := openAt(folder)
	require.NoError(t, err)
	defer s.Close()
	_, err = s.InsertJob(t.Context(), conformance.NewJob(1))
	require.NoError(t, err)
	info, err := os.Stat(folder)
	require.NoError(t, err)
	require.Equal(t, fs.ModeDir|0o700, info.Mode())
	entries, err := os.ReadDir(folder)
	require.NoError(t, err)
	require.Len(t, entries, 3)
	for _, entry := range entries {
		info, err := entry.Info()
		require.NoError(t, err)
		require.Equal(t, fs.FileMode(0o600), info.Mode(), entry.Name())
	}
}

func TestSecretsAreSealed(t *testing.T) {
	folder := t.TempDir()
	s, err := openAt(folder)
	require.NoError(t, err)
	job := conformance.NewJob(1)
	_, err = s.InsertJob(t.Context(), job)
	require.NoError(t, err)
	require.NoError(t, s.Close())

	content, err := os.ReadFile(filepath.Join(folder, "store.db"))
	require.NoError(t, err)
	require.True(t, bytes.Contains(content, []byte("group/project")), "the envelope is not sealed")
	require.False(t, bytes.Contains(content, []byte(job.Token)))
	require.False(t, bytes.Contains(content, []byte(`"unknown"`)))

	// Sealed values are bound to their job.
	db := raw(t, filepath.Join(folder, "store.db"))
	_, err = db.ExecContext(t.Context(), "UPDATE jobs SET gitlab_job_id = 2")
	require.NoError(t, err)
	s, err = openAt(folder)
	require.NoError(t, err)
	_, err = s.LoadJobs(t.Context())
	require.ErrorIs(t, err, sealing.ErrOpen)
	require.NoError(t, s.Close())
}

func TestAnotherMasterKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s, err := sqlite.Open(t.Context(), path, key)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	_, err = sqlite.Open(t.Context(), path, sealing.NewKey([32]byte{9}))
	require.ErrorIs(t, err, sealing.ErrOpen)
	require.ErrorContains(t, err, "put the master.key back that belongs to it")
}

func TestANewerSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s, err := sqlite.Open(t.Context(), path, key)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	_, err = raw(t, path).ExecContext(t.Context(), "INSERT INTO goose_db_version (version_id, is_applied) VALUES (99, 1)")
	require.NoError(t, err)
	_, err = sqlite.Open(t.Context(), path, key)
	require.ErrorContains(t, err, "it was written by a newer Switchyard (schema 99; this one knows up to 2): run that version again")
}

// A restored backup must not give ids again that were given after it was made.
func TestIDsAfterARestoredBackup(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "store.db")
	s, err := sqlite.Open(t.Context(), path, key)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	backup, err := os.ReadFile(path)
	require.NoError(t, err)

	s, err = sqlite.Open(t.Context(), path, key)
	require.NoError(t, err)
	job, err := s.InsertJob(t.Context(), conformance.NewJob(1))
	require.NoError(t, err)
	require.NoError(t, s.Close())

	require.NoError(t, os.WriteFile(path, backup, 0o600))
	s, err = sqlite.Open(t.Context(), path, key)
	require.NoError(t, err)
	after, err := s.InsertJob(t.Context(), conformance.NewJob(2))
	require.NoError(t, err)
	require.Greater(t, after.ID, job.ID)
	require.NoError(t, s.Close())
}

func TestDamage(t *testing.T) {
	for name, damage := range map[string]func(content []byte) []byte{
		"not a database": func([]byte) []byte { return bytes.Repeat([]byte("junk"), 4096) },
		"overwritten page": func(content []byte) []byte {
			return append(content[:4096:4096], bytes.Repeat([]byte{0xff}, len(content)-4096)...)
		},
		"cut off": func(content []byte) []byte { return content[:len(content)/2] },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "store.db")
			s, err := sqlite.Open(t.Context(), path, key)
			require.NoError(t, err)
			for n := range int64(50) {
				_, err = s.InsertJob(t.Context(), conformance.NewJob(n))
				require.NoError(t, err)
			}
			require.NoError(t, s.Close())
			content, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, damage(content), 0o600))

			s, err = sqlite.Open(t.Context(), path, key)
			if err == nil {
				_, err = s.LoadJobs(t.Context())
				require.NoError(t, s.Close())
			}
			require.ErrorIs(t, err, store.ErrDamaged)
			require.ErrorContains(t, err, "restore a backup")
		})
	}
}

func TestAPathThatIsNoFile(t *testing.T) {
	folder := t.TempDir()
	_, err := sqlite.Open(t.Context(), folder, key)
	require.ErrorContains(t, err, "open the store "+folder)
	file := filepath.Join(folder, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = sqlite.Open(t.Context(), filepath.Join(file, "store.db"), key)
	require.ErrorContains(t, err, "make the folder")
}

// A path may have any character that a file name may have.
func TestAnOddPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b?mode=ro&x#%41", "store.db")
	s, err := sqlite.Open(t.Context(), path, key)
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.FileExists(t, path)
}

// While a job that does not fit any more is refused, what fits is written: results first of all.
func TestFullDisk(t *testing.T) {
	folder := smallDisk(t, 2<<20)
	s, err := openAt(folder)
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	first, err := s.InsertJob(t.Context(), conformance.NewJob(1))
	require.NoError(t, err)
	require.NoError(t, s.StartJob(t.Context(), first.ID, 1, time.Now()))

	large := func(n int64) error {
		job := conformance.NewJob(n)
		job.Payload = bytes.Repeat([]byte("x"), 4<<20)
		_, err := s.InsertJob(t.Context(), job)
		return err
	}
	err = large(2)
	require.ErrorIs(t, err, store.ErrFull)
	require.ErrorContains(t, err, "free some space on its disk, a control plane that runs goes on by itself")

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
