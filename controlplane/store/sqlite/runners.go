package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// SystemID implements store.Runners.
func (s *Store) SystemID(ctx context.Context, runner string) (string, error) {
	var id string
	err := s.read.systemID.QueryRowContext(ctx, runner).Scan(&id)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		err = s.writer.do(ctx, func(t *tx) error {
			return t.row(t.addRunner, runner, store.NewSystemID()).Scan(&id)
		})
	case err != nil:
		err = s.readError(err)
	}
	if err != nil {
		return "", fmt.Errorf("system id of runner %q: %w", runner, err)
	}
	return id, nil
}
