//go:build unix

package control

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/switchyard-ci/switchyard/job/folder"
)

const (
	// maxQuestions is how many questions may be open at once; others wait for their turn.
	maxQuestions = 16
	// lonely is how long a question waits while nobody follows the job: an agent that is restarted is back sooner.
	lonely = 30 * time.Second
	// unanswered is how long a question waits in all. An agent that knows nothing of questions never answers.
	unanswered = 2 * time.Minute
)

// ErrUnanswered is returned by Ask if there is nobody who answers.
var ErrUnanswered = errors.New("nobody answers")

// question is one that is open.
type question struct {
	folder.CacheRequest
	answer chan folder.CacheAnswer // capacity 1
}

// questions are those that are open, in the order of their ids.
type questions struct {
	open  []*question
	last  uint64
	turns chan struct{} // one for each that is open
	// alone is since when nobody follows, unless somebody does.
	alone time.Time

	lonely, unanswered time.Duration
}

func newQuestions() questions {
	return questions{turns: make(chan struct{}, maxQuestions), alone: time.Now(), lonely: lonely, unanswered: unanswered}
}

// Ask asks all followers, and those that come later, until one of them answers; the request's ID is chosen here. It may be
// called by any number of goroutines; 16 questions are open at once. An answer with an Error is an answer.
//
// Errors: ErrUnanswered if nobody follows the job for 30 s, nobody answers within 2 min or the server is closed; ctx's; one
// about the request.
func (s *Server) Ask(ctx context.Context, r folder.CacheRequest) (folder.CacheAnswer, error) {
	r.ID = 1 // any
	if err := r.Check(); err != nil {
		return folder.CacheAnswer{}, err
	}
	total := time.NewTimer(s.questions.unanswered)
	defer total.Stop()
	select {
	case s.questions.turns <- struct{}{}:
		defer func() { <-s.questions.turns }()
	case <-total.C:
		return folder.CacheAnswer{}, fmt.Errorf("%w within %s", ErrUnanswered, s.questions.unanswered)
	case <-s.ending:
		return folder.CacheAnswer{}, errEnding
	case <-ctx.Done():
		return folder.CacheAnswer{}, ctx.Err()
	}
	q := &question{CacheRequest: r, answer: make(chan folder.CacheAnswer, 1)}
	s.change(func() { s.questions.add(q) })
	defer s.forget(q)
	alone := time.NewTimer(s.questions.lonely)
	defer alone.Stop()
	for {
		select {
		case a := <-q.answer:
			return a, nil
		case <-alone.C:
			left := s.patience()
			if left <= 0 {
				return folder.CacheAnswer{}, fmt.Errorf("%w: no agent has followed the job for %s", ErrUnanswered, s.questions.lonely)
			}
			alone.Reset(left)
		case <-total.C:
			return folder.CacheAnswer{}, fmt.Errorf("%w within %s", ErrUnanswered, s.questions.unanswered)
		case <-s.ending:
			return folder.CacheAnswer{}, errEnding
		case <-ctx.Done():
			return folder.CacheAnswer{}, ctx.Err()
		}
	}
}

// errEnding is Ask's when the job has ended.
var errEnding = fmt.Errorf("%w: the job has ended", ErrUnanswered)

func (q *questions) add(one *question) {
	q.last++
	one.ID = q.last
	q.open = append(q.open, one)
}

func (s *Server) forget(q *question) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.questions.open = slices.DeleteFunc(s.questions.open, func(other *question) bool { return other == q })
}

// answer passes an answer on to who asked. A second one, or one to no question, is dropped.
func (s *Server) answer(a folder.CacheAnswer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, q := range s.questions.open {
		if q.ID == a.ID {
			select {
			case q.answer <- a:
			default:
			}
		}
	}
}

// patience is how long nobody may go on to follow the job; not more than 0: it was too long.
func (s *Server) patience() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) > 0 {
		return s.questions.lonely
	}
	return s.questions.lonely - time.Since(s.questions.alone)
}
