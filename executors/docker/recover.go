package docker

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/switchyard-ci/switchyard/executors"
)

// labelShared says on the helper container that builds are in a folder of the engine's host.
const labelShared = labelPrefix + "builds.shared"

// errIncomplete is why an environment cannot be used that was half made, or half removed, when the agent was killed.
var errIncomplete = errors.New("not all of the job's containers are there: they were being made or removed when the agent ended")

// Recover takes up the containers of a job that an earlier process of the agent has made, complete or not.
func (e *Executor) Recover(ctx context.Context, spec executors.Spec) (executors.Environment, error) {
	self, err := e.identity()
	if err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	found, err := e.list(ctx, self, spec.Name)
	if err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	b := found[spec.Name]
	if b == nil {
		return nil, executors.ErrNotFound
	}
	v := newEnvironment(e, self, spec.Name)
	network := ""
	if len(b.networks) > 0 {
		v.network, network = b.networks[0], networkName(objectName(self, spec.Name))
	}
	v.volumes = b.volumes
	v.place = e.placeOf(self, spec.Name, b.shared, network)
	e.watcher.join(ctx, v)
	incomplete := false
	for id, c := range b.containers {
		switch c.kind {
		case kindHelper:
			v.setHelper(id)
			incomplete = incomplete || c.fresh
		case kindBuild:
			v.setBuild(id)
			incomplete = incomplete || c.fresh
		default:
			v.others = append(v.others, id)
		}
	}
	slices.Sort(v.others)
	if v.helper == "" || v.build == "" || incomplete {
		v.end(errIncomplete)
	}
	v.look(ctx)
	return v, nil
}
