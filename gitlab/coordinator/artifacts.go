package coordinator

import (
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/artifacts"
)

// uploads are what a job has uploaded.
type uploads struct {
	list []artifacts.Artifact // in the order of arrival, one of each type
	// expireAt is when the last upload expires: GitLab takes it for all of the job's artifacts. Zero: never.
	expireAt time.Time
	dotenv   []ciconfig.Variable // of a dotenv report
}

// find returns the artifact of a type, or nil.
func (u *uploads) find(kind string) *artifacts.Artifact {
	for i := range u.list {
		if u.list[i].Type == kind {
			return &u.list[i]
		}
	}
	return nil
}

func (u *uploads) expired(now time.Time) bool { return !u.expireAt.IsZero() && !now.Before(u.expireAt) }

// addArtifact keeps an upload and lets it go when its time is over. mu is held.
func (c *Coordinator) addArtifact(j *job, a artifacts.Artifact, dotenv []ciconfig.Variable) {
	j.uploads.list = append(j.uploads.list, a)
	j.uploads.expireAt = a.ExpiresAt
	j.uploads.dotenv = append(j.uploads.dotenv, dotenv...)
	if !a.ExpiresAt.IsZero() {
		c.at(a.ExpiresAt, func(now time.Time) { c.expireArtifacts(j, now) })
	}
}

// expireArtifacts drops a job's artifacts whose time is over, unless its pipeline is the latest of its ref: then they are
// kept until a newer one succeeds. mu is held.
func (c *Coordinator) expireArtifacts(j *job, now time.Time) {
	if j.pipe.locked {
		return
	}
	var paths []string
	j.uploads.list = slices.DeleteFunc(j.uploads.list, func(a artifacts.Artifact) bool {
		if !a.Expired(now) {
			return false
		}
		paths = append(paths, a.Path)
		return true
	})
	c.removeLater(paths)
}

// removeLater lets files be removed while no lock is held. mu is held.
func (c *Coordinator) removeLater(paths []string) {
	if len(paths) == 0 {
		return
	}
	c.doomed = append(c.doomed, paths...)
	select {
	case c.doom <- struct{}{}:
	default:
	}
}

// runRemover removes files that removeLater has been given.
func (c *Coordinator) runRemover() {
	for {
		select {
		case <-c.ctx.Done():
			return
		case <-c.doom:
		}
		c.mu.Lock()
		paths := c.doomed
		c.doomed = nil
		c.mu.Unlock()
		if err := c.store.Remove(paths...); err != nil {
			c.log.Warn("an expired artifact stays", "error", err)
		}
	}
}

// lockArtifacts keeps the artifacts of a new pipeline (keep_latest_artifact). mu is held.
func (run *pipelineRun) lockArtifacts() {
	if run.project.NoKeepLatestArtifacts {
		return
	}
	run.locked = true
	ref := run.fullRef()
	run.project.lockedRuns[ref] = append(run.project.lockedRuns[ref], run)
}

// unlockOlder ends that for the pipelines of a ref that are older than one that has succeeded
// (Ci::Refs::UnlockPreviousPipelinesWorker). mu is held.
func (c *Coordinator) unlockOlder(newer *pipelineRun, now time.Time) {
	runs := newer.project.lockedRuns[newer.fullRef()]
	newer.project.lockedRuns[newer.fullRef()] = slices.DeleteFunc(runs, func(run *pipelineRun) bool {
		if run.id >= newer.id {
			return false
		}
		run.locked = false
		for _, j := range run.jobs {
			c.expireArtifacts(j, now)
		}
		return true
	})
}

// archive is what the jobs after this one can download; nil if there is nothing or its time is over.
func (j *job) archive(now time.Time) *artifacts.Artifact {
	if j.uploads.expired(now) && !j.pipe.locked {
		return nil
	}
	return j.uploads.find(artifacts.Archive)
}

// validDependency says whether jobs after this one may run: what they expect of it must not have gone.
func (j *job) validDependency(now time.Time) bool {
	return !j.erased && (!j.uploads.expired(now) || j.pipe.locked)
}

// dependencies are the jobs whose artifacts and dotenv variables a job gets (Ci::BuildDependencies): those that it needs
// with artifacts, or all of the earlier stages, of these the ones that `dependencies` names. mu is held.
func (j *job) dependencies() []*job {
	run, only := j.pipe, j.def.Dependencies
	if only != nil && len(only) == 0 {
		return nil
	}
	var candidates []*job
	if j.def.NeedsDeclared {
		for _, n := range j.def.Needs {
			if at, ok := run.byName[n.Job]; ok && n.Artifacts {
				candidates = append(candidates, run.current[at])
			}
		}
		slices.SortFunc(candidates, func(a, b *job) int { return a.index - b.index })
	} else {
		candidates = run.current[:run.stageStart[j.def.Stage]]
	}
	if only == nil {
		return candidates
	}
	var named []*job
	for _, d := range candidates {
		if slices.Contains(only, d.def.Name) {
			named = append(named, d)
		}
	}
	return named
}

// Artifact is a file that a job has uploaded.
type Artifact = artifacts.Artifact

// Artifacts lists what a job has uploaded and what has not expired, in the order of arrival.
func (c *Coordinator) Artifacts(jobID int64) ([]Artifact, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	j := c.jobs[jobID]
	if j == nil {
		return nil, fmt.Errorf("job %d: %w", jobID, ErrNotFound)
	}
	return slices.Clone(j.uploads.list), nil
}

// OpenArtifact opens an artifact by its type ("archive", "junit"); ErrNotFound is in the chain if there is none. The
// caller closes the file.
func (c *Coordinator) OpenArtifact(jobID int64, kind string) (*os.File, Artifact, error) {
	c.mu.Lock()
	j := c.jobs[jobID]
	var found *Artifact
	if j != nil {
		found = j.uploads.find(kind)
	}
	if found == nil {
		c.mu.Unlock()
		return nil, Artifact{}, fmt.Errorf("job %d, artifact %s: %w", jobID, kind, ErrNotFound)
	}
	a := *found
	c.mu.Unlock()
	f, err := c.store.Open(&a)
	return f, a, err
}

// ArtifactEntries lists what is in a job's archive.
func (c *Coordinator) ArtifactEntries(jobID int64) ([]artifacts.Entry, error) {
	f, a, err := c.OpenArtifact(jobID, artifacts.Archive)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	return artifacts.Entries(f, a.Size)
}
