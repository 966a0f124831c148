package controlplane

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestAMasterKeyThatIsMissing(t *testing.T) {
	cfg := Config{Data: t.TempDir()}
	key := filepath.Join(cfg.Data, "master.key")
	s, err := openStore(t.Context(), cfg, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.NoError(t, os.Rename(key, key+".away"))
	_, err = openStore(t.Context(), cfg, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, key+" is missing beside switchyard.db: restore it from a backup")
	require.NoFileExists(t, key, "no other is made")
	require.NoError(t, os.Rename(key+".away", key))
	s, err = openStore(t.Context(), cfg, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	require.NoError(t, s.Close())
}
