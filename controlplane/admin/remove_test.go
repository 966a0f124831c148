//go:build unix

package admin_test

import (
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/switchyard-ci/switchyard/controlplane/dispatch"
	"github.com/switchyard-ci/switchyard/controlplane/enrollment"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	"github.com/switchyard-ci/switchyard/controlplane/store/sealing"
	"github.com/switchyard-ci/switchyard/controlplane/store/sqlite"
	adminv1 "github.com/switchyard-ci/switchyard/gen/switchyard/admin/v1"
)

func TestRemoveAgent(t *testing.T) {
	folder := t.TempDir()
	s, err := sqlite.Open(t.Context(), filepath.Join(folder, "store.db"), sealing.NewKey([32]byte{1}))
	require.NoError(t, err)
	defer func() { require.NoError(t, s.Close()) }()
	ca, err := enrollment.OpenCA(folder, nil)
	require.NoError(t, err)
	authority, err := enrollment.New(t.Context(), ca, s, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	token, _, err := authority.NewJoinToken(t.Context(), 2, time.Hour)
	require.NoError(t, err)
	digest := token.Digest()
	ids := map[string]string{}
	for _, name := range []string{"one", "two"} {
		a, err := s.EnrollAgent(t.Context(), digest[:], store.Agent{ID: uuid.NewString(), Name: name, KeyDigest: name}, time.Now())
		require.NoError(t, err)
		ids[name] = a.ID
	}
	if authority, err = enrollment.New(t.Context(), ca, s, slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	var audit []store.AuditEntry
	stop := serve(t, folder, authority, fleet{jobs: []dispatch.JobSnapshot{{Agent: ids["one"]}, {Agent: ids["one"]}, {Agent: ids["two"]}}}, runners{policies: policies{&audit}}, slog.New(slog.DiscardHandler))
	defer stop()
	client := dial(t, folder)

	_, err = client.RemoveAgent(t.Context(), &adminv1.RemoveAgentRequest{Name: "three"})
	require.Equal(t, codes.NotFound, status.Code(err))
	require.ErrorContains(t, err, `no agent "three"`)
	_, err = client.RemoveAgent(t.Context(), &adminv1.RemoveAgentRequest{})
	require.Equal(t, codes.InvalidArgument, status.Code(err))

	answer, err := client.RemoveAgent(t.Context(), &adminv1.RemoveAgentRequest{Name: "one", Actor: "ada"})
	require.NoError(t, err)
	require.EqualValues(t, 2, answer.GetLostJobs())
	_, member := authority.Agent(ids["one"])
	require.False(t, member)
	answer, err = client.RemoveAgent(t.Context(), &adminv1.RemoveAgentRequest{Name: ids["two"]})
	require.NoError(t, err)
	require.EqualValues(t, 1, answer.GetLostJobs())
	stored, err := s.Agent(t.Context(), ids["two"])
	require.NoError(t, err)
	require.True(t, stored.Removed)
	require.Len(t, audit, 2)
	require.Equal(t, []string{"ada", "agent.remove", "one", "id " + ids["one"] + ", lost jobs: 2"}, []string{audit[0].Actor, audit[0].Action, audit[0].Subject, audit[0].Detail})
	require.Equal(t, "unknown", audit[1].Actor)
}
