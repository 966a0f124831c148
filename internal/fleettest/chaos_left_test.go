package fleettest

import (
	"bytes"
	"database/sql"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	_ "modernc.org/sqlite" // reads what a killed control plane has written down
)

// settle waits until the control plane has let go of every job and the agents have removed their folders.
func (c *chaos) settle() {
	c.t.Helper()
	c.await("the control plane has let go of all jobs", func() bool {
		out, err := exec.Command(filepath.Join(bin, "switchyard"), "jobs", "list", "-o", "json", "-c", c.config()).Output()
		var jobs []struct{ Job json.RawMessage }
		return err == nil && json.Unmarshal(out, &jobs) == nil && len(jobs) == 0
	})
	c.await("no folder of a job is left", func() bool {
		for i := range chaosAgents {
			left, err := os.ReadDir(filepath.Join(c.dir, agentName(i), "jobs"))
			if err != nil || len(left) != 0 {
				return false
			}
		}
		return true
	})
}

// nothingIsLeft stops the programs and looks for what they should have removed.
func (c *chaos) nothingIsLeft() {
	c.t.Helper()
	for name, a := range c.agents {
		a.signal(c.t, syscall.SIGTERM)
		c.keepLog(name, a)
	}
	c.plane.signal(c.t, syscall.SIGTERM)
	c.keepLog("control plane", c.plane)
	for gitlab, jobs := range c.rows() {
		assert.Empty(c.t, jobs, "rows of jobs of %s", gitlab)
	}
	assert.Zero(c.t, c.countPayloads(), "payloads in the store")
	err := filepath.WalkDir(filepath.Join(c.dir, "plane", "spool"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !chaosSpoolKeeps(d.Name()) {
			c.t.Errorf("left in the spool: %s", path)
		}
		return err
	})
	if !errors.Is(err, fs.ErrNotExist) {
		require.NoError(c.t, err)
	}
	assert.Empty(c.t, c.processesOf(), "processes that were started for this fleet")
}

// chaosSpoolKeeps are files of the spool that belong to no job: the log of checkpoints of all, the room that is kept free.
func chaosSpoolKeeps(name string) bool { return name == "checkpoints" || name == "reserve" }

// processesOf are the living processes that have the fleet's folder in their environment or command line.
func (c *chaos) processesOf() []string {
	var found []string
	for _, kind := range []string{"environ", "cmdline"} {
		files, err := filepath.Glob("/proc/[0-9]*/" + kind)
		require.NoError(c.t, err)
		for _, file := range files {
			if b, err := os.ReadFile(file); err == nil && bytes.Contains(b, []byte(c.dir)) {
				found = append(found, file+": "+string(limit(bytes.ReplaceAll(b, []byte{0}, []byte{' '}))))
			}
		}
	}
	return found
}

// rows returns the jobs that stand in the store of a control plane that has ended, by the address of their GitLab.
func (c *chaos) rows() map[string]map[int64]bool {
	c.t.Helper()
	found := map[string]map[int64]bool{}
	c.query("SELECT gitlab_url, gitlab_job_id FROM jobs", func(scan func(...any) error) error {
		var address string
		var job int64
		if err := scan(&address, &job); err != nil {
			return err
		}
		u, err := url.Parse(address)
		if err != nil {
			return err
		}
		base := u.Scheme + "://" + u.Host
		if found[base] == nil {
			found[base] = map[int64]bool{}
		}
		found[base][job] = true
		return nil
	})
	return found
}

func (c *chaos) countPayloads() int {
	c.t.Helper()
	n := 0
	c.query("SELECT count(*) FROM payloads", func(scan func(...any) error) error { return scan(&n) })
	return n
}

// query asks a copy of the store, so that nothing of the control plane's is touched.
func (c *chaos) query(statement string, row func(scan func(...any) error) error) {
	c.t.Helper()
	dir, err := os.MkdirTemp(c.dir, "store-")
	require.NoError(c.t, err)
	defer os.RemoveAll(dir)
	for _, suffix := range []string{"", "-wal"} {
		err := copyFile(filepath.Join(c.dir, "plane", "switchyard.db"+suffix), filepath.Join(dir, "copy.db"+suffix))
		if suffix == "" || !errors.Is(err, fs.ErrNotExist) {
			require.NoError(c.t, err)
		}
	}
	db, err := sql.Open("sqlite", filepath.Join(dir, "copy.db"))
	require.NoError(c.t, err)
	defer db.Close()
	rows, err := db.QueryContext(c.t.Context(), statement)
	require.NoError(c.t, err)
	defer rows.Close()
	for rows.Next() {
		require.NoError(c.t, row(rows.Scan))
	}
	require.NoError(c.t, rows.Err())
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
