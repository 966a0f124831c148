package relay

import (
	"sync"
	"time"
)

// lane is the way to one GitLab: jobs that have something to say wait in a line, a limited number of them is served at
// once, and each gets one request before it goes to the end of the line again. A long trace thus delays nobody.
type lane struct {
	r     *Relay
	limit int

	mu      sync.Mutex
	line    []*job
	waiting map[*job]struct{} // those in line
	workers int
	outage
}

// lane returns the instance's; Relay.mu must be held. Lanes stay: there are few GitLabs.
func (r *Relay) lane(instance string) *lane {
	l := r.lanes[instance]
	if l == nil {
		l = &lane{r: r, limit: r.o.Concurrency, waiting: make(map[*job]struct{}), outage: outage{asleep: make(map[*job]struct{})}}
		r.lanes[instance] = l
	}
	return l
}

// push puts a job into the line unless it stands there.
func (l *lane) push(j *job) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, there := l.waiting[j]; there {
		return
	}
	l.waiting[j] = struct{}{}
	l.line = append(l.line, j)
	if l.workers < l.limit && l.r.work.enter() {
		l.workers++
		go l.serve()
	}
}

// serve works until nobody waits or the relay closes.
func (l *lane) serve() {
	defer l.r.work.leave()
	for {
		l.mu.Lock()
		if len(l.line) == 0 || !l.r.work.open() {
			l.workers--
			l.mu.Unlock()
			return
		}
		j := l.line[0]
		l.line[0] = nil
		l.line = l.line[1:]
		delete(l.waiting, j)
		l.mu.Unlock()
		j.step()
	}
}

// arm makes the job come into the line when its report has something to do; mu must be held.
func (j *job) arm() {
	at, ok := j.report.Due(time.Now())
	if !j.resend.IsZero() && (!ok || at.After(j.resend)) {
		at, ok = j.resend, true
	}
	if !ok || j.reported {
		j.disarm()
		return
	}
	wait := time.Until(at)
	if wait <= 0 {
		j.disarm()
		j.lane.push(j)
		return
	}
	if at.Equal(j.armed) || !j.r.work.open() {
		return
	}
	j.armed = at
	if j.timer == nil {
		j.timer = time.AfterFunc(wait, func() { j.lane.push(j) })
	} else {
		j.timer.Reset(wait)
	}
}

// disarm stops the timer; mu must be held. A job that it has put into the line already finds nothing to do.
func (j *job) disarm() {
	j.armed = time.Time{}
	if j.timer != nil {
		j.timer.Stop()
	}
}
