//go:build unix

package shell

import (
	"context"
	"os"
)

// waitInBackground waits where the system cannot wait for a process and something else at once: if ctx ends, a goroutine
// stays until the process has ended.
func waitInBackground(ctx context.Context, p *os.Process) (*os.ProcessState, error) {
	type end struct {
		state *os.ProcessState
		err   error
	}
	ended := make(chan end, 1)
	go func() {
		state, err := p.Wait()
		ended <- end{state, err}
	}()
	select {
	case e := <-ended:
		return e.state, e.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}
