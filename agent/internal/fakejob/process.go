//go:build unix

package fakejob

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// process is a job that runs.
type process struct {
	x    *Executor
	spec executors.Spec
	code int

	killOnce, gracefulOnce, hardOnce sync.Once
	killed, graceful, hard, ended    chan struct{}
	answers                          chan folder.CacheAnswer

	mu     sync.Mutex
	conns  map[net.Conn]bool
	asked  *folder.CacheRequest // not answered yet
	length int64
	result bool
	closed bool // no connection is taken any more
}

func (p *process) kill() { p.killOnce.Do(func() { close(p.killed) }) }

var errKilled = errors.New("killed")

func (p *process) main(stdout io.Writer) {
	defer func() {
		p.x.mu.Lock()
		delete(p.x.running, p.spec.Folder)
		p.x.mu.Unlock()
		close(p.ended)
	}()
	if err := p.work(stdout); err != nil {
		p.code = 137
		if !errors.Is(err, errKilled) {
			p.x.t.Logf("fake job: %v", err)
		}
	}
}

func (p *process) work(stdout io.Writer) error {
	f, err := folder.Open(p.spec.Folder)
	if err != nil {
		return err
	}
	defer f.Close()
	start, err := f.LockStart()
	if err != nil {
		return err
	}
	defer start.Close()
	lock, ok, err := f.TryLock()
	if err != nil || !ok {
		return fmt.Errorf("lock: %v %w", ok, err)
	}
	defer lock.Close()
	spec, err := f.Spec()
	if err != nil {
		return err
	}
	payload, err := f.Payload()
	if err != nil {
		return err
	}
	var job runnerapi.Job
	if err := json.Unmarshal(payload, &job); err != nil {
		return err
	}
	trace, err := f.OpenForJob(folder.TraceFile)
	if err != nil {
		return err
	}
	defer trace.Close()
	if err := f.WriteStarted(folder.Started{PID: os.Getpid(), At: time.Now()}); err != nil {
		return err
	}
	listener, err := net.Listen("unix", f.SocketPath())
	if err != nil {
		return err
	}
	var serving sync.WaitGroup
	p.conns = make(map[net.Conn]bool)
	serving.Go(func() { p.serve(listener, &serving) })
	defer serving.Wait()
	defer p.closeAll()
	defer listener.Close()
	if err := start.Close(); err != nil {
		return err
	}
	if stdout != nil {
		_, _ = io.WriteString(stdout, "ready\n")
	}
	crc := spec.PrefixCRC32
	put := func(b []byte) {
		_, err := trace.Write(b)
		require.NoError(p.x.t, err)
		crc = crc32.Update(crc, crc32.IEEETable, b)
		p.mu.Lock()
		p.length += int64(len(b))
		p.mu.Unlock()
		p.tell(folder.Event{Kind: folder.EventTrace, TraceLength: p.length})
	}
	result := folder.Result{State: runnerapi.StateSuccess, StartedAt: time.Now()}
	for _, command := range job.Steps[0].Script {
		end, err := p.step(command, put, &result)
		if err != nil {
			return err
		}
		if end {
			break
		}
	}
	result.TraceLength, result.TraceCRC32, result.FinishedAt = p.length, crc, time.Now()
	if err := f.WriteResult(result); err != nil {
		return err
	}
	p.mu.Lock()
	p.result = true
	p.mu.Unlock()
	p.tell(folder.Event{Kind: folder.EventResult})
	return nil
}

// step runs one command; end says that the job is over.
func (p *process) step(command string, put func([]byte), result *folder.Result) (end bool, err error) {
	word, rest, _ := strings.Cut(command, " ")
	fail := func(reason runnerapi.FailureReason, code int) (bool, error) {
		result.State, result.FailureReason, result.ExitCode = runnerapi.StateFailed, reason, code
		return true, nil
	}
	n, _ := strconv.Atoi(rest)
	switch word {
	case "print":
		put([]byte(rest + "\n"))
	case "bytes":
		line := bytes.Repeat([]byte("0123456789abcde\n"), 4096)
		for ; n > 0; n -= min(n, len(line)) {
			put(line[:min(n, len(line))])
		}
	case "wait":
		select {
		case <-p.graceful:
			put([]byte("canceled gracefully\n"))
		case <-p.hard:
			put([]byte("canceled\n"))
		case <-p.killed:
			return true, errKilled
		}
		return fail(runnerapi.ReasonCanceled, 0)
	case "hang":
		select {
		case <-p.hard:
			put([]byte("canceled\n"))
		case <-p.killed:
			return true, errKilled
		}
		return fail(runnerapi.ReasonCanceled, 0)
	case "numb":
		<-p.killed
		return true, errKilled
	case "after":
		for {
			if _, err := os.Stat(rest); err == nil {
				return false, nil
			}
			select {
			case <-time.After(5 * time.Millisecond):
			case <-p.killed:
				return true, errKilled
			}
		}
	case "ask":
		ask := folder.Event{Kind: folder.EventAsk, Ask: folder.CacheRequest{ID: 1, Op: "get", Key: rest}}
		p.mu.Lock()
		p.asked = &ask.Ask
		p.mu.Unlock()
		p.tell(ask)
		select {
		case a := <-p.answers:
			put([]byte(a.URL + a.Error + "\n"))
		case <-p.killed:
			return true, errKilled
		}
	case "exit":
		if n != 0 {
			return fail(runnerapi.ReasonScriptFailure, n)
		}
		return true, nil
	case "die":
		return true, errKilled
	default:
		return true, fmt.Errorf("unknown command %q", command)
	}
	return false, nil
}

func (p *process) serve(listener net.Listener, serving *sync.WaitGroup) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			_ = conn.Close()
			return
		}
		hello := folder.Greeting()
		hello = folder.AppendEvent(hello, folder.Event{Kind: folder.EventTrace, TraceLength: p.length})
		if p.asked != nil {
			hello = folder.AppendEvent(hello, folder.Event{Kind: folder.EventAsk, Ask: *p.asked})
		}
		if p.result {
			hello = folder.AppendEvent(hello, folder.Event{Kind: folder.EventResult})
		}
		_, _ = conn.Write(hello)
		p.conns[conn] = true
		p.mu.Unlock()
		serving.Go(func() { p.obey(conn) })
	}
}

func (p *process) obey(conn net.Conn) {
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		o, err := folder.ParseOrder(lines.Bytes())
		if err != nil {
			p.x.t.Errorf("the agent sent a bad order: %v", err)
			continue
		}
		switch o.Kind {
		case folder.OrderCancelGraceful:
			p.gracefulOnce.Do(func() { close(p.graceful) })
		case folder.OrderCancelKill:
			p.hardOnce.Do(func() { close(p.hard) })
		case folder.OrderAnswer:
			p.mu.Lock()
			p.asked = nil
			p.mu.Unlock()
			p.answers <- o.Answer
		case folder.OrderLease:
			p.x.mu.Lock()
			p.x.leases[p.job()] = append(p.x.leases[p.job()], o.Lease)
			p.x.mu.Unlock()
		}
	}
}

// job reads the job's id out of the environment's name.
func (p *process) job() int64 {
	parts := strings.Split(p.spec.Name, "-")
	n, _ := strconv.ParseInt(parts[len(parts)-2], 10, 64)
	return n
}

func (p *process) tell(e folder.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for conn := range p.conns {
		_, _ = conn.Write(folder.AppendEvent(nil, e))
	}
}

func (p *process) closeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for conn := range p.conns {
		_ = conn.Close()
	}
}
