package relay

import (
	"net/http"
	"slices"
	"time"
)

const (
	// outageAfter is how many requests in a row a GitLab leaves without a usable answer until it counts as away.
	outageAfter = 3
	// wokenAtOnce is how many jobs each answer wakes once it is back: what waits comes at the pace at which it is served,
	// twice as much with each round, and never all at once.
	wokenAtOnce = 2
)

// outage is what a lane knows of its GitLab's absence: which jobs wait for no other reason. Their own waits end within
// report.BackoffMost; when GitLab is back they need not wait for that.
type outage struct {
	failures int               // requests in a row
	asleep   map[*job]struct{} // whose last request was not answered
	waking   []*job            // who were asleep when GitLab came back
	watched  bool              // somebody waits for Recovered
}

// recovering is a GitLab that tells when it answers again; *client.Client is one.
type recovering interface {
	Recovered() <-chan struct{}
}

// heard notes how a job's request was answered; waits says that the job waits because GitLab was not there.
func (l *lane) heard(j *job, code int, waits bool) {
	l.mu.Lock()
	if waits {
		l.asleep[j] = struct{}{}
	} else {
		delete(l.asleep, j)
	}
	switch {
	case code == http.StatusTooManyRequests: // it is there, and has enough to do
		l.mu.Unlock()
		return
	case code == 0, code >= http.StatusInternalServerError, code == http.StatusNotFound:
		l.failures++
		watch := !l.watched && l.failures >= outageAfter
		l.mu.Unlock()
		if watch {
			l.watch(j.to.GitLab)
		}
		return
	}
	woken := l.backLocked()
	l.mu.Unlock()
	wake(woken)
}

// backLocked notes that GitLab answers, and returns who is to be woken; mu must be held.
func (l *lane) backLocked() []*job {
	if l.failures >= outageAfter {
		for j := range l.asleep {
			l.waking = append(l.waking, j)
		}
		clear(l.asleep)
	}
	l.failures = 0
	n := min(wokenAtOnce, len(l.waking))
	woken := slices.Clone(l.waking[:n])
	clear(l.waking[:n])
	if l.waking = l.waking[n:]; len(l.waking) == 0 {
		l.waking = nil
	}
	return woken
}

// watch wakes the jobs also when an answer to somebody else's request shows that GitLab is back.
func (l *lane) watch(g GitLab) {
	teller, ok := g.(recovering)
	if !ok {
		return
	}
	recovered := teller.Recovered()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.watched || recovered == nil || !l.r.work.open() {
		return
	}
	l.watched = true
	l.r.watchers.Go(func() {
		select {
		case <-recovered:
		case <-l.r.quit:
			return
		}
		l.mu.Lock()
		l.watched = false
		woken := l.backLocked()
		l.mu.Unlock()
		wake(woken)
	})
}

// forget drops a job that is closed.
func (l *lane) forget(j *job) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.asleep, j)
}

func wake(jobs []*job) {
	for _, j := range jobs {
		j.mu.Lock()
		if !j.closed && !j.reported {
			j.report.Wake(time.Now())
			j.arm()
		}
		j.mu.Unlock()
	}
}
