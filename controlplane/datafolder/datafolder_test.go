//go:build unix

package datafolder_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/datafolder"
)

// TestMain lets this binary be the other process, too: it takes the folder and holds it until its input ends.
func TestMain(m *testing.M) {
	if path := os.Getenv("HOLD_FOLDER"); path != "" {
		if _, err := datafolder.Open(path); err != nil {
			_, _ = os.Stdout.WriteString(err.Error())
			os.Exit(1)
		}
		_, _ = os.Stdout.WriteString("+")
		_, _ = os.Stdin.Read(make([]byte, 1))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestOneControlPlanePerFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "made", "data")
	holder := exec.CommandContext(t.Context(), os.Args[0])
	holder.Env = append(os.Environ(), "HOLD_FOLDER="+path)
	_, err := holder.StdinPipe()
	require.NoError(t, err)
	out, err := holder.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, holder.Start())
	_, err = out.Read(make([]byte, 1))
	require.NoError(t, err)

	_, err = datafolder.Open(path)
	var inUse *datafolder.InUseError
	require.ErrorAs(t, err, &inUse)
	require.Equal(t, &datafolder.InUseError{Path: path, PID: holder.Process.Pid}, inUse)
	require.ErrorContains(t, err, "another control plane (process "+strconv.Itoa(holder.Process.Pid)+") uses the data folder "+path+": stop it")

	require.NoError(t, holder.Process.Kill())
	require.Error(t, holder.Wait())
	folder, err := datafolder.Open(path)
	require.NoError(t, err, "a killed process holds nothing")
	_, err = datafolder.Open(path)
	require.ErrorAs(t, err, &inUse, "not even the same process may have it twice")
	require.NoError(t, folder.Close())
	folder, err = datafolder.Open(path)
	require.NoError(t, err)
	require.NoError(t, folder.Close())

	for name, mode := range map[string]os.FileMode{".": 0o700 | os.ModeDir, "..": 0o700 | os.ModeDir, "controlplane.lock": 0o600} {
		info, err := os.Stat(filepath.Join(path, name))
		require.NoError(t, err)
		require.Equal(t, mode, info.Mode(), name)
	}
}

func TestAFolderThatCannotBeMade(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := datafolder.Open(filepath.Join(file, "data"))
	require.ErrorContains(t, err, "the key data in the configuration says where it is")
}
