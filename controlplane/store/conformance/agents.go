package conformance

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/store"
)

// token makes a join token that is good for an hour from start.
func token(uses int) store.JoinToken {
	id := uuid.NewString()
	digest := sha256.Sum256([]byte(id))
	return store.JoinToken{ID: id, SecretDigest: digest[:], Uses: uses, CreatedAt: start, ExpiresAt: start.Add(time.Hour)}
}

func added(t *testing.T, s store.Store, token store.JoinToken) store.JoinToken {
	t.Helper()
	require.NoError(t, s.AddJoinToken(t.Context(), token))
	return token
}

func newcomer(name string) store.Agent {
	return store.Agent{ID: uuid.NewString(), Name: name, EnrolledAt: start, KeyDigest: uuid.NewString()}
}

func enrolment(t *testing.T, open opener) {
	s := open(t)
	tok := added(t, s, token(2))
	zoe, adam := newcomer("zoe"), newcomer("adam")
	for _, a := range []*store.Agent{&zoe, &adam} {
		enrolled, err := s.EnrollAgent(t.Context(), tok.SecretDigest, *a, start)
		require.NoError(t, err)
		a.TokenID = tok.ID
		require.Equal(t, *a, enrolled)
		have, err := s.Agent(t.Context(), a.ID)
		require.NoError(t, err)
		require.Equal(t, *a, have)
	}
	_, err := s.EnrollAgent(t.Context(), tok.SecretDigest, newcomer("third"), start)
	require.ErrorIs(t, err, store.ErrTokenUsed)
	require.NoError(t, s.Close())

	s = opened(t, open)
	agents, err := s.Agents(t.Context())
	require.NoError(t, err)
	require.Equal(t, []store.Agent{adam, zoe}, agents, "by name")
	_, err = s.EnrollAgent(t.Context(), tok.SecretDigest, newcomer("third"), start)
	require.ErrorIs(t, err, store.ErrTokenUsed)

	require.ErrorIs(t, s.AddJoinToken(t.Context(), tok), store.ErrExists)
}

func enrolmentRepeated(t *testing.T, open opener) {
	s := opened(t, open)
	tok := added(t, s, token(1))
	first, err := s.EnrollAgent(t.Context(), tok.SecretDigest, newcomer("host"), start)
	require.NoError(t, err)

	// The answer was lost; the agent asks again with the key that it has, even after the token's end.
	repeated := newcomer("host")
	repeated.KeyDigest = first.KeyDigest
	for _, now := range []time.Time{start, start.Add(2 * time.Hour)} {
		again, err := s.EnrollAgent(t.Context(), tok.SecretDigest, repeated, now)
		require.NoError(t, err)
		require.Equal(t, first, again)
	}
	agents, err := s.Agents(t.Context())
	require.NoError(t, err)
	require.Len(t, agents, 1)

	// With another token the same key is another agent.
	other := added(t, s, token(1))
	second, err := s.EnrollAgent(t.Context(), other.SecretDigest, repeated, start)
	require.NoError(t, err)
	require.Equal(t, repeated.ID, second.ID)
	require.Equal(t, "host-2", second.Name)
}

func badTokens(t *testing.T, open opener) {
	s := opened(t, open)
	good, used, expired, revoked := token(1), token(0), token(1), token(1)
	expired.ExpiresAt = start
	revoked.Revoked = true
	for _, tok := range []store.JoinToken{good, used, expired, revoked} {
		added(t, s, tok)
	}
	for want, digest := range map[error][]byte{
		store.ErrTokenUnknown: make([]byte, 32),
		store.ErrTokenUsed:    used.SecretDigest,
		store.ErrTokenExpired: expired.SecretDigest,
		store.ErrTokenRevoked: revoked.SecretDigest,
	} {
		_, err := s.EnrollAgent(t.Context(), digest, newcomer("host"), start)
		require.ErrorIs(t, err, want)
	}
	_, err := s.EnrollAgent(t.Context(), good.SecretDigest, newcomer("host"), good.ExpiresAt.Add(-1))
	require.NoError(t, err, "good until its last nanosecond")
	agents, err := s.Agents(t.Context())
	require.NoError(t, err)
	require.Len(t, agents, 1)
}

func oldTokens(t *testing.T, open opener) {
	s := opened(t, open)
	old := added(t, s, token(1))
	later := token(1)
	later.CreatedAt = old.ExpiresAt.Add(store.JoinTokenMemory)
	later.ExpiresAt = later.CreatedAt.Add(time.Hour)
	added(t, s, later)
	_, err := s.EnrollAgent(t.Context(), old.SecretDigest, newcomer("host"), later.CreatedAt)
	require.ErrorIs(t, err, store.ErrTokenExpired)

	latest := token(1)
	latest.CreatedAt = later.CreatedAt.Add(1)
	added(t, s, latest)
	_, err = s.EnrollAgent(t.Context(), old.SecretDigest, newcomer("host"), latest.CreatedAt)
	require.ErrorIs(t, err, store.ErrTokenUnknown)
}

func agentNames(t *testing.T, open opener) {
	s := opened(t, open)
	tok := added(t, s, token(100))
	long := strings.Repeat("x", 63)
	for _, c := range []struct{ wanted, got string }{
		{"host", "host"},
		{"host", "host-2"},
		{"host-3", "host-3"},
		{"host", "host-4"},
		{"Host", "Host"},
		{long, long},
		{long, long[:61] + "-2"},
	} {
		a, err := s.EnrollAgent(t.Context(), tok.SecretDigest, newcomer(c.wanted), start)
		require.NoError(t, err)
		require.Equal(t, c.got, a.Name)
	}
	for range 8 {
		a, err := s.EnrollAgent(t.Context(), tok.SecretDigest, newcomer(long), start)
		require.NoError(t, err)
		require.Len(t, a.Name, 63)
	}
}

func removedAgents(t *testing.T, open opener) {
	s := open(t)
	tok := added(t, s, token(2))
	first, err := s.EnrollAgent(t.Context(), tok.SecretDigest, newcomer("host"), start)
	require.NoError(t, err)
	require.NoError(t, s.RemoveAgent(t.Context(), first.ID))
	require.NoError(t, s.RemoveAgent(t.Context(), first.ID), "a repetition")
	require.NoError(t, s.Close())

	s = opened(t, open)
	first.Removed = true
	have, err := s.Agent(t.Context(), first.ID)
	require.NoError(t, err)
	require.Equal(t, first, have)
	again, err := s.EnrollAgent(t.Context(), tok.SecretDigest, first, start)
	require.NoError(t, err)
	require.True(t, again.Removed, "enrolling again with the old key does not bring it back")

	second, err := s.EnrollAgent(t.Context(), tok.SecretDigest, newcomer("host"), start)
	require.NoError(t, err)
	require.Equal(t, "host", second.Name, "the name is free again")
	agents, err := s.Agents(t.Context())
	require.NoError(t, err)
	require.Len(t, agents, 2)
}

func concurrentEnrolment(t *testing.T, open opener) {
	s := opened(t, open)
	const agents, uses = 24, 10
	tok := added(t, s, token(uses))
	var mu sync.Mutex
	names := map[string]bool{}
	var group sync.WaitGroup
	for range agents {
		group.Go(func() {
			a, err := s.EnrollAgent(t.Context(), tok.SecretDigest, newcomer("host"), start)
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				names[a.Name] = true
			}
		})
	}
	group.Wait()
	require.Len(t, names, uses)
	for n := range uses {
		require.Contains(t, names, store.AgentName("host", n+1))
	}
}

func systemIDs(t *testing.T, open opener) {
	s := open(t)
	const runners = 8
	var mu sync.Mutex
	ids := map[string]string{}
	var group sync.WaitGroup
	for n := range runners * 4 {
		group.Go(func() {
			runner := fmt.Sprint("runner-", n%runners)
			id, err := s.SystemID(t.Context(), runner)
			mu.Lock()
			defer mu.Unlock()
			switch have, ok := ids[runner]; {
			case err != nil:
				t.Error(err)
			case ok && have != id:
				t.Errorf("%s is %s and %s", runner, have, id)
			}
			ids[runner] = id
		})
	}
	group.Wait()
	require.NoError(t, s.Close())

	s = opened(t, open)
	distinct := map[string]bool{}
	for runner, id := range ids {
		again, err := s.SystemID(t.Context(), runner)
		require.NoError(t, err)
		require.Equal(t, id, again)
		require.Regexp(t, `^r_[0-9a-zA-Z]{12}$`, id)
		distinct[id] = true
	}
	require.Len(t, distinct, runners)
}
