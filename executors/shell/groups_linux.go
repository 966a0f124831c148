package shell

import (
	"context"
	"errors"
	"hash/fnv"
	"strconv"

	"github.com/switchyard-ci/switchyard/executors/shell/cgroup"
)

// Limits bound all processes of one job together; see cgroup.Limits.
type Limits = cgroup.Limits

// groups are the control groups of this agent's jobs.
type groups struct{ host *cgroup.Host }

// findGroups finds out how groups are made here. Their names begin with a digest of the jobs' folder, so that two agents
// on one host keep apart.
func findGroups(c Config) (groups, error) {
	ctx, cancel := context.WithTimeout(context.Background(), groupPatience)
	defer cancel()
	h := fnv.New64a()
	_, _ = h.Write([]byte(c.Jobs))
	host, err := cgroup.Find(ctx, "switchyard-"+strconv.FormatUint(h.Sum64(), 36), c.Limits, c.Log)
	return groups{host}, err
}

func (g groups) any() bool { return g.host.Kind() != cgroup.None }

// outlive says whether the jobs' groups outlive the agent's unit.
func (g groups) outlive() bool { return g.host.Kind() == cgroup.Scope }

func (g groups) add(ctx context.Context, name string, pid int) error {
	return g.host.Group(name).Add(ctx, pid)
}

func (g groups) kill(ctx context.Context, name string) error {
	return g.host.Group(name).Kill(ctx, func(ctx context.Context, pid int) error {
		p, ok := readStat(pid)
		if !ok {
			return nil
		}
		return p.wait(ctx)
	})
}

func (g groups) remove(ctx context.Context, name string) error { return g.host.Group(name).Remove(ctx) }

func (g groups) names(ctx context.Context) ([]string, error) { return g.host.Names(ctx) }

// sweep kills and removes the groups of jobs that are not kept.
func (g groups) sweep(ctx context.Context, keep func(name string) bool) error {
	names, err := g.names(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if !keep(name) {
			errs = append(errs, errors.Join(g.kill(ctx, name), g.remove(ctx, name)))
		}
	}
	return errors.Join(errs...)
}

// outOfMemory says whether the kernel killed for lack of memory in a job's group.
func (g groups) outOfMemory(name string) bool { return g.host.Group(name).OutOfMemory() }
