package conformance

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

func runnerTokens(t *testing.T, open opener) {
	s := open(t)
	_, err := s.RunnerToken(t.Context(), "everything")
	require.ErrorIs(t, err, store.ErrNotFound)
	require.NoError(t, s.DeleteRunnerToken(t.Context(), "everything"))

	first := store.RunnerToken{Token: "glrt-first", Configured: "abc", ObtainedAt: start, ExpiresAt: start.Add(time.Hour)}
	second := store.RunnerToken{Token: "glrt-second", Configured: "abc", ObtainedAt: start.Add(time.Minute)}
	require.NoError(t, s.SaveRunnerToken(t.Context(), "other", first))
	for _, token := range []store.RunnerToken{first, second} {
		require.NoError(t, s.SaveRunnerToken(t.Context(), "everything", token))
		have, err := s.RunnerToken(t.Context(), "everything")
		require.NoError(t, err)
		require.Equal(t, token, have)
	}
	require.NoError(t, s.Close())

	s = opened(t, open)
	have, err := s.RunnerToken(t.Context(), "everything")
	require.NoError(t, err)
	require.Equal(t, second, have)
	require.NoError(t, s.DeleteRunnerToken(t.Context(), "everything"))
	_, err = s.RunnerToken(t.Context(), "everything")
	require.ErrorIs(t, err, store.ErrNotFound)
	have, err = s.RunnerToken(t.Context(), "other")
	require.NoError(t, err)
	require.Equal(t, first, have)
}

func documents(t *testing.T, open opener) {
	s := open(t)
	_, err := s.Document(t.Context(), "policy")
	require.ErrorIs(t, err, store.ErrNotFound)

	d := store.Document{Name: "policy", Body: []byte("one\x00\xff"), ChangedAt: start, ChangedBy: "anna"}
	_, err = s.PutDocument(t.Context(), d, 1, nil)
	require.ErrorIs(t, err, store.ErrStale, "there is none yet")
	first, err := s.PutDocument(t.Context(), d, 0, &store.AuditEntry{At: start, Actor: "anna", Action: "put", Subject: "policy"})
	require.NoError(t, err)
	d.Version = 1
	require.Equal(t, d, first)
	_, err = s.PutDocument(t.Context(), d, 0, &store.AuditEntry{At: start, Actor: "eve"})
	require.ErrorIs(t, err, store.ErrStale, "there is one already")

	large := store.Document{Name: "policy", Body: bytes.Repeat([]byte("x"), store.MaxDocument), ChangedAt: start.Add(1), ChangedBy: "ben"}
	second, err := s.PutDocument(t.Context(), large, 1, nil)
	require.NoError(t, err)
	require.EqualValues(t, 2, second.Version)
	large.Body = append(large.Body, 'x')
	_, err = s.PutDocument(t.Context(), large, 2, &store.AuditEntry{At: start, Actor: "ben"})
	require.ErrorContains(t, err, "the store takes up to")
	empty, err := s.PutDocument(t.Context(), store.Document{Name: "empty"}, 0, nil)
	require.NoError(t, err)
	require.NoError(t, s.Close())

	s = opened(t, open)
	for _, want := range []store.Document{second, empty} {
		have, err := s.Document(t.Context(), want.Name)
		require.NoError(t, err)
		require.Equal(t, want, have)
	}
	log, err := s.Audit(t.Context(), 0, 10)
	require.NoError(t, err)
	require.Len(t, log, 1, "only what was written is in the log")
	require.Equal(t, "anna", log[0].Actor)
}

func oneDocumentWins(t *testing.T, open opener) {
	s := opened(t, open)
	const callers = 16
	outcomes := make(chan error, callers)
	for n := range callers {
		go func() {
			_, err := s.PutDocument(t.Context(), store.Document{Name: "policy", Body: fmt.Append(nil, n)}, 0, &store.AuditEntry{At: start})
			outcomes <- err
		}()
	}
	won := 0
	for range callers {
		if err := <-outcomes; err == nil {
			won++
		} else if !errors.Is(err, store.ErrStale) {
			t.Error(err)
		}
	}
	require.Equal(t, 1, won)
	log, err := s.Audit(t.Context(), 0, callers)
	require.NoError(t, err)
	require.Len(t, log, 1)
}

func auditLog(t *testing.T, open opener) {
	s := open(t)
	none, err := s.Audit(t.Context(), 0, 10)
	require.NoError(t, err)
	require.Empty(t, none)
	for n := range 5 {
		require.NoError(t, s.AppendAudit(t.Context(), store.AuditEntry{
			At: start.Add(time.Duration(n)), Actor: "anna", Action: "pause", Subject: fmt.Sprint("group/", n), Detail: "until noon",
		}))
	}
	require.NoError(t, s.AppendAudit(t.Context(), store.AuditEntry{
		At: start, Actor: "\xff\x00", Action: strings.Repeat("ü", 1<<20), Detail: strings.Repeat("x", 1<<20),
	}))
	require.NoError(t, s.Close())

	s = opened(t, open)
	log, err := s.Audit(t.Context(), 0, 3)
	require.NoError(t, err)
	require.Len(t, log, 3)
	odd := log[0]
	require.Equal(t, "\uFFFD\uFFFD", odd.Actor)
	require.True(t, utf8.ValidString(odd.Action) && strings.HasSuffix(odd.Action, "ü…") && strings.HasSuffix(odd.Detail, "x…"))
	require.Less(t, len(odd.Action)+len(odd.Detail), 32<<10)
	require.Equal(t, store.AuditEntry{
		ID: log[1].ID, At: start.Add(4), Actor: "anna", Action: "pause", Subject: "group/4", Detail: "until noon",
	}, log[1])
	require.Greater(t, log[1].ID, log[2].ID)

	rest, err := s.Audit(t.Context(), log[2].ID, 100)
	require.NoError(t, err)
	require.Len(t, rest, 3)
	require.Equal(t, "group/2", rest[0].Subject)
	require.Equal(t, "group/0", rest[2].Subject)
}
