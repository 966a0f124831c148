package supervisor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/switchyard-ci/switchyard/executors"
	fleetv1 "github.com/switchyard-ci/switchyard/gen/switchyard/fleet/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// Limits of the contract (fleet.proto).
const (
	maxReason  = 64
	maxMessage = 4096
)

// errCanceled ends a job's preparation.
var errCanceled = &executors.Error{Reason: runnerapi.ReasonCanceled, Err: errors.New("canceled")}

// settle takes the job's own result, if there is one that can be used, unless the job has a result already.
func (w *work) settle() bool {
	if w.result.Load() != nil {
		return true
	}
	r := w.ownResult()
	if r == nil {
		return false
	}
	w.finish(r)
	return true
}

// ownResult reads what the job says about its end; nil if that is nothing, or makes no sense.
func (w *work) ownResult() *fleetv1.Result {
	r, err := w.folder.Result()
	if err != nil {
		if !errors.Is(err, folder.ErrNoResult) {
			w.log.Warn("the job's result cannot be used", "err", err)
		}
		return nil
	}
	total := w.prefixLength + r.TraceLength
	if size, err := w.trace.Size(); err != nil || size != total {
		w.log.Warn("the job's result cannot be used: it does not fit the trace", "length", total, "size", size, "err", err)
		return nil
	}
	return &fleetv1.Result{
		State:         r.State,
		FailureReason: cut(string(r.FailureReason), maxReason),
		ExitCode:      int32(min(max(r.ExitCode, math.MinInt32), math.MaxInt32)), //nolint:gosec // in range
		Message:       cut(r.Message, maxMessage),
		TraceLength:   total,
		TraceCrc32:    r.TraceCRC32,
		StartedAt:     moment(r.StartedAt),
		FinishedAt:    moment(r.FinishedAt),
	}
}

// finish publishes the result and tells the agent.
func (w *work) finish(r *fleetv1.Result) {
	w.conclude(r)
	w.emit(w.leave, Finished)
}

// conclude publishes the result.
func (w *work) conclude(r *fleetv1.Result) {
	w.result.Store(r)
	w.config.Traces.Finish(w.Intent.Ref())
}

// die ends a job whose process left no usable result.
func (w *work) die(why error) {
	w.kill("it left no result")
	if w.leave.Err() != nil || w.result.Load() != nil {
		return
	}
	w.fail(why)
}

// failEarly ends a job that could not be started.
func (w *work) failEarly(err error) {
	if w.life.Err() != nil {
		return
	}
	w.fail(err)
}

func reasonOf(err error) runnerapi.FailureReason {
	if known := (*executors.Error)(nil); errors.As(err, &known) {
		return known.Reason
	}
	return runnerapi.ReasonRunnerSystem
}

// fail ends the job in the agent's words: the trace's last segment, and a result that survives the agent.
func (w *work) fail(why error) {
	reason, message, code := reasonOf(why), why.Error(), 0
	if known := (*executors.Error)(nil); errors.As(why, &known) {
		code = known.ExitCode
	}
	doubt, ok := w.epitaph()
	if !ok {
		return
	}
	if doubt != "" { // whatever ended it, the trace is not what it says
		reason, message, code = runnerapi.ReasonRunnerSystem, message+doubt, 0
	}
	w.log.Warn("the job failed", "reason", reason, "message", message)
	now := time.Now()
	o := outcome{
		State: runnerapi.StateFailed, FailureReason: cut(string(reason.KnownTo(w.reasons())), maxReason), Message: cut(message, maxMessage),
		ExitCode: code, StartedAt: now.UnixMilli(), FinishedAt: now.UnixMilli(),
	}
	if s, err := w.folder.Started(); err == nil && !s.At.IsZero() {
		o.StartedAt = s.At.UnixMilli()
	}
	// A loss of power after this must not make the trace shorter than the result says.
	if err := w.folder.SyncTrace(); err != nil {
		w.log.Error("a loss of power would take a part of the trace with it", "err", err)
	}
	err := w.appendSuffix(farewell(reason, o.Message))
	if err == nil {
		o.TraceLength, o.TraceCRC32, err = w.checksum()
	}
	if err == nil {
		err = o.write(w.dir)
	}
	if err != nil {
		// The result goes out all the same, with as much of the trace as can be read; it is lost if the agent is
		// killed before that.
		w.log.Error("cannot write down how the job ended", "err", err)
		o.TraceLength, o.TraceCRC32, _ = w.checksum()
	}
	w.finish(o.proto())
}

// reasons are the failure reasons that the job's GitLab knows.
func (w *work) reasons() []runnerapi.FailureReason {
	if w.supported != nil {
		return w.supported
	}
	var job struct {
		Features runnerapi.JobFeatures `json:"features"`
	}
	if payload, err := w.folder.Payload(); err != nil || json.Unmarshal(payload, &job) != nil {
		return nil
	}
	return job.Features.FailureReasons
}

func (o outcome) proto() *fleetv1.Result {
	return &fleetv1.Result{
		State: o.State, FailureReason: o.FailureReason, Message: o.Message, TraceLength: o.TraceLength, TraceCrc32: o.TraceCRC32,
		ExitCode:  int32(min(max(o.ExitCode, math.MinInt32), math.MaxInt32)), //nolint:gosec // in range
		StartedAt: moment(time.UnixMilli(o.StartedAt)), FinishedAt: moment(time.UnixMilli(o.FinishedAt)),
	}
}

// failWithoutFolder ends a job for which nothing can be written to the disk: its trace is in memory.
func (w *work) failWithoutFolder(message string) {
	w.log.Error("the job failed", "message", message)
	text := []byte(farewell(runnerapi.ReasonRunnerSystem, message))
	w.config.Traces.Add(w.Intent.Ref(), bytes.NewReader(text))
	now := timestamppb.Now()
	w.finish(&fleetv1.Result{
		State: runnerapi.StateFailed, FailureReason: string(runnerapi.ReasonRunnerSystem), Message: cut(message, maxMessage),
		TraceLength: int64(len(text)), TraceCrc32: crc32.ChecksumIEEE(text), StartedAt: now, FinishedAt: now,
	})
}

// appendSuffix writes the trace's last segment, on a line of its own and within the output limit.
func (w *work) appendSuffix(text string) error {
	size, err := w.trace.Size()
	if err != nil {
		return fmt.Errorf("read the trace: %w", err)
	}
	if size > 0 {
		var last [1]byte
		if _, err := w.trace.ReadAt(last[:], size-1); err == nil && last[0] != '\n' {
			text = "\n" + text
		}
	}
	limit, _ := w.outputLimit()
	text = cut(text, int(max(0, limit-size)))
	if err := w.folder.WriteSuffix([]byte(text)); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// checksum reads the whole trace.
func (w *work) checksum() (length int64, crc uint32, err error) {
	buffer := make([]byte, 64<<10)
	for {
		n, err := w.trace.ReadAt(buffer, length)
		crc = crc32.Update(crc, crc32.IEEETable, buffer[:n])
		length += int64(n)
		if errors.Is(err, io.EOF) {
			return length, crc, nil
		}
		if err != nil {
			return length, crc, fmt.Errorf("read the trace: %w", err)
		}
	}
}

// cut shortens text to at most n bytes of valid UTF-8.
func cut(text string, n int) string {
	if len(text) > n {
		text = text[:n]
	}
	return strings.ToValidUTF8(text, "")
}

// moment is t as the contract takes it; nil if it is none.
func moment(t time.Time) *timestamppb.Timestamp {
	if p := timestamppb.New(t); !t.IsZero() && p.IsValid() {
		return p
	}
	return nil
}
