//go:build unix

package fakejob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/job/attach"
	"github.com/switchyard-ci/switchyard/job/folder"
)

type environment struct {
	x      *Executor
	spec   executors.Spec
	folder string // the job's
	done   chan struct{}
}

func (v *environment) Job() executors.Place {
	return executors.Place{Folder: v.folder, Binary: "fake", BuildsDir: "/b", CacheDir: "/c", KillGrace: 100 * time.Millisecond}
}
func (v *environment) LocalFolder() (string, bool) { return v.folder, v.x.Elsewhere == "" }
func (v *environment) Done() <-chan struct{}       { return v.done }
func (v *environment) Err() error                  { return nil }

func (v *environment) Exec(ctx context.Context, c executors.Command) (int, error) {
	if v.x.OnExec != nil {
		var err error
		if ctx, err = v.x.OnExec(ctx, &c); err != nil {
			return 0, err
		}
	}
	if v.x.Elsewhere != "" {
		return v.follow(ctx, c)
	}
	p := v.start(c.Stdout)
	select {
	case <-p.ended:
		return p.code, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// start starts the job.
func (v *environment) start(stdout io.Writer) *process {
	spec := v.spec
	spec.Folder = v.folder
	p := &process{
		x: v.x, spec: spec, killed: make(chan struct{}), ended: make(chan struct{}), graceful: make(chan struct{}),
		hard: make(chan struct{}), answers: make(chan folder.CacheAnswer, 10),
	}
	v.x.mu.Lock()
	v.x.running[v.folder] = p
	v.x.starts[v.spec.Name]++
	v.x.mu.Unlock()
	v.x.all.Go(func() { p.main(stdout) })
	return p
}

// follow is launch and attach.
func (v *environment) follow(ctx context.Context, c executors.Command) (int, error) {
	code := make(chan int, 1)
	v.x.all.Go(func() {
		if err := v.serve(c); err != nil {
			attach.Fail(c.Stdout, err)
			code <- 1
			return
		}
		code <- 0
	})
	select {
	case n := <-code:
		return n, nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (v *environment) serve(c executors.Command) error {
	if len(c.Argv) < 5 || c.Argv[3] != "--offset" {
		return fmt.Errorf("bad command line %q", c.Argv)
	}
	offset, err := strconv.ParseInt(c.Argv[4], 10, 64)
	if err != nil {
		return err
	}
	lease := time.Duration(0)
	if len(c.Argv) == 7 {
		if lease, err = time.ParseDuration(c.Argv[6]); err != nil {
			return err
		}
	}
	if c.Argv[1] == "launch" {
		if err := v.launch(c.Stdin); err != nil {
			return err
		}
	}
	f, err := folder.Open(v.folder)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = attach.Serve(context.Background(), f, offset, lease, c.Stdin, c.Stdout)
	if errors.Is(err, attach.ErrLeft) || errors.Is(err, io.ErrClosedPipe) {
		return nil
	}
	return err
}

// launching keeps two launches from starting a job twice.
var launching sync.Mutex

func (v *environment) launch(in io.Reader) error {
	spec, payload, err := attach.ReadHeader(in)
	if err != nil {
		return err
	}
	launching.Lock()
	defer launching.Unlock()
	if _, err := os.Stat(filepath.Dir(v.folder)); err != nil {
		return err // destroyed
	}
	spec.PrefixElsewhere = true
	err = folder.Create(v.folder, spec, payload)
	if errors.Is(err, fs.ErrExist) {
		return nil // it is followed
	}
	if err != nil {
		return err
	}
	ready, stdout := io.Pipe()
	p := v.start(stdout)
	go func() {
		<-p.ended
		_ = stdout.Close()
	}()
	_, _ = ready.Read(make([]byte, 100))
	_ = ready.Close()
	return nil
}

func (v *environment) Kill(context.Context) error {
	v.x.mu.Lock()
	p := v.x.running[v.folder]
	v.x.mu.Unlock()
	if p != nil {
		p.kill()
		<-p.ended
	}
	return nil
}

func (v *environment) Destroy(ctx context.Context) error {
	v.x.mu.Lock()
	v.x.destroyed[v.spec.Name]++
	v.x.mu.Unlock()
	if v.x.Elsewhere == "" {
		return v.Kill(ctx)
	}
	launching.Lock()
	defer launching.Unlock()
	if err := v.Kill(ctx); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Dir(v.folder))
}
