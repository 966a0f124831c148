package docker

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/moby/moby/client"

	"github.com/switchyard-ci/switchyard/executors"
)

// Labels on all that is made. Those of one job have labelName; what jobs share has not.
const (
	labelPrefix = "ci.switchyard."
	labelAgent  = labelPrefix + "agent"
	labelName   = labelPrefix + "name"
	labelType   = labelPrefix + "type"
)

// Values of labelType.
const (
	kindHelper  = "helper"
	kindBuild   = "build"
	kindService = "service"
	kindInstall = "install"
	kindNetwork = "network"
	kindSocket  = "socket"
	kindBuilds  = "builds"
	kindCache   = "cache"
	kindBinary  = "binary"
)

// jobLabels are those of all that belongs to one job.
func (e *Executor) jobLabels(self *identity, spec executors.Spec, get func(string) string) map[string]string {
	labels := e.sharedLabels(self, spec)
	j := spec.Job
	maps.Copy(labels, map[string]string{
		labelName:                      spec.Name,
		labelPrefix + "job.id":         strconv.FormatInt(j.ID, 10),
		labelPrefix + "job.url":        get("CI_JOB_URL"),
		labelPrefix + "job.sha":        j.GitInfo.SHA,
		labelPrefix + "job.before_sha": j.GitInfo.BeforeSHA,
		labelPrefix + "job.ref":        j.GitInfo.Ref,
		labelPrefix + "job.timeout":    spec.Timeout.String(),
		labelPrefix + "pipeline.id":    get("CI_PIPELINE_ID"),
	})
	return labels
}

// sharedLabels are those of volumes that jobs share.
func (e *Executor) sharedLabels(self *identity, spec executors.Spec) map[string]string {
	return map[string]string{
		labelAgent:                       self.id(),
		labelPrefix + "managed":          "true",
		labelPrefix + "project.id":       strconv.FormatInt(spec.Job.JobInfo.ProjectID, 10),
		labelPrefix + "runner.id":        spec.Runner.ShortToken,
		labelPrefix + "runner.local_id":  strconv.FormatInt(spec.Runner.ID, 10),
		labelPrefix + "runner.system_id": spec.Runner.SystemID,
	}
}

func with(labels map[string]string, kind string) map[string]string {
	labels = maps.Clone(labels)
	labels[labelType] = kind
	return labels
}

// mine filters by this agent and, unless name is empty, by one environment.
func mine(self *identity, name string) client.Filters {
	f := make(client.Filters).Add("label", labelAgent+"="+self.id())
	if name != "" {
		return f.Add("label", labelName+"="+name)
	}
	return f.Add("label", labelName)
}

// slotName is gitlab-runner's name for the project's slot that a job runs in. It is a hostname and part of volumes' names.
func slotName(spec executors.Spec) string {
	return fmt.Sprintf("runner-%s-project-%d-concurrent-%d", hostLabel(spec.Runner.ShortToken), spec.Job.JobInfo.ProjectID, spec.ConcurrentProjectID)
}

// volumeName is the name of the volume for a path that jobs of one slot share. Runners of other agents on the same engine
// have others, as do protected refs.
func volumeName(self *identity, spec executors.Spec, protected bool, target string) string {
	name := slotName(spec)
	sum := sha256.Sum256([]byte(strings.Join([]string{self.id(), spec.Runner.SystemID, spec.Runner.ShortToken, target}, "\x00")))
	if protected {
		name += "-protected"
	}
	return name + "-cache-" + hex.EncodeToString(sum[:12])
}

// hostLabel makes text fit for hostnames and names of containers and bounds it.
func hostLabel(text string) string {
	const limit = 16
	text = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9', r == '-':
			return r
		case r >= 'A' && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, text)
	return text[:min(len(text), limit)]
}
