//go:build unix

package control_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/job/control"
	"github.com/switchyard-ci/switchyard/job/folder"
)

type answered struct {
	folder.CacheAnswer
	err error
}

func ask(ctx context.Context, s *control.Server, key string) <-chan answered {
	c := make(chan answered, 1)
	go func() {
		a, err := s.Ask(ctx, folder.CacheRequest{ID: 99, Op: "get", Key: key})
		c <- answered{a, err}
	}()
	return c
}

func follow(t *testing.T, f *folder.Folder) *folder.Follower {
	t.Helper()
	w, err := f.Follow(context.Background())
	require.NoError(t, err)
	t.Cleanup(func() { _ = w.Close() })
	return w
}

func TestAQuestionIsAnswered(t *testing.T) {
	f := open(t)
	s := listen(t, f, nil)
	defer s.Close()
	first := follow(t, f)
	asked := ask(t.Context(), s, "a")
	e := next(t, first)
	require.Equal(t, folder.EventAsk, e.Kind)
	require.Equal(t, folder.CacheRequest{ID: 1, Op: "get", Key: "a"}, e.Ask, "the id is the server's")
	require.NoError(t, first.Close()) // it goes without an answer
	second := follow(t, f)
	require.Equal(t, e, next(t, second), "it is repeated")
	third := follow(t, f)
	require.Equal(t, e, next(t, third), "everybody is asked")

	other := ask(t.Context(), s, "b")
	b := next(t, third)
	require.Equal(t, "b", b.Ask.Key)
	require.Equal(t, b, next(t, second))
	require.NoError(t, second.Answer(folder.CacheAnswer{ID: 77, URL: "of nothing"}))
	require.NoError(t, second.Answer(folder.CacheAnswer{ID: b.Ask.ID, Error: "no store"}))
	require.NoError(t, second.Answer(folder.CacheAnswer{ID: b.Ask.ID, URL: "twice"}))
	got := <-other
	require.NoError(t, got.err)
	require.Equal(t, folder.CacheAnswer{ID: 2, Error: "no store"}, got.CacheAnswer)
	require.NoError(t, third.Answer(folder.CacheAnswer{ID: 1, URL: "https://s3.test/a?b&c", Headers: map[string]string{"x": "y"}}))
	got = <-asked
	require.NoError(t, got.err)
	require.Equal(t, "https://s3.test/a?b&c", got.URL)
	require.Equal(t, "y", got.Headers["x"])

	s.Stage("step_script")
	require.Equal(t, folder.Event{Kind: folder.EventStage, Stage: "step_script"}, next(t, follow(t, f)), "what is answered is not asked again")
}

func TestManyQuestions(t *testing.T) {
	f := open(t)
	s := listen(t, f, nil)
	defer s.Close()
	w := follow(t, f)
	const n = 100
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() {
			a, err := s.Ask(t.Context(), folder.CacheRequest{Op: "head", Key: fmt.Sprint(i)})
			if err != nil || a.URL != fmt.Sprint(i) {
				t.Errorf("question %d: %+v, %v", i, a, err)
			}
		})
	}
	var open []folder.CacheRequest
	for last := range uint64(n) {
		e := next(t, w)
		require.Equal(t, last+1, e.Ask.ID)
		open = append(open, e.Ask)
		if len(open) < 16 && last < n-1 {
			continue // so many are open at once
		}
		for len(open) > 8 || last == n-1 && len(open) > 0 {
			r := open[len(open)-1]
			open = open[:len(open)-1]
			require.NoError(t, w.Answer(folder.CacheAnswer{ID: r.ID, URL: r.Key}))
		}
	}
	all.Wait()
}

func TestQuestionsThatNobodyAnswers(t *testing.T) {
	f := open(t)
	s := listen(t, f, nil)
	s.SetPatience(50*time.Millisecond, time.Hour)
	_, err := s.Ask(t.Context(), folder.CacheRequest{Op: "get", Key: "k"})
	require.ErrorIs(t, err, control.ErrUnanswered)
	require.ErrorContains(t, err, "no agent has followed the job for 50ms")

	s.SetPatience(10*time.Millisecond, 100*time.Millisecond)
	w := follow(t, f)
	require.NoError(t, w.Answer(folder.CacheAnswer{ID: 1, URL: "too late"}))
	_, err = s.Ask(t.Context(), folder.CacheRequest{Op: "get", Key: "k"})
	require.ErrorIs(t, err, control.ErrUnanswered)
	require.ErrorContains(t, err, "within 100ms", "somebody follows, so it is waited longer")

	s.SetPatience(time.Hour, time.Hour)
	ctx, cancel := context.WithCancel(t.Context())
	asked := ask(ctx, s, "k")
	cancel()
	require.ErrorIs(t, (<-asked).err, context.Canceled)

	_, err = s.Ask(t.Context(), folder.CacheRequest{Op: "steal", Key: "k"})
	require.ErrorContains(t, err, `asks for "steal"`)

	asked = ask(t.Context(), s, "k")
	require.Equal(t, folder.EventAsk, next(t, w).Kind)
	s.Close()
	require.ErrorIs(t, (<-asked).err, control.ErrUnanswered)
	_, err = s.Ask(t.Context(), folder.CacheRequest{Op: "get", Key: "k"})
	require.ErrorIs(t, err, control.ErrUnanswered)
}
