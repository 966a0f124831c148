package shell

import "context"

// GroupNames are those of the control groups that an executor's jobs have.
func GroupNames(ctx context.Context, e *Executor) ([]string, error) { return e.groups.names(ctx) }
