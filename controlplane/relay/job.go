package relay

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/controlplane/relay/report"
	"github.com/switchyard-ci/switchyard/controlplane/relay/spool"
	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// firstWindow is how many bytes of a job an agent sends before it was told of a limit: one frame.
const firstWindow = 256 << 10

// job is one open job. Locks are taken in the order io, mu, Relay.mu, those of lane, syncer, room and gate. Relay.mu is
// held while a job's are taken only for a job that nobody else can see yet.
type job struct {
	r     *Relay
	lane  *lane
	id    int64
	epoch int64
	to    Target

	io   sync.Mutex  // held while the file is changed: a slow disk holds up nobody but the job's agent
	file *spool.File // nil until the first byte; set with io and mu held

	mu       sync.Mutex
	length   int64  // of the spooled trace
	sum      uint32 // its CRC
	synced   int64
	capacity int64 // longest trace that is taken
	report   *report.Report
	timer    *time.Timer
	armed    time.Time          // what timer waits for; zero if nothing
	cancel   context.CancelFunc // of the request under way

	told   int64 // Limit that the agent was last told of
	refill int64 // at this length it is told of a new one
	sent   int64 // the end of its last bytes
	gap    bool  // bytes were not taken, and the agent has not gone back to fitting ones since
	over   bool  // more than capacity was sent
	// refused: the last bytes could not be written, and it was not tried again since.
	refused bool

	result    *store.Result
	completed bool          // the report knows the end
	safe      bool          // that the trace is safe was told (Progress.Complete)
	settled   chan struct{} // made by Await; closed when safe or closed
	resend    time.Time     // the trace was asked for again and is waited for until then; else zero
	resent    bool          // it was asked for once
	rewinds   int           // how often synced lost its meaning
	reported  bool          // Events.Reported was or is being called
	complains bool          // that GitLab does not answer was logged
	closed    bool          // forgotten, or the relay is closed
}

// Open begins or takes up the report of a job that GitLab knows as running. A spool of this epoch that is found is
// read and held against its checkpoints; one of an earlier epoch is removed. It returns where the agent is to go on. Opening an
// open job again with the same epoch only returns its progress. ErrStale: there is a later epoch.
func (r *Relay) Open(id, epoch int64, t Target) (Progress, error) {
	if id <= 0 || epoch <= 0 {
		return Progress{}, fmt.Errorf("open job %d, epoch %d: both must be positive", id, epoch)
	}
	if err := t.check(); err != nil {
		return Progress{}, fmt.Errorf("open job %d: %w", id, err)
	}
	for {
		j, fresh, err := r.enter(id, epoch, t)
		if err != nil {
			return Progress{}, err
		}
		if fresh {
			return j.begin()
		}
		p, isOpen, err := j.again(epoch)
		if isOpen || err != nil {
			return p, err
		}
		r.Forget(id)
	}
}

// enter returns the job with this id. One that was made for the purpose is locked; begin unlocks it.
func (r *Relay) enter(id, epoch int64, t Target) (j *job, fresh bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, false, ErrClosed
	}
	if j := r.jobs[id]; j != nil {
		return j, false, nil
	}
	j = &job{r: r, lane: r.lane(t.Instance), id: id, epoch: epoch, to: t}
	j.io.Lock()
	j.mu.Lock()
	r.jobs[id] = j
	return j, true, nil
}

// begin opens a fresh job.
func (j *job) begin() (Progress, error) {
	defer j.io.Unlock()
	defer j.mu.Unlock()
	if err := j.find(); err != nil {
		j.closed = true
		j.r.drop(j)
		return Progress{}, fmt.Errorf("open job %d: %w", j.id, err)
	}
	return j.progress(Continue), nil
}

// again answers an Open of an open job; isOpen is false if the job must be forgotten first.
func (j *job) again(epoch int64) (p Progress, isOpen bool, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case j.closed || j.epoch < epoch:
		return Progress{}, false, nil
	case j.epoch > epoch:
		return Progress{}, false, fmt.Errorf("open job %d with epoch %d: %w: the relay holds %d", j.id, epoch, ErrStale, j.epoch)
	}
	return j.progress(j.verdict()), true, nil
}

// drop takes a closed job out of the map.
func (r *Relay) drop(j *job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.jobs[j.id] == j && !r.closed {
		delete(r.jobs, j.id)
	}
}

// find looks what is there of the job; io and mu must be held.
func (j *job) find() error {
	limit := j.to.OutputLimit
	resumed := false
	if k, ok := j.r.spool.Find(j.id); ok {
		switch {
		case k.Epoch > j.epoch:
			return fmt.Errorf("%w: there is a spool of epoch %d, later than %d", ErrStale, k.Epoch, j.epoch)
		case k.Epoch < j.epoch:
			if err := j.r.spool.Discard(j.id); err != nil {
				return err
			}
		default:
			file, loss, err := j.r.spool.Take(j.id)
			if err != nil {
				return err
			}
			j.file, resumed = file, true
			j.length, j.sum, j.synced = file.Length(), file.CRC(), file.Synced()
			if j.synced < j.length {
				j.r.sync.add(j, finishSync)
			}
			limit = max(limit, k.Limit)
			j.mourn(loss)
		}
	}
	j.capacity = limit + TraceAllowance
	j.told, j.refill = j.length+firstWindow, j.length+firstWindow/2
	j.report = report.New(time.Now(), j.length, resumed, j.r.rand)
	j.report.Pace(j.r.o.Pace)
	j.arm()
	return nil
}

// mourn says what a loss of power has left of a spooled trace.
func (j *job) mourn(loss spool.Loss) {
	log := j.r.log.With("job", j.id, "bytes", j.length, "cut", loss.Cut)
	switch {
	case loss.Acknowledged > 0:
		log.Error("the spool is damaged: a trace has lost bytes that were synced; its agent, which keeps them, is asked for them again",
			"acknowledged", loss.Acknowledged)
	case loss.Cut > 0:
		log.Info("cut the end of a trace that was not synced when the host went down; it is asked for again")
	}
}

// find returns the job if it is open with this epoch, else nil.
func (r *Relay) find(id, epoch int64) *job {
	r.mu.Lock()
	defer r.mu.Unlock()
	j := r.jobs[id]
	if j == nil || j.epoch != epoch {
		return nil
	}
	return j
}

// Progress returns how far the job is; Verdict Stop if the job is not open with this epoch. It does not wait for the disk.
func (r *Relay) Progress(id, epoch int64) Progress {
	j := r.find(id, epoch)
	if j == nil {
		return Progress{Epoch: epoch, Verdict: Stop, Tell: true}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.progress(j.verdict())
}

// verdict is what holds for the next bytes; mu must be held.
func (j *job) verdict() Verdict {
	switch {
	case j.completed || j.over || j.report.Gone():
		return Stop
	case j.gap && !j.starved():
		return Resend
	}
	return Continue
}

// starved: there is no room for the job's bytes now; mu must be held.
func (j *job) starved() bool {
	return j.closed || j.refused || j.r.spool.Err() != nil && j.result == nil
}

// progress says how far the job is; mu must be held.
func (j *job) progress(v Verdict) Progress {
	p := Progress{Epoch: j.epoch, Written: j.length, Reported: j.report.Sent(), Verdict: v, Tell: true}
	p.Received = min(j.synced, p.Written)
	p.Complete = j.completed && (p.Received >= p.Written || j.report.Whole() || j.report.Gone())
	p.Limit = max(min(p.Written+j.r.o.Window, j.capacity), p.Written)
	if v == Stop || j.starved() {
		p.Limit = p.Written
	}
	return p
}

// tell is progress that the agent gets to hear; mu must be held.
func (j *job) tell(v Verdict) Progress {
	p := j.progress(v)
	j.told = p.Limit
	j.refill = p.Written + (p.Limit-p.Written+1)/2
	return p
}

// mention is progress that the agent need not hear of unless it has used up half of its window; mu must be held.
func (j *job) mention(v Verdict) Progress {
	p := j.progress(v)
	if p.Written >= j.refill && p.Limit > j.told {
		return j.tell(v)
	}
	p.Tell = false
	return p
}

// nowSafe says, once, that the whole trace of a finished job is safe; mu must be held.
func (j *job) nowSafe() bool {
	if j.safe || !j.completed || !j.progress(Stop).Complete {
		return false
	}
	j.safe = true
	j.release()
	return true
}

// release lets go those that wait for the end of the job's trace; mu must be held.
func (j *job) release() {
	if j.settled != nil {
		close(j.settled)
		j.settled = nil
	}
}

// Await returns when the whole trace of a finished job is safe (Progress.Complete), or the job is not open with this
// epoch any more. It fails with the context's error only. It waits for no GitLab, but for an agent that still has bytes.
func (r *Relay) Await(ctx context.Context, id, epoch int64) error {
	j := r.find(id, epoch)
	if j == nil {
		return nil
	}
	j.mu.Lock()
	if j.closed || j.safe || j.completed && j.progress(Stop).Complete {
		j.mu.Unlock()
		return nil
	}
	if j.settled == nil {
		j.settled = make(chan struct{})
	}
	settled := j.settled
	j.mu.Unlock()
	select {
	case <-settled:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Forget ends the report of a job, wherever it is, and removes its spool. A request that is under way is cut off.
// Forgetting what is not there is no error.
func (r *Relay) Forget(id int64) {
	r.mu.Lock()
	j, closed := r.jobs[id], r.closed
	r.mu.Unlock()
	if closed {
		return
	}
	var err error
	if j == nil {
		err = r.spool.Discard(id)
	} else {
		err = j.forget()
		r.drop(j)
	}
	if err != nil {
		r.log.Warn("a spooled trace is left behind; the next start removes it", "job", id, "error", err)
	}
	r.room.found()
}

func (j *job) forget() error {
	j.mu.Lock()
	if j.cancel != nil {
		j.cancel()
	}
	j.mu.Unlock()
	j.io.Lock()
	defer j.io.Unlock()
	j.mu.Lock()
	was := j.closed
	j.closed = true
	j.release()
	j.disarm()
	j.mu.Unlock()
	j.lane.forget(j)
	if was || j.file == nil {
		return nil
	}
	return j.file.Remove()
}

// close takes no more bytes, begins no more requests and leaves the spool.
func (j *job) close() {
	j.io.Lock()
	defer j.io.Unlock()
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.closed && j.file != nil {
		if err := j.file.Close(); err != nil {
			j.r.log.Warn("cannot close a spooled trace", "job", j.id, "error", err)
		}
	}
	j.closed = true
	j.release()
	j.disarm()
}
