//go:build unix

package job

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/switchyard-ci/switchyard/job/masking"
	"github.com/switchyard-ci/switchyard/job/trace"
)

// output is the way of all text into the trace: masked, stamped if the job wants that, written. It is used by one
// goroutine.
//
// All programs of a job write to one pipe, standard output and standard error alike, so the trace has what they said in
// the order in which they said it, byte for byte; gitlab-runner reads two pipes, and their order is lost. What daemons say
// that an earlier stage left behind comes with the stage that is running then.
type output struct {
	masker *masking.Masker
	trace  *trace.Writer
	// stamped are nil unless lines are stamped.
	runner, script *trace.Stamper
	lines          []byte
	// own is text of this program's own that is on its way to the trace: it goes there at the latest before a program is
	// started or anything is waited for.
	own []byte

	read  *os.File // of the pipe
	raw   syscall.RawConn
	write *os.File // given to programs
	space int      // how much is read at once
	said  []byte   // the last of what programs said since it was cleared
}

const (
	pipeSize  = 1 << 20
	leastRead = 32 << 10
	mostRead  = 256 << 10
	keptSaid  = 4 << 10
	mostOwn   = 16 << 10
)

func newOutput(masker *masking.Masker, w *trace.Writer) (*output, error) {
	// Only the reading end may be non-blocking: programs expect to wait.
	var fds [2]int
	if err := pipe(fds[:]); err != nil {
		return nil, fmt.Errorf("make the pipe for the job's output: %w", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, fmt.Errorf("make the pipe for the job's output: %w", err)
	}
	growPipe(fds[0])
	o := &output{
		masker: masker, trace: w, space: leastRead,
		read: os.NewFile(uintptr(fds[0]), "output"), write: os.NewFile(uintptr(fds[1]), "output"),
	}
	raw, err := o.read.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("make the pipe for the job's output: %w", err)
	}
	o.raw = raw
	return o, nil
}

// stamp begins to put times before lines.
func (o *output) stamp(now func() time.Time) {
	o.runner, o.script = trace.NewStamper(trace.Runner, now), trace.NewStamper(trace.Script, now)
}

func (o *output) close() error {
	if o.runner != nil {
		o.own = o.runner.Flush(o.own)
	}
	o.flush()
	return errors.Join(o.read.Close(), o.write.Close())
}

// copyUntil passes on what programs say until end is closed, and then what they had said by then: a daemon that keeps the
// pipe open holds nothing up.
func (o *output) copyUntil(end <-chan struct{}) error {
	o.flush()
	woken := make(chan struct{})
	go func() {
		defer close(woken)
		<-end
		_ = o.read.SetReadDeadline(time.Unix(1, 0))
	}()
	emit := func(b []byte) { o.pass(o.script, b) }
	var err error
	for err == nil {
		var n int
		space := o.masker.Space(o.space)
		n, err = o.read.Read(space[:o.space])
		o.took(space[:n])
		o.masker.Advance(n, emit)
		if n == o.space {
			o.space = min(2*o.space, mostRead)
		}
	}
	<-woken
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("read the job's output: %w", err)
	}
	if err := o.read.SetReadDeadline(time.Time{}); err != nil {
		return fmt.Errorf("read the job's output: %w", err)
	}
	err = o.drain(emit)
	o.masker.Flush(emit)
	if o.script != nil {
		o.lines = o.script.Flush(o.lines[:0])
		o.trace.Write(o.lines)
	}
	if err != nil {
		return fmt.Errorf("read the job's output: %w", err)
	}
	return nil
}

// drain reads as much as there is now, and not what comes meanwhile.
func (o *output) drain(emit func([]byte)) error {
	left := 0
	var failed error
	if err := o.raw.Control(func(fd uintptr) { left, failed = unix.IoctlGetInt(int(fd), fionread) }); err != nil || failed != nil {
		return errors.Join(err, failed)
	}
	for left > 0 {
		space := o.masker.Space(o.space)
		n := 0
		err := o.raw.Read(func(fd uintptr) bool {
			n, failed = syscall.Read(int(fd), space[:min(left, o.space)])
			return true
		})
		if errors.Is(failed, syscall.EINTR) {
			continue
		}
		if err != nil || failed != nil || n <= 0 {
			return errors.Join(err, failed)
		}
		o.took(space[:n])
		o.masker.Advance(n, emit)
		left -= n
	}
	return nil
}

func (o *output) took(b []byte) {
	if len(b) > keptSaid {
		b = b[len(b)-keptSaid:]
	}
	if over := len(o.said) + len(b) - keptSaid; over > 0 {
		o.said = o.said[:copy(o.said, o.said[over:])]
	}
	o.said = append(o.said, b...)
}

// say writes text of this program's own.
func (o *output) say(text string) {
	keep := func(b []byte) {
		if o.runner != nil {
			o.own = o.runner.Append(o.own, b)
		} else {
			o.own = append(o.own, b...)
		}
	}
	o.masker.Write([]byte(text), keep)
	o.masker.Flush(keep)
	if len(o.own) > mostOwn {
		o.flush()
	}
}

// flush brings what was printed to the trace.
func (o *output) flush() {
	o.trace.Write(o.own)
	o.own = o.own[:0]
}

func (o *output) pass(s *trace.Stamper, b []byte) {
	if s == nil {
		o.trace.Write(b)
		return
	}
	o.lines = s.Append(o.lines[:0], b)
	o.trace.Write(o.lines)
}

const (
	red    = "\x1b[31;1m"
	green  = "\x1b[32;1m"
	cyan   = "\x1b[36;1m"
	yellow = "\x1b[0;33m"
	reset  = "\x1b[0;m"
	erase  = "\x1b[0K"
)

// notice is what a stage says it does now.
func (o *output) notice(text string) { o.say(green + text + reset + "\n") }

// info, warn and fail are gitlab-runner's levels.
func (o *output) info(text string) { o.say(green + text + reset + "\n") }
func (o *output) warn(text string) { o.say(yellow + "WARNING: " + text + reset + "\n") }
func (o *output) fail(text string) { o.say(red + "ERROR: " + text + reset + "\n") }
