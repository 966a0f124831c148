//go:build unix && !linux

package shell

import (
	"context"
	"os"
)

type waiter struct{ process *os.Process }

func start(path string, attr *os.ProcAttr, argv []string) (*waiter, error) {
	process, err := os.StartProcess(path, argv, attr)
	if err != nil {
		return nil, err
	}
	return &waiter{process}, nil
}

func (w *waiter) wait(ctx context.Context) (*os.ProcessState, error) {
	return waitInBackground(ctx, w.process)
}
