package config_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/config"
)

func TestSpool(t *testing.T) {
	for text, want := range map[string]config.Spool{
		"":                                       {},
		"spool: {max_size: 20GiB}\n":             {MaxSize: 20 << 30},
		"spool: {max_size: 1 TiB, min_free: 1B}": {MaxSize: 1 << 40, MinFree: 1},
		"spool: {min_free: 512MiB}\n":            {MinFree: 512 << 20},
		"spool: {min_free: 100KiB}\n":            {MinFree: 100 << 10},
	} {
		path := filepath.Join(t.TempDir(), "switchyard.yaml")
		require.NoError(t, os.WriteFile(path, []byte("runners: [{name: a, url: 'https://gitlab.example.com', token: glrt-x}]\n"+text), 0o600))
		c, _, err := config.Load(path)
		require.NoError(t, err, text)
		require.Equal(t, want, c.Spool, text)
	}
}
