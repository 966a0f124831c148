//go:build unix

package admin_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/switchyard-ci/switchyard/controlplane/admin"
	"github.com/switchyard-ci/switchyard/controlplane/dispatch"
	"github.com/switchyard-ci/switchyard/controlplane/store"
	adminv1 "github.com/switchyard-ci/switchyard/gen/switchyard/admin/v1"
)

// drains is a Drains in memory; nil is one of a fleet in which nobody is drained.
type drains struct {
	agents map[string]admin.Drain
	err    error
}

func (d *drains) Drains() map[string]admin.Drain {
	if d == nil {
		return nil
	}
	return d.agents
}

func (d *drains) Drain(_ context.Context, agent store.Agent, reason, actor string) (int, error) {
	d.agents[agent.ID] = admin.Drain{Reason: reason, By: actor, At: time.Unix(7, 0)}
	return 3, d.err
}

func (d *drains) Undrain(_ context.Context, agent store.Agent, _ string) (bool, error) {
	_, was := d.agents[agent.ID]
	delete(d.agents, agent.ID)
	return was, d.err
}

func TestDrainAndUndrain(t *testing.T) {
	folder := t.TempDir()
	d := &drains{agents: map[string]admin.Drain{"id-of-somebody-removed": {}}}
	serve(t, folder,
		members{{ID: "id-of-zoe", Name: "zoe"}, {ID: "id-of-adam", Name: "adam"}},
		fleet{agents: []dispatch.AgentStatus{{ID: "id-of-zoe", Name: "zoe", Online: true, Slots: 4}}},
		runners{drains: d}, slog.New(slog.DiscardHandler))
	client := dial(t, folder)

	answer, err := client.DrainAgent(t.Context(), &adminv1.DrainAgentRequest{Name: "zoe", Reason: "new disks", Actor: "ada"})
	require.NoError(t, err)
	require.EqualValues(t, 3, answer.GetJobs())
	_, err = client.DrainAgent(t.Context(), &adminv1.DrainAgentRequest{Name: "id-of-adam", Actor: "ada"})
	require.NoError(t, err)
	agents, err := client.ListAgents(t.Context(), &adminv1.ListAgentsRequest{})
	require.NoError(t, err)
	at := timestamppb.New(time.Unix(7, 0))
	requireProto(t, &adminv1.ListAgentsResponse{Agents: []*adminv1.Agent{
		{Id: "id-of-adam", Name: "adam", Draining: true, DrainedBy: "ada", DrainedAt: at},
		{Id: "id-of-zoe", Name: "zoe", Online: true, Slots: 4, Draining: true, DrainReason: "new disks", DrainedBy: "ada", DrainedAt: at},
	}}, agents)

	for _, was := range []bool{true, false} {
		answer, err := client.UndrainAgent(t.Context(), &adminv1.UndrainAgentRequest{Name: "zoe", Actor: "ada"})
		require.NoError(t, err)
		require.Equal(t, was, answer.GetWasDrained())
	}

	for _, c := range []struct {
		req  *adminv1.DrainAgentRequest
		want codes.Code
	}{
		{&adminv1.DrainAgentRequest{Name: "eve", Actor: "ada"}, codes.NotFound},
		{&adminv1.DrainAgentRequest{Name: "zoe"}, codes.InvalidArgument},
		{&adminv1.DrainAgentRequest{Actor: "ada"}, codes.InvalidArgument},
	} {
		_, err := client.DrainAgent(t.Context(), c.req)
		require.Equal(t, c.want, status.Code(err))
		_, err = client.UndrainAgent(t.Context(), &adminv1.UndrainAgentRequest{Name: c.req.GetName(), Actor: c.req.GetActor()})
		require.Equal(t, c.want, status.Code(err))
	}
	_, err = client.RemoveAgent(t.Context(), &adminv1.RemoveAgentRequest{Name: "zoe", Actor: "ada"})
	require.ErrorContains(t, err, "it is done (agent.remove of zoe), but the audit log could not be written: the disk is full")
	d.err = errors.New("the disk is full")
	_, err = client.DrainAgent(t.Context(), &adminv1.DrainAgentRequest{Name: "zoe", Actor: "ada"})
	require.ErrorContains(t, err, "drain agent zoe: the disk is full")
	_, err = client.UndrainAgent(t.Context(), &adminv1.UndrainAgentRequest{Name: "zoe", Actor: "ada"})
	require.ErrorContains(t, err, "undrain agent zoe: the disk is full")
}
