package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/switchyard-ci/switchyard/controlplane/policy"
	adminv1 "github.com/switchyard-ci/switchyard/gen/switchyard/admin/v1"
)

type policyCmd struct {
	Apply policyApplyCmd `cmd:"" help:"Put a policy in force; nothing has to be restarted."`
	Check policyCheckCmd `cmd:"" help:"Say what is wrong with a policy; no control plane has to run."`
	Show  policyShowCmd  `cmd:"" help:"Print the policy that is in force."`
}

type policyApplyCmd struct {
	configFlag
	File string `short:"f" required:"" placeholder:"POLICY.yaml" help:"The policy; - is the standard input."`
}

// Help is shown by --help.
func (policyApplyCmd) Help() string {
	return `A policy says who gets which part of the slots, which jobs go first, and how agents are chosen. All of it may be
left out; what holds then stands in docs/fair-usage.md.

  share: fair                        # or gitlab (GitLab's own rule), or fifo
  classes: [urgent, normal, background]
  projects: {hard_quota: 50}         # for each project that nodes says nothing about
  nodes:                             # groups and projects, by their paths
    - {path: apps, weight: 2, guaranteed: 4}
    - {path: data/import, hard_quota: 10}
    - {path: platform, classes: [urgent]}      # its jobs may be urgent
  rules:                             # the first that holds for a job counts; CEL
    - name: production
      when: protected && environment == "production"
      class: urgent
      priority: 100                  # inside the project's share
    - name: lint
      when: stage == "lint"
      priority: -10
  runners:
    - {name: shared, hard_quota: 20}
    - {name: apps-runner, group: apps}         # what it is registered for
  placement:
    - {strategy: pack, warm_wait: 10s}

Rules know: gitlab, project, ref, tag, protected, stage, job, environment, source, user, runner.
Try it on a load first: switchyard simulate --policy-file. What runs goes on; jobs that wait are judged anew. Who applied what is kept: switchyard audit.
Exit code 2: the policy has mistakes, and nothing has changed.`
}

func (c *policyApplyCmd) Run(ctx context.Context, std streams) error {
	text, err := readPolicy(c.File)
	if err != nil {
		return usageError(err)
	}
	answer, err := ask(ctx, c.configFlag, std, func(ctx context.Context, a adminv1.AdminServiceClient) (*adminv1.ApplyPolicyResponse, error) {
		return a.ApplyPolicy(ctx, &adminv1.ApplyPolicyRequest{Text: text, Name: c.File, Actor: actor()})
	})
	if err != nil {
		return err
	}
	for _, w := range answer.GetWarnings() {
		fmt.Fprintln(std.err, "warning:", w)
	}
	if problems := answer.GetProblems(); len(problems) > 0 {
		return usageError(fmt.Errorf("the policy cannot be used, and nothing has changed:\n%s", strings.Join(problems, "\n")))
	}
	fmt.Fprintf(std.out, "policy %d is in force\n", answer.GetPolicy().GetVersion())
	return nil
}

type policyCheckCmd struct {
	File string `short:"f" required:"" placeholder:"POLICY.yaml" help:"The policy; - is the standard input."`
}

func (c *policyCheckCmd) Run(std streams) error {
	text, err := readPolicy(c.File)
	if err != nil {
		return usageError(err)
	}
	p, warnings, err := policy.Parse(c.File, []byte(text))
	for _, w := range warnings {
		fmt.Fprintln(std.err, "warning:", w)
	}
	if err != nil {
		return usageError(fmt.Errorf("the policy cannot be used:\n%w", err))
	}
	fmt.Fprintf(std.out, "%s can be used: shares are %s, %d nodes, %d runners\n", c.File, p.Mode, len(p.Nodes), len(p.Runners))
	return nil
}

type policyShowCmd struct {
	configFlag
	Output string `short:"o" enum:"yaml,json" default:"yaml" help:"yaml: the text as it was applied; json: with who applied it and when."`
}

func (c *policyShowCmd) Run(ctx context.Context, std streams) error {
	answer, err := ask(ctx, c.configFlag, std, func(ctx context.Context, a adminv1.AdminServiceClient) (*adminv1.GetPolicyResponse, error) {
		return a.GetPolicy(ctx, &adminv1.GetPolicyRequest{})
	})
	if err != nil {
		return err
	}
	p := answer.GetPolicy()
	switch {
	case c.Output == "json":
		return printOne(std.out, p)
	case p.GetVersion() == 0:
		fmt.Fprintln(std.out, "# No policy was applied: slots are shared fairly, all projects alike.")
	default:
		fmt.Fprintf(std.out, "# policy %d, applied by %s at %s\n%s", p.GetVersion(), p.GetAppliedBy(), p.GetAppliedAt().AsTime().Format("2006-01-02 15:04:05 UTC"), p.GetText())
	}
	return nil
}

// readText reads a file, or the standard input for "-", up to a byte more than most, which its parser refuses with a way
// out.
func readText(what, path string, most int64) ([]byte, error) {
	in := io.Reader(os.Stdin)
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("open the %s: %w", what, err)
		}
		defer f.Close()
		in = f
	}
	text, err := io.ReadAll(io.LimitReader(in, most+1))
	if err != nil {
		return nil, fmt.Errorf("read the %s: %w", what, err)
	}
	return text, nil
}

// readPolicy reads a policy that fits into a message.
func readPolicy(path string) (string, error) {
	text, err := readText("policy", path, policy.MaxSize)
	switch {
	case err != nil:
		return "", err
	case len(text) > policy.MaxSize:
		return "", errors.New("the policy has more than 1024 KiB: give shares to groups instead of to each of their projects")
	}
	return string(text), nil
}

// actor is who gives the command, for the audit log.
func actor() string {
	name := "unknown"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	if sudo := os.Getenv("SUDO_USER"); sudo != "" && sudo != name {
		name += " (" + sudo + ")"
	}
	return name[:min(len(name), 256)]
}

// printOne writes a message as JSON.
func printOne(w io.Writer, m proto.Message) error {
	text, err := protojson.MarshalOptions{UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	e := json.NewEncoder(w) // its spaces are the same each time
	e.SetIndent("", "  ")
	return e.Encode(json.RawMessage(text))
}
