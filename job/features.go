package job

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// unsupported names the parts of a payload that ask for what is not implemented. A job with any is refused before its
// first command: nothing is ignored.
func unsupported(p *runnerapi.Job, s settings) error {
	var names []string
	has := func(name string, present bool) {
		if present {
			names = append(names, name)
		}
	}
	has("image", p.Image != nil && p.Image.Name != "")
	has("services", len(p.Services) > 0)
	has("artifacts", len(p.Artifacts) > 0)
	has("cache", len(p.Cache) > 0)
	for _, d := range p.Dependencies {
		if d.ArtifactsFile.Filename != "" {
			has(fmt.Sprintf("dependencies (artifacts of %q)", d.Name), true)
			break
		}
	}
	has("secrets", len(p.Secrets) > 0)
	has("run", strings.TrimSpace(p.Run) != "")
	inputs := bytes.TrimSpace(p.Inputs)
	has("inputs", len(inputs) > 0 && string(inputs) != "null" && string(inputs) != "[]" && string(inputs) != "{}")
	for _, h := range p.Hooks {
		if len(h.Script) > 0 && h.Name != hookBefore && h.Name != hookAfter {
			has("hooks ("+h.Name+")", true)
		}
	}
	has("GIT_SUBMODULE_STRATEGY="+s.submodules, s.submodules != "")
	if len(names) == 0 {
		return nil
	}
	return &failure{
		reason: runnerapi.ReasonConfiguration,
		message: fmt.Sprintf("the job uses %s, which this runner does not support yet: remove it from the job, or give the job tags of a runner that supports it",
			strings.Join(names, ", ")),
	}
}

// The hooks that are run.
const (
	hookBefore = "pre_get_sources_script"
	hookAfter  = "post_get_sources_script"
)
