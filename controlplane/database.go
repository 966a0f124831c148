package controlplane

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/postgres"
	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
	"github.com/switchyard-ci/switchyard/controlplane/store/sqlite"
)

// openStore opens the store that the configuration names: a file in the data folder, or a PostgreSQL database. It waits
// while another control plane leads there.
func openStore(ctx context.Context, cfg Config, log *slog.Logger) (store.Store, error) {
	key, err := sealing.LoadKey(filepath.Join(cfg.Data, keyFile))
	if err != nil {
		return nil, err
	}
	if cfg.Database == "" {
		s, err := sqlite.Open(ctx, filepath.Join(cfg.Data, storeFile), key)
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	s, err := postgres.Open(ctx, string(cfg.Database), key, postgres.Options{Holder: holder(cfg.Data), Logger: log})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// holder is what this control plane is called in the log of another that waits for it.
func holder(data string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "a host without a name"
	}
	return fmt.Sprintf("%s (process %d, data in %s)", host, os.Getpid(), data)
}
