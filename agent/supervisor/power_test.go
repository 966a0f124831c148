//go:build linux

package supervisor_test

import (
	"bytes"
	"context"
	"encoding/json"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/switchyard-ci/switchyard/agent/internal/fakejob"
	"github.com/switchyard-ci/switchyard/agent/ledger"
	"github.com/switchyard-ci/switchyard/agent/supervisor"
	"github.com/switchyard-ci/switchyard/agent/tracestream"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// loseThePower ends the agent and its job, as a loss of power does, and changes what is left of the job's folder. The
// fence is that of another boot then.
func (a *agent) loseThePower(x *fakejob.Executor, change func(job string)) {
	a.t.Helper()
	a.leave()
	a.tasks.Wait()
	x.Crash()
	job := filepath.Join(a.dir(), "job")
	b, err := os.ReadFile(filepath.Join(job, folder.StartedFile))
	require.NoError(a.t, err)
	var s folder.Started
	require.NoError(a.t, json.Unmarshal(b, &s))
	s.BootID, s.Checkpoints = "another", true
	b, err = json.Marshal(s)
	require.NoError(a.t, err)
	require.NoError(a.t, os.WriteFile(filepath.Join(job, folder.StartedFile), b, 0o600))
	change(job)
}

// plane is the control plane's end of a trace stream: what has been received, which may have been there before.
type plane struct {
	grpc.ClientStream
	ctx context.Context
	mu  sync.Mutex
	b   []byte
	say chan *fleetv1.TraceResponse
}

func newPlane(ctx context.Context, has []byte) *plane {
	p := &plane{ctx: ctx, b: bytes.Clone(has), say: make(chan *fleetv1.TraceResponse, 1000)}
	p.answer()
	return p
}

func (p *plane) answer() {
	n := int64(len(p.b))
	p.say <- &fleetv1.TraceResponse{Ref: one.Proto(), Written: n, Limit: n + 1<<20}
}

func (p *plane) Send(r *fleetv1.TraceRequest) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := int64(len(p.b)); r.GetOffset() <= n && r.GetOffset()+int64(len(r.GetData())) > n {
		p.b = append(p.b, r.GetData()[n-r.GetOffset():]...)
	}
	p.answer()
	return nil
}

func (p *plane) Recv() (*fleetv1.TraceResponse, error) {
	select {
	case r := <-p.say:
		return r, nil
	case <-p.ctx.Done():
		return nil, p.ctx.Err()
	}
}

func (p *plane) has() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.b)
}

// connect runs the agent's trace stream into a control plane that has these bytes already, none of them synced.
func (a *agent) connect(has []byte) *plane {
	p := newPlane(a.ctx, has)
	traces := a.config.Traces
	traces.Resume(one, 0)
	ctx, log := a.ctx, a.config.Log
	a.tasks.Go(func() {
		open := func(context.Context, ...grpc.CallOption) (grpc.BidiStreamingClient[fleetv1.TraceRequest, fleetv1.TraceResponse], error) {
			return p, nil
		}
		_ = traces.Run(ctx, tracestream.Opener(open), log, func() {})
	})
	return p
}

const (
	doubted = "the end of its output may be missing"
	output  = "first\nsecond\nthird\n"
)

// What a host that lost its power has left of a trace is sent as far as it is proven, and the agent's words begin where
// the control plane has nothing yet.
func TestAHostThatLostItsPowerSendsWhatTheJobWrote(t *testing.T) {
	for name, c := range map[string]struct {
		proven string // by the last checkpoint
		left   string // behind it
		has    int    // how many bytes of the job's own the control plane has
		want   string
	}{
		"proven to its end":                           {proven: output, want: output},
		"zeros behind what is proven":                 {proven: "first\n", left: strings.Repeat("\x00", 13), want: "first\n"},
		"old blocks behind what is proven":            {proven: "first\nsecond\n", left: "ls -l\n", want: "first\nsecond\n"},
		"cut behind what is proven":                   {proven: "first\n", left: "se", want: "first\n"},
		"the control plane has less than is proven":   {proven: "first\nsecond\n", left: "\x00", has: 3, want: "first\nsecond\n"},
		"the control plane has more than is proven":   {proven: "first\n", left: "\x00\x00", has: 15, want: "first\nsecond\nth"},
		"the control plane has more than is there":    {proven: "first\n", has: len(output), want: output},
		"nothing is proven, the control plane has it": {left: strings.Repeat("\x00", 10), has: len(output), want: output},
		"nothing is proven and nothing there":         {left: strings.Repeat("\x00", 10), want: ""},
	} {
		t.Run(name, func(t *testing.T) {
			x := fakejob.New(t)
			a := newAgent(t, x, fakejob.Payload(1, "print first", "print second", "print third", "numb"))
			a.start()
			a.awaitTrace(output)
			before := strings.TrimSuffix(a.trace(), output)
			require.NotEmpty(t, before)
			a.loseThePower(x, func(job string) {
				require.NoError(t, os.WriteFile(filepath.Join(job, folder.TraceFile), []byte(c.proven+c.left), 0o600))
				f, err := folder.Open(job)
				require.NoError(t, err)
				defer f.Close()
				spec, err := f.Spec()
				require.NoError(t, err)
				points := f.Checkpoints(spec)
				require.NoError(t, points.Append(int64(len(c.proven)), crc32.ChecksumIEEE([]byte(before+c.proven))))
				require.NoError(t, points.Close())
			})
			j := a.again()
			require.Equal(t, ledger.Started, j.Phase)
			require.True(t, strings.HasPrefix(before+output, a.trace()), "nothing else can be sent")
			require.Nil(t, j.Result(), "it waits for what the control plane has")
			var has []byte
			if c.has > 0 {
				has = []byte((before + output)[:len(before)+c.has])
			}
			p := a.connect(has)
			r, _ := a.finished(j.Job)
			require.Equal(t, "runner_system_failure", r.GetFailureReason())
			require.Contains(t, r.GetMessage(), doubted)
			require.Eventually(t, func() bool { return int64(len(p.has())) >= r.GetTraceLength() }, patience, time.Millisecond)
			got, ok := strings.CutPrefix(p.has(), before+c.want)
			require.True(t, ok, "%q", p.has())
			require.Regexp(t, `^\n?\x1b\[31;1mERROR: Job failed \(system failure\): [^\n]*`+doubted+`[^\n]*\n$`, got)
			a.forget(j.Job, a.config.Jobs)
		})
	}
}

// A result that is there came after the trace was synced; its prefix may be lost all the same.
func TestAResultOutlivesALossOfPower(t *testing.T) {
	x := fakejob.New(t)
	a := newAgent(t, x, fakejob.Payload(1, "print first"))
	j := a.start()
	r, whole := a.finished(j)
	prefix := strings.TrimSuffix(whole, "first\n")
	a.loseThePower(x, func(job string) {
		require.NoError(t, os.WriteFile(filepath.Join(job, folder.PrefixFile), nil, 0o600))
	})
	again := a.again()
	require.Equal(t, ledger.Finished, again.Phase)
	require.Equal(t, "success", again.Result().GetState())
	require.Equal(t, r.GetTraceLength(), again.Result().GetTraceLength())
	p := a.connect([]byte(prefix))
	require.Eventually(t, func() bool { return p.has() == whole }, patience, time.Millisecond, "%q", p.has())
	a.forget(again.Job, a.config.Jobs)
}

// What runs on is not touched: the page cache is good as long as the kernel runs.
func TestTheSameBootCutsNothing(t *testing.T) {
	x := fakejob.New(t)
	a := newAgent(t, x, fakejob.Payload(1, "print first", "numb"))
	a.start()
	a.awaitTrace("first\n")
	whole := a.trace()
	a.leave()
	a.tasks.Wait()
	x.Crash()
	j := a.again()
	r, trace := a.finished(j.Job)
	require.NotContains(t, r.GetMessage(), doubted)
	require.True(t, strings.HasPrefix(trace, whole))
	a.forget(j.Job, a.config.Jobs)
}

// The begin of the trace of a job that had not started is not the job's yet: what is spoilt of it goes, and is written anew.
func TestABeginThatWasLostWithThePowerIsNotSent(t *testing.T) {
	x := fakejob.New(t)
	hold := make(chan struct{})
	x.OnPrepare = func(ctx context.Context, trace io.Writer) error {
		_, _ = io.WriteString(trace, "pulling\n")
		select {
		case <-hold:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	a := newAgent(t, x, fakejob.Payload(1, "print first"))
	a.start()
	a.awaitTrace("pulling")
	a.leave()
	a.tasks.Wait()
	intent := filepath.Join(a.dir(), "intent.json")
	b, err := os.ReadFile(intent)
	require.NoError(t, err)
	var i supervisor.Intent
	require.NoError(t, json.Unmarshal(b, &i))
	require.NotEmpty(t, i.BootID)
	i.BootID = "another"
	b, err = json.Marshal(i)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(intent, b, 0o600))
	whole := a.trace()
	prefix := filepath.Join(a.dir(), "job", folder.PrefixFile)
	require.NoError(t, os.WriteFile(prefix, append([]byte(whole[:10]), make([]byte, len(whole)-10)...), 0o600))
	close(hold)
	j := a.again()
	require.Equal(t, ledger.Accepted, j.Phase)
	j.Launch(0, 0)
	r, trace := a.finished(j.Job)
	require.Equal(t, "success", r.GetState(), r.GetMessage())
	require.True(t, strings.HasPrefix(trace, whole[:10]))
	require.NotContains(t, trace, "\x00")
	a.forget(j.Job, a.config.Jobs)
}

// The copy of a trace whose environment went with the host: what the control plane has of it stays.
func TestACopyThatWasLostWithThePower(t *testing.T) {
	x := fakejob.New(t)
	x.Elsewhere = t.TempDir()
	a := newAgent(t, x, fakejob.Payload(1, "print first", "numb"))
	a.start()
	a.awaitTrace("first\n")
	whole := a.trace()
	a.leave()
	a.tasks.Wait()
	x.Crash()
	require.NoError(t, os.WriteFile(filepath.Join(a.dir(), supervisor.LaunchedFile), []byte(`{"boot_id":"another"}`), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(a.dir(), "job", folder.TraceFile), make([]byte, 100), 0o600))
	entries, err := os.ReadDir(x.Elsewhere)
	require.NoError(t, err)
	for _, e := range entries {
		require.NoError(t, os.RemoveAll(filepath.Join(x.Elsewhere, e.Name())))
	}
	j := a.again()
	require.True(t, strings.HasPrefix(whole, a.trace()))
	p := a.connect([]byte(whole))
	r, _ := a.finished(j.Job)
	require.Contains(t, r.GetMessage(), doubted)
	require.Eventually(t, func() bool { return int64(len(p.has())) >= r.GetTraceLength() }, patience, time.Millisecond)
	words, ok := strings.CutPrefix(p.has(), whole)
	require.True(t, ok, "%q", p.has())
	require.Contains(t, words, doubted)
	a.forget(j.Job, x.Elsewhere)
}
