package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
)

// yard is everything that the demo starts.
type yard struct {
	stage *stage
	bin   string // of the programs
	dir   string // of everything that is made

	gitlab  *coordinator.Coordinator
	http    *http.Server
	serving sync.WaitGroup
	url     string
	token   string // the runner's

	projects  []*project
	pipelines []coordinator.Pipeline

	plane   *process
	address string
	agents  []*process
}

// agentNames are those of the two agents; a job's output says on which it was.
var agentNames = []string{"north", "south"}

const slots = 2

func (y *yard) program(name string) string { return filepath.Join(y.bin, name) }

// startGitLab makes three repositories and a GitLab for them.
func (y *yard) startGitLab(ctx context.Context) error {
	for _, name := range []string{"switchyard", "switchyard-agent", "switchyard-job"} {
		if _, err := exec.LookPath(y.program(name)); err != nil {
			return fmt.Errorf("%w: `make build` makes it", err)
		}
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for the embedded GitLab: %w", err)
	}
	y.url = "http://" + listener.Addr().String()
	y.gitlab, err = coordinator.New(coordinator.Options{URL: y.url, Dir: y.dir, TraceInterval: time.Second})
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	y.http = &http.Server{Handler: y.gitlab.Handler(), ReadHeaderTimeout: time.Minute}
	y.serving.Go(func() { _ = y.http.Serve(listener) }) // what goes wrong is seen by those who ask it
	y.stage.fact("it answers at %s", y.url)

	y.projects = projects()
	for _, p := range y.projects {
		repository := filepath.Join(y.dir, "repositories", p.folder)
		if err := p.make(ctx, repository); err != nil {
			return err
		}
		added, err := y.gitlab.AddProject(ctx, coordinator.ProjectOptions{Path: p.path, RepoDir: repository})
		if err != nil {
			return err
		}
		p.id = added.ID
		y.stage.fact("%s: %s", y.stage.paint(p.color, p.path), p.about)
	}
	runner, err := y.gitlab.AddRunner(coordinator.RunnerOptions{Description: "everything", RunUntagged: true})
	if err != nil {
		return err
	}
	y.token = runner.Token
	return nil
}

// startControlPlane writes its configuration and starts it.
func (y *yard) startControlPlane(ctx context.Context) error {
	config := fmt.Sprintf("listen: 127.0.0.1:0\ndata: ./data\nrunners:\n  - name: everything\n    url: %s\n    token_file: ./token\n    executor: shell\n", y.url)
	for name, text := range map[string]string{"token": y.token + "\n", "switchyard.yaml": config} {
		if err := os.WriteFile(filepath.Join(y.dir, name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("configure the control plane: %w", err)
		}
	}
	for line := range strings.Lines(config) {
		y.stage.say("    %s", y.stage.paint(dim, strings.TrimSuffix(line, "\n")))
	}
	file := filepath.Join(y.dir, "switchyard.yaml")
	y.stage.command("switchyard", "serve", "-c", "switchyard.yaml")
	var err error
	if y.plane, err = launch("switchyard serve", y.program("switchyard"), nil, "serve", "-c", file, "--log-format", "json"); err != nil {
		return err
	}
	record, err := y.plane.await(ctx, "serving")
	if err != nil {
		return err
	}
	y.address, _ = record["listen"].(string)
	y.stage.fact("it polls GitLab, and waits for agents at %s (process %d)", y.address, y.plane.cmd.Process.Pid)
	return nil
}

// startAgents gets a join token for each agent and starts it.
func (y *yard) startAgents(ctx context.Context) error {
	config := filepath.Join(y.dir, "switchyard.yaml")
	y.stage.command("switchyard", "agents", "token", "-c", "switchyard.yaml", "--uses", "2", ">", "join-token")
	ask := exec.CommandContext(ctx, y.program("switchyard"), "agents", "token", "-c", config, "--uses", fmt.Sprint(len(agentNames)))
	var complaint strings.Builder
	ask.Stderr = &complaint
	token, err := ask.Output()
	if err != nil {
		return fmt.Errorf("get a join token: %w: %s", err, complaint.String())
	}
	file := filepath.Join(y.dir, "join-token")
	if err := os.WriteFile(file, token, 0o600); err != nil {
		return fmt.Errorf("keep the join token: %w", err)
	}
	for _, name := range agentNames {
		y.stage.command("switchyard-agent", "--server", y.address, "--token-file", "join-token", "--name", name, "--slots", fmt.Sprint(slots))
		agent, err := launch("agent "+name, y.program("switchyard-agent"), []string{"YARD=" + name},
			"--server", y.address, "--token-file", file, "--name", name, "--slots", fmt.Sprint(slots),
			"--data", filepath.Join(y.dir, "agents", name), "--log-format", "json")
		if err != nil {
			return err
		}
		y.agents = append(y.agents, agent)
	}
	for i, agent := range y.agents {
		if _, err := agent.await(ctx, "connected"); err != nil {
			return err
		}
		y.stage.fact("%s has enrolled and holds a session (process %d)", agentNames[i], agent.cmd.Process.Pid)
	}
	return nil
}

// stop ends the processes in order and looks for what is left.
func (y *yard) stop(context.Context) error {
	for i, agent := range y.agents {
		if err := agent.stop(false); err != nil {
			return err
		}
		y.stage.fact("%s has finished its work and left", agentNames[i])
	}
	y.agents = nil
	if err := y.plane.stop(false); err != nil {
		return err
	}
	y.plane = nil
	y.stage.fact("the control plane has stopped")
	left, err := jobProcesses(y.dir)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		return fmt.Errorf("processes of jobs are left: %v", left)
	}
	y.stage.fact("no process is left")
	return nil
}

// complain shows the ends of all logs.
func (y *yard) complain() {
	for _, p := range append([]*process{y.plane}, y.agents...) {
		if p == nil {
			continue
		}
		y.stage.say("\n%s", y.stage.paint(red, "The log of "+p.name+":"))
		for _, line := range p.lines() {
			y.stage.say("  %s", line)
		}
	}
}

// close ends what still runs and removes everything. After stop there is nothing to end.
func (y *yard) close() error {
	for _, p := range append(y.agents, y.plane) {
		if p != nil {
			_ = p.stop(true) // the demo has failed already
		}
	}
	left, err := jobProcesses(y.dir)
	errs := []error{err}
	for _, p := range left { // only if an agent had to be killed
		errs = append(errs, p.kill())
	}
	if y.http != nil {
		errs = append(errs, y.http.Close())
		y.serving.Wait()
	}
	if y.gitlab != nil {
		errs = append(errs, y.gitlab.Close())
	}
	return errors.Join(append(errs, os.RemoveAll(y.dir))...)
}
