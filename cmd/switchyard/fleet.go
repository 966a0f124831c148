package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/switchyard-ci/switchyard/controlplane/admin"
	adminv1 "github.com/switchyard-ci/switchyard/gen/switchyard/admin/v1"
	"github.com/switchyard-ci/switchyard/internal/tracetext"
)

type agentsCmd struct {
	List  agentsListCmd  `cmd:"" help:"List the fleet's agents."`
	Token agentsTokenCmd `cmd:"" help:"Print a token with which agents may join."`

	Drain   agentsDrainCmd   `cmd:"" help:"Give an agent no new jobs; those that it has go on."`
	Undrain agentsUndrainCmd `cmd:"" help:"Give an agent jobs again that was drained."`
	Remove  agentsRemoveCmd  `cmd:"" help:"Put an agent out of the fleet."`
}

type jobsCmd struct {
	List jobsListCmd `cmd:"" help:"List the jobs that are claimed and not yet reported."`
}

// ask makes one call to the running control plane.
func ask[T any](ctx context.Context, f configFlag, std streams, call func(context.Context, adminv1.AdminServiceClient) (T, error)) (T, error) {
	var none T
	cfg, err := f.load(std.err)
	if err != nil {
		return none, err
	}
	conn, err := admin.Dial(ctx, cfg.Data, f.Config)
	if err != nil {
		return none, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	answer, err := call(ctx, adminv1.NewAdminServiceClient(conn))
	if err != nil {
		return none, fmt.Errorf("ask the control plane: %s", status.Convert(err).Message())
	}
	return answer, nil
}

type agentsTokenCmd struct {
	configFlag
	Uses uint32        `default:"1" help:"How many agents may join with it."`
	TTL  time.Duration `default:"1h" help:"How long it is good for."`
}

// Help is shown by --help.
func (agentsTokenCmd) Help() string {
	return `The control plane has to be running. Nothing but the token is printed, so that it can go into a file:

  switchyard agents token -c switchyard.yaml > join-token
  switchyard-agent --server control-plane:7443 --token-file join-token`
}

func (c *agentsTokenCmd) Run(ctx context.Context, std streams) error {
	if c.Uses == 0 || c.TTL <= 0 {
		return usageError(fmt.Errorf("--uses is %d and --ttl is %s: both must be more than zero", c.Uses, c.TTL))
	}
	answer, err := ask(ctx, c.configFlag, std, func(ctx context.Context, a adminv1.AdminServiceClient) (*adminv1.CreateJoinTokenResponse, error) {
		return a.CreateJoinToken(ctx, &adminv1.CreateJoinTokenRequest{Uses: c.Uses, Ttl: durationpb.New(c.TTL), Actor: actor()})
	})
	if err != nil {
		return err
	}
	fmt.Fprintln(std.out, answer.GetToken())
	return nil
}

// outputFlag chooses between a table for people and JSON for scripts.
type outputFlag struct {
	Output string `short:"o" enum:"table,json" default:"table" help:"table or json."`
}

// printList writes messages as one JSON array or as a table.
func printList[M proto.Message](f outputFlag, w io.Writer, list []M, header string, row func(M) []string) error {
	if f.Output == "json" {
		items := make([]json.RawMessage, 0, len(list))
		for _, m := range list {
			item, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
			if err != nil {
				return fmt.Errorf("write JSON: %w", err)
			}
			items = append(items, item)
		}
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(items)
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, header)
	for _, m := range list {
		cells := row(m)
		for i := range cells {
			cells[i] = plain(cells[i])
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	return t.Flush()
}

// plain is a text as one line that does nothing to the terminal: who writes a pipeline chooses the names of its jobs.
func plain(s string) string { return tracetext.Bare(tracetext.Clean(s)) }

type agentsListCmd struct {
	configFlag
	outputFlag
}

func (c *agentsListCmd) Run(ctx context.Context, std streams) error {
	answer, err := ask(ctx, c.configFlag, std, func(ctx context.Context, a adminv1.AdminServiceClient) (*adminv1.ListAgentsResponse, error) {
		return a.ListAgents(ctx, &adminv1.ListAgentsRequest{})
	})
	if err != nil {
		return err
	}
	return printList(c.outputFlag, std.out, answer.GetAgents(), "NAME\tSTATE\tJOBS\tSLOTS\tEXECUTORS\tLABELS\tLAST SEEN\tVERSION", func(a *adminv1.Agent) []string {
		state := "away"
		switch {
		case a.GetOnline() && a.GetDraining():
			state = "draining"
		case a.GetOnline():
			state = "online"
		}
		labels := make([]string, 0, len(a.GetLabels()))
		for _, k := range slices.Sorted(maps.Keys(a.GetLabels())) {
			labels = append(labels, k+"="+a.GetLabels()[k])
		}
		return []string{
			a.GetName(), state, fmt.Sprint(a.GetUsedSlots()), fmt.Sprint(a.GetSlots()), orDash(strings.Join(a.GetExecutors(), ",")),
			orDash(strings.Join(labels, ",")), ago(a.GetLastSeen()), orDash(a.GetVersion()),
		}
	})
}

type agentsDrainCmd struct {
	configFlag
	Name   string `arg:"" help:"The agent's name, or its id."`
	Reason string `placeholder:"TEXT" help:"Why, for those who look at it: agents list -o json, audit, and the agent's log."`
}

// Help is shown by --help.
func (agentsDrainCmd) Help() string {
	return `It gets no new jobs until switchyard agents undrain; those that it has begun go on to their end. This holds when the agent
or the control plane is restarted, and for an agent that is away. When switchyard agents list shows no jobs of it any more,
its host can be worked on.`
}

func (c *agentsDrainCmd) Run(ctx context.Context, std streams) error {
	answer, err := ask(ctx, c.configFlag, std, func(ctx context.Context, a adminv1.AdminServiceClient) (*adminv1.DrainAgentResponse, error) {
		return a.DrainAgent(ctx, &adminv1.DrainAgentRequest{Name: c.Name, Reason: c.Reason, Actor: actor()})
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(std.out, "%s gets no new jobs; jobs that it still has: %d\n", c.Name, answer.GetJobs())
	return nil
}

type agentsUndrainCmd struct {
	configFlag
	Name string `arg:"" help:"The agent's name, or its id."`
}

func (c *agentsUndrainCmd) Run(ctx context.Context, std streams) error {
	answer, err := ask(ctx, c.configFlag, std, func(ctx context.Context, a adminv1.AdminServiceClient) (*adminv1.UndrainAgentResponse, error) {
		return a.UndrainAgent(ctx, &adminv1.UndrainAgentRequest{Name: c.Name, Actor: actor()})
	})
	switch {
	case err != nil:
		return err
	case answer.GetWasDrained():
		fmt.Fprintf(std.out, "%s gets jobs again\n", c.Name)
	default:
		fmt.Fprintf(std.out, "%s was not drained\n", c.Name)
	}
	return nil
}

type agentsRemoveCmd struct {
	configFlag
	Name string `arg:"" help:"The agent's name, or its id."`
}

// Help is shown by --help.
func (agentsRemoveCmd) Help() string {
	return `Its certificate is good no more, and its session ends. It is told to stop its jobs; those that it had begun are
reported to GitLab as failed at once, others go to another agent. To let it join again, stop it, empty its data folder
and give it a new token.`
}

func (c *agentsRemoveCmd) Run(ctx context.Context, std streams) error {
	answer, err := ask(ctx, c.configFlag, std, func(ctx context.Context, a adminv1.AdminServiceClient) (*adminv1.RemoveAgentResponse, error) {
		return a.RemoveAgent(ctx, &adminv1.RemoveAgentRequest{Name: c.Name, Actor: actor()})
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(std.out, "removed %s; jobs that failed by this: %d\n", c.Name, answer.GetLostJobs())
	return nil
}

type jobsListCmd struct {
	configFlag
	outputFlag
}

func (c *jobsListCmd) Run(ctx context.Context, std streams) error {
	answer, err := ask(ctx, c.configFlag, std, func(ctx context.Context, a adminv1.AdminServiceClient) (*adminv1.ListJobsResponse, error) {
		return a.ListJobs(ctx, &adminv1.ListJobsRequest{})
	})
	if err != nil {
		return err
	}
	return printList(c.outputFlag, std.out, answer.GetJobs(), "JOB\tGITLAB JOB\tSTATE\tPROJECT\tNAME\tRUNNER\tAGENT\tCLAIMED\tTRACE", func(j *adminv1.Job) []string {
		return []string{
			fmt.Sprint(j.GetJob()), fmt.Sprint(j.GetGitlabJobId()), j.GetState(), orDash(j.GetProjectPath()), j.GetJobName(), j.GetRunner(),
			orDash(j.GetAgent()), ago(j.GetClaimedAt()), fmt.Sprintf("%d/%d", j.GetTraceReported(), j.GetTraceReceived()),
		}
	})
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func ago(t *timestamppb.Timestamp) string {
	if t == nil || t.AsTime().IsZero() {
		return "-"
	}
	return time.Since(t.AsTime()).Round(time.Second).String() + " ago"
}
