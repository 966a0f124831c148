package supervisor

import (
	"context"
	"sync"

	"github.com/switchyard-ci/switchyard/job/folder"
)

// maxQuestions is how many questions of a job are answered at once. A job that keeps to the rules has no more.
const maxQuestions = 16

// questions are those of one job that wait for the control plane. Its methods are for the job's goroutine.
type questions struct {
	w       *work
	ctx     context.Context
	cancel  context.CancelFunc
	tasks   sync.WaitGroup
	open    map[uint64]bool
	answers chan folder.CacheAnswer // has room for all that are open
}

func newQuestions(w *work) *questions {
	q := &questions{w: w, open: make(map[uint64]bool), answers: make(chan folder.CacheAnswer, maxQuestions)}
	q.ctx, q.cancel = context.WithCancel(w.life)
	return q
}

// ask brings a question to the control plane, unless it is on its way already. One too many is not answered: the job
// gives it up or repeats it.
func (q *questions) ask(r folder.CacheRequest) {
	if q.open[r.ID] {
		return
	}
	if len(q.open) >= maxQuestions {
		q.w.log.Warn("the job asks too much at once", "questions", len(q.open))
		return
	}
	q.open[r.ID] = true
	q.tasks.Go(func() { q.answers <- q.answer(r) })
}

func (q *questions) answer(r folder.CacheRequest) folder.CacheAnswer {
	if q.w.config.Sign == nil {
		return folder.CacheAnswer{ID: r.ID, Error: "this agent cannot ask for the URLs of caches"}
	}
	a := q.w.config.Sign(q.ctx, q.w.Intent.Ref(), r)
	a.ID = r.ID
	if !a.Fits() {
		return folder.CacheAnswer{ID: r.ID, Error: "the URL of the cache is too long"}
	}
	return a
}

// answered is to be called with each answer that was received from answers.
func (q *questions) answered(a folder.CacheAnswer) { delete(q.open, a.ID) }

func (q *questions) close() {
	q.cancel()
	q.tasks.Wait()
}
