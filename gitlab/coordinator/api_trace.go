package coordinator

import (
	"cmp"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator/trace"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// maxPatch is the largest piece of a trace in one request; gitlab-runner sends at most 1 MiB.
const maxPatch = 32 << 20

// bufferSizes are those of the buffers that are used again: large pieces come at a high rate.
var bufferSizes = [...]int{4 << 10, 64 << 10, 1 << 20, 4 << 20, maxPatch}

type bufferPools [len(bufferSizes)]sync.Pool

// patchTrace answers PATCH /jobs/:id/trace.
func (c *Coordinator) patchTrace(w http.ResponseWriter, r *http.Request) {
	token := cmp.Or(r.Header.Get(runnerapi.HeaderJobToken), r.URL.Query().Get("token"))
	j := c.authenticateJob(w, r, token, onRunner)
	if j == nil {
		return
	}
	limit := cmp.Or(j.pipe.project.MaxTrace, c.opts.MaxTrace)
	c.mu.Unlock()

	contentRange := r.Header.Get("Content-Range")
	if contentRange == "" {
		replyError(w, http.StatusBadRequest, "400 Missing header Content-Range")
		return
	}
	buffer, err := c.readPatch(r)
	defer c.buffers.put(buffer)
	switch {
	case errors.Is(err, errTooLarge):
		reply(w, http.StatusRequestEntityTooLarge, "413 Request Entity Too Large - a piece of a trace may have 32 MiB")
		return
	case err != nil:
		replyError(w, http.StatusBadRequest, "400 the body could not be read")
		return
	}
	// Only the begin counts: runners disagree about the end.
	start, _, _ := strings.Cut(contentRange, "-")
	offset := int64(leadingInt(start))
	end := offset + int64(len(buffer))
	c.mu.Lock()
	if !j.processing() { // it has ended while the body came
		c.refuseLate(w, j)
		return
	}
	if offset == 0 && r.URL.Query().Get("debug_trace") == "true" {
		j.debug = true
	}
	if end > limit {
		c.drop(j, reasonTraceSize, 0, time.Now())
		c.mu.Unlock()
		c.forbidden(w, "")
		return
	}
	c.mu.Unlock()
	// A piece that is not at the end is refused even if it ends where the trace ends, as a repeated one does. GitLab
	// compares that end alone and answers such a piece by 202; this is the answer that asks more of a client.
	size, err := j.trace.Append(offset, buffer)
	c.answerPatch(w, j, int64(len(buffer)), size, err)
}

// answerPatch answers after Append has returned size and err; added is how many bytes were sent.
func (c *Coordinator) answerPatch(w http.ResponseWriter, j *job, added, size int64, err error) {
	now := time.Now()
	c.mu.Lock()
	j.updatedAt = now
	if j.runner != nil {
		j.runner.contactedAt = now
	}
	status := j.status.String()
	interval := c.opts.TraceInterval
	if now.Before(j.watched) {
		interval = c.opts.WatchedTraceInterval
	}
	switch {
	case err == nil:
		j.patches++
		if added > 0 {
			c.publish(Event{Kind: TraceChanged, ProjectID: j.pipe.project.id, PipelineID: j.pipe.id, JobID: j.id})
		}
	case errors.As(err, new(*trace.OffsetError)):
		j.rangeErrors++
	}
	c.mu.Unlock()

	switch {
	case err == nil:
		c.stats.patches.Add(1)
		c.stats.traceBytes.Add(added)
		w.Header().Set(runnerapi.HeaderJobStatus, status)
		w.Header().Set("Range", "0-"+strconv.FormatInt(size, 10))
		w.Header().Set(runnerapi.HeaderTraceUpdateInterval, wholeSeconds(interval))
		replyStatus(w, http.StatusAccepted)
	case errors.As(err, new(*trace.OffsetError)):
		c.stats.rangeErrors.Add(1)
		w.Header().Set("Range", "0-"+strconv.FormatInt(size, 10))
		replyError(w, http.StatusRequestedRangeNotSatisfiable, "416 Range Not Satisfiable")
	case errors.Is(err, trace.ErrBusy):
		c.stats.traceBusy.Add(1)
		reply(w, http.StatusConflict, "409 Conflict")
	case errors.Is(err, trace.ErrClosed):
		c.forbidden(w, "Job has been erased!")
	default:
		c.log.Error("a trace could not be stored", "job", j.id, "error", err)
		reply(w, http.StatusInternalServerError, "500 Internal Server Error")
	}
}

// readPatch reads the body into a buffer of the pools.
func (c *Coordinator) readPatch(r *http.Request) ([]byte, error) {
	if r.ContentLength > maxPatch {
		return nil, errTooLarge
	}
	size := r.ContentLength
	if size < 0 {
		size = maxPatch + 1
	}
	if size <= maxPatch {
		buffer := c.buffers.get(int(size))
		_, err := io.ReadFull(r.Body, buffer)
		return buffer, err
	}
	return readBody(r.Body, -1, maxPatch)
}

func (p *bufferPools) get(size int) []byte {
	for i, s := range bufferSizes {
		if size > s {
			continue
		}
		if b, ok := p[i].Get().(*[]byte); ok {
			return (*b)[:size]
		}
		return make([]byte, size, s)
	}
	return make([]byte, size)
}

func (p *bufferPools) put(buffer []byte) {
	for i, s := range bufferSizes {
		if cap(buffer) == s {
			p[i].Put(&buffer)
		}
	}
}
