package relay

import (
	"sync"
	"time"
)

const (
	// How long a full spool waits before it looks for room again. Nothing tells when a disk has room; what the relay itself
	// makes free is seen at once.
	roomFirst = time.Second
	roomMost  = 30 * time.Second
	// roomCalm is how long it must have had room for the wait to begin at roomFirst again.
	roomCalm = time.Minute
)

// room waits for the spool's disk.
type room struct {
	r *Relay

	mu      sync.Mutex
	timer   *time.Timer // nil until it is needed
	lacking bool
	wait    time.Duration
	since   time.Time // when there was room again
}

func newRoom(r *Relay) *room { return &room{r: r, wait: roomFirst} }

// missing says that bytes of a job, or of all, were not taken.
func (m *room) missing(why error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lacking || !m.r.work.open() {
		return
	}
	m.lacking = true
	if time.Since(m.since) < roomCalm {
		m.wait = min(2*m.wait, roomMost)
	} else {
		m.wait = roomFirst
	}
	m.r.log.Error("traces cannot be written; agents keep what is not taken, reporting goes on", "error", why)
	if m.timer == nil {
		m.timer = time.AfterFunc(m.wait, m.look)
	} else {
		m.timer.Reset(m.wait)
	}
}

// found says that there may be room now.
func (m *room) found() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lacking && m.r.work.open() {
		m.timer.Reset(0)
	}
}

func (m *room) look() {
	if !m.r.work.enter() {
		return
	}
	defer m.r.work.leave()
	m.mu.Lock()
	if !m.lacking {
		m.mu.Unlock()
		return
	}
	if m.r.spool.Look() != nil {
		m.wait = min(2*m.wait, roomMost)
		m.timer.Reset(m.wait)
		m.mu.Unlock()
		return
	}
	m.lacking = false
	m.since = time.Now()
	m.mu.Unlock()

	m.r.log.Info("traces are taken again")
	m.r.mu.Lock()
	jobs := m.r.all()
	m.r.mu.Unlock()
	for _, j := range jobs {
		j.feed()
	}
}

// feed opens the window of a job whose agent waits for that.
func (j *job) feed() {
	j.mu.Lock()
	j.refused = false
	if j.closed || j.told > j.length && !j.gap {
		j.mu.Unlock()
		return
	}
	p := j.tell(j.verdict())
	j.mu.Unlock()
	j.r.o.Events.Received(j.id, p)
}

func (m *room) stop() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.timer != nil {
		m.timer.Stop()
	}
}
