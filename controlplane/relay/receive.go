package relay

import (
	"bytes"
	"fmt"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/relay/spool"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// resendFor is how long a finished job waits for the next byte of a trace that was asked for a second time.
const resendFor = 5 * time.Minute

// Append takes bytes of a job's trace, the first of which has the given offset; data is not kept. What was received
// before is skipped. Calls for one job must follow one another in the order of the agent's stream.
func (r *Relay) Append(id, epoch, offset int64, data []byte) Progress {
	j := r.find(id, epoch)
	if j == nil {
		return Progress{Epoch: epoch, Verdict: Stop, Tell: true}
	}
	j.io.Lock()
	defer j.io.Unlock()
	data, p, write := j.admit(offset, data)
	if !write {
		return p
	}
	err := j.write(data)

	j.mu.Lock()
	defer j.mu.Unlock()
	j.grown()
	j.refused = err != nil
	if err != nil {
		// Not asked for again before there is room: what is under way now would only be lost again.
		j.gap = true
		return j.tell(j.verdict())
	}
	j.settle()
	switch v := j.verdict(); {
	case j.completed && !j.over:
		return j.mention(Continue)
	case v == Continue:
		return j.mention(v)
	default:
		return j.tell(v)
	}
}

// admit cuts data down to the bytes that are to be written, if any; else p is the answer. io must be held.
func (j *job) admit(offset int64, data []byte) (rest []byte, p Progress, write bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.closed:
		// The relay stops: the agent keeps its bytes.
		return nil, j.mention(Continue), false
	case j.verdict() == Stop:
		return nil, j.tell(Stop), false
	}
	skip := j.length - offset
	if skip < 0 || offset < 0 {
		known := j.gap
		j.gap = true
		if known {
			// It was under way when the agent was told.
			return nil, j.mention(Continue), false
		}
		return nil, j.tell(j.verdict()), false
	}
	j.gap = false
	if offset < j.sent {
		// The agent went back and may have forgotten how far it may go.
		j.told, j.refill = 0, 0
	}
	j.sent = offset + int64(len(data))
	if skip >= int64(len(data)) {
		return nil, j.mention(Continue), false
	}
	data = data[skip:]
	if room := j.capacity - j.length; int64(len(data)) > room {
		data = data[:room]
		j.over = true
		j.r.log.Warn("a job has more trace than its output limit allows; the rest is dropped",
			"job", j.id, "limit", j.capacity-TraceAllowance, "allowance", TraceAllowance)
	}
	return data, Progress{}, true
}

// write appends to the spool; io must be held, mu not. What completes a finished job comes in when other bytes do not:
// only jobs that are reported make room.
func (j *job) write(data []byte) error {
	j.mu.Lock()
	urgent := j.result != nil
	j.mu.Unlock()
	var err error
	if !urgent {
		err = j.r.spool.Err()
	}
	if err == nil {
		err = j.make()
	}
	switch {
	case err != nil:
	case urgent:
		err = j.file.AppendUrgent(data)
	default:
		err = j.file.Append(data)
	}
	if err != nil {
		j.r.room.missing(err)
	}
	return err
}

// make makes the file if there is none; io must be held, mu not.
func (j *job) make() error {
	if j.file != nil {
		return nil
	}
	file, err := j.r.spool.Create(spool.Key{Job: j.id, Epoch: j.epoch, Limit: j.to.OutputLimit})
	if err != nil {
		return err
	}
	j.mu.Lock()
	j.file = file
	j.mu.Unlock()
	return nil
}

// grown takes in what was written; io and mu must be held.
func (j *job) grown() {
	if j.file == nil {
		return
	}
	now := time.Now()
	j.length, j.sum = j.file.Length(), j.file.CRC()
	if !j.resend.IsZero() {
		j.resend = now.Add(resendFor)
	}
	j.report.Written(now, j.length)
	j.r.sync.add(j, j.r.o.SyncInterval)
	j.arm()
}

// Finish says how the job ended; the caller has persisted the result before and calls Finish again after a restart.
// When TraceLength bytes are here they are synced and compared with TraceCRC32, GitLab gets what it does not have yet,
// then the result; Events.Reported ends it. If the CRC differs the agent is asked once for the whole trace again, then it
// is reported as it is. A TraceLength of TraceUnknown is what Fail does, with Result.Message as the line. A second call
// does nothing. ErrNotOpen: the job is not open with this epoch.
func (r *Relay) Finish(id, epoch int64, res store.Result) error {
	if res.TraceLength < 0 {
		return r.Fail(id, epoch, res, res.Message)
	}
	return r.end(id, epoch, "finish", func(j *job) bool { return j.finish(res) })
}

// Fail ends a job whose agent will send no more: line is appended to the trace (on a line of its own, unless it is
// there already; at most 8 KiB), and the job is reported with all that is here. TraceLength and TraceCRC32 of res are not
// used. It may follow a Finish that still waits for bytes; then it replaces its result. Otherwise as Finish.
func (r *Relay) Fail(id, epoch int64, res store.Result, line string) error {
	return r.end(id, epoch, "fail", func(j *job) bool { return j.fail(res, line) })
}

// end calls do for an open job with io held; do says whether its owner is to hear of the progress.
func (r *Relay) end(id, epoch int64, doing string, do func(j *job) bool) error {
	j := r.find(id, epoch)
	if j == nil {
		return fmt.Errorf("%s job %d, epoch %d: %w", doing, id, epoch, ErrNotOpen)
	}
	j.io.Lock()
	j.mu.Lock()
	closed := j.closed
	j.mu.Unlock()
	if closed {
		j.io.Unlock()
		return fmt.Errorf("%s job %d, epoch %d: %w", doing, id, epoch, ErrNotOpen)
	}
	tell := do(j)
	var p Progress
	if tell {
		j.mu.Lock()
		p = j.tell(j.verdict())
		j.mu.Unlock()
	}
	j.io.Unlock()
	if tell {
		r.o.Events.Received(id, p)
	}
	return nil
}

// finish is Finish; io must be held, mu not.
func (j *job) finish(res store.Result) (tell bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.result == nil {
		waited := j.starved()
		j.result = &res
		j.refused = false
		j.settle()
		// What completes the job is taken also where there is no room for others.
		tell = waited && !j.completed
	}
	return j.nowSafe() || tell || !j.resend.IsZero()
}

// fail is Fail; io must be held, mu not.
func (j *job) fail(res store.Result, line string) (tell bool) {
	j.mu.Lock()
	if j.completed {
		j.mu.Unlock()
		return false
	}
	j.restore()
	speak := line != "" && !j.report.Gone()
	j.mu.Unlock()
	if speak {
		if err := j.suffix(line); err != nil {
			// A sentence less in the trace is no reason to withhold the result.
			j.r.log.Warn("cannot append the last line of a trace", "job", j.id, "error", err)
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.grown()
	j.result = &res
	j.complete()
	return j.nowSafe()
}

// suffix appends a line; io must be held, mu not.
func (j *job) suffix(line string) error {
	text := []byte(line[:min(len(line), maxLine)])
	if text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	if err := j.make(); err != nil {
		return err
	}
	there, err := j.file.EndsWith(text)
	if err != nil || there {
		return err
	}
	fresh, err := j.file.EndsWith([]byte{'\n'})
	if err != nil {
		return err
	}
	if !fresh && j.file.Length() > 0 {
		text = append([]byte{'\n'}, text...)
	}
	return j.file.AppendUrgent(text)
}

// settle ends the waiting for bytes when all of them are here; io and mu must be held, or mu if the report is gone.
func (j *job) settle() {
	if j.result == nil || j.completed {
		return
	}
	if j.report.Gone() {
		j.complete()
		return
	}
	want := min(j.result.TraceLength, j.capacity)
	if j.length < want {
		return
	}
	log := j.r.log.With("job", j.id, "bytes", j.length, "said", j.result.TraceLength)
	switch {
	case want < j.result.TraceLength:
		j.over = true
		log.Warn("a trace is longer than its output limit allows; it is reported up to there")
	case j.length > want:
		// An agent's host that lost its last bytes with its power: what is here is more than it remembers.
		log.Warn("a trace is longer than the result says; all of it is reported")
		j.lastWords()
	case j.sum != j.result.TraceCRC32 && j.agents() && j.length > 0:
		// What an agent says of a trace after its host lost its power is worth less than what is here.
		log.Warn("a trace has another CRC than the result says, which is its agent's and not the job's; it is reported as it is")
		j.lastWords()
	case j.sum != j.result.TraceCRC32 && !j.resent && j.length > 0:
		log.Warn("a trace has another CRC than the result says; it is asked for again")
		j.rewind()
		return
	case j.sum != j.result.TraceCRC32:
		log.Warn("a trace has another CRC than the result says; it is reported as it is")
	}
	if !j.completed { // GitLab may have had its last word meanwhile
		j.grown()
		j.complete()
	}
}

// agents says that the result is the agent's own: the job left none.
func (j *job) agents() bool {
	return j.result.FailureReason == string(runnerapi.ReasonRunnerSystem) && j.result.Message != ""
}

// lastWords ends a trace that is not the one which the result speaks of with the agent's sentence about the job, if it has
// one and it is not there. io and mu must be held; mu is let go meanwhile.
func (j *job) lastWords() {
	if !j.agents() {
		return
	}
	message := j.result.Message
	j.mu.Unlock()
	defer j.mu.Lock()
	tail := make([]byte, min(j.file.Length(), int64(len(message)+maxLine)))
	_, err := j.file.ReadAt(tail, j.file.Length()-int64(len(tail)))
	if err == nil && !bytes.Contains(tail, []byte(message)) {
		err = j.suffix("ERROR: Job failed (system failure): " + message)
	}
	if err != nil {
		j.r.log.Warn("cannot append the last line of a trace", "job", j.id, "error", err)
	}
}

// rewind waits for the whole trace again; io and mu must be held. The file keeps its bytes until they are written over.
func (j *job) rewind() {
	j.resent, j.gap = true, true
	j.rewinds++
	j.synced, j.told, j.refill = 0, 0, 0
	j.file.Rewind()
	j.resend = time.Now().Add(resendFor)
	j.length, j.sum = 0, 0
	j.report.Written(time.Now(), 0)
	j.arm()
}

// restore ends a rewind whose bytes did not come; io and mu must be held.
func (j *job) restore() {
	if j.resend.IsZero() {
		return
	}
	j.resend, j.gap = time.Time{}, false
	if err := j.file.Restore(); err != nil {
		j.r.log.Error("cannot read a spooled trace; it is reported as far as it came the second time", "job", j.id, "error", err)
	}
	j.rewinds++
	j.grown()
}

// overdue gives a trace that was asked for again up.
func (j *job) overdue() {
	j.io.Lock()
	defer j.io.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.closed || j.resend.IsZero() || time.Now().Before(j.resend) {
		return
	}
	j.r.log.Warn("the trace that was asked for again did not come; it is reported as it is", "job", j.id)
	j.restore()
	j.complete()
}

// complete makes the report end with the result; mu must be held.
func (j *job) complete() {
	j.completed, j.gap = true, false
	j.resend = time.Time{}
	j.report.Complete(j.result.State)
	if j.synced < j.length {
		j.r.sync.add(j, finishSync)
	}
	j.arm()
}
