package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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
	keyPath, storePath := filepath.Join(cfg.Data, keyFile), filepath.Join(cfg.Data, storeFile)
	if cfg.Database == "" && missing(keyPath) && !missing(storePath) {
		return nil, fmt.Errorf("%s is missing beside %s: restore it from a backup (if it is lost, move the store away to begin a new one: "+
			"jobs that are under way are lost and agents must enrol again)", keyPath, storeFile)
	}
	key, err := sealing.LoadKey(keyPath)
	if err != nil {
		return nil, err
	}
	if cfg.Database == "" {
		s, err := sqlite.Open(ctx, storePath, key)
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

func missing(path string) bool {
	_, err := os.Stat(path)
	return errors.Is(err, fs.ErrNotExist)
}

// holder is what this control plane is called in the log of another that waits for it.
func holder(data string) string {
	host, err := os.Hostname()
	if err != nil {
		host = "a host without a name"
	}
	return fmt.Sprintf("%s (process %d, data in %s)", host, os.Getpid(), data)
}
