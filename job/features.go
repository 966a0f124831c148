package job

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// unsupported names the parts of a payload that ask for what is not implemented. A job with any is refused before its
// first command: nothing is ignored.
func unsupported(p *runnerapi.Job) error {
	var names []string
	has := func(name string, present bool) {
		if present {
			names = append(names, name)
		}
	}
	has("secrets", len(p.Secrets) > 0)
	has("suspend_options", suspends(p.SuspendOptions))
	has("run", strings.TrimSpace(p.Run) != "")
	has("inputs", asked(p.Inputs))
	for _, h := range p.Hooks {
		if len(h.Script) > 0 && h.Name != hookBefore && h.Name != hookAfter {
			has("hooks ("+h.Name+")", true)
		}
	}
	if len(names) == 0 {
		return unsupportedOptions(p)
	}
	return &failure{
		reason: runnerapi.ReasonConfiguration,
		message: fmt.Sprintf("the job uses %s, which this runner does not support yet: remove it from the job, or give the job tags of a runner that supports it",
			strings.Join(names, ", ")),
	}
}

// unsupportedOptions is about images, which executors without any do not look at.
func unsupportedOptions(p *runnerapi.Job) error {
	var errs []error
	if p.Image != nil {
		errs = append(errs, p.Image.UnsupportedOptions())
	}
	for _, s := range p.Services {
		errs = append(errs, s.UnsupportedOptions())
	}
	if err := errors.Join(errs...); err != nil {
		return &failure{reason: runnerapi.ReasonRunnerSystem, exitCode: runnerapi.ExitCodeUnsupportedOptions, message: err.Error()}
	}
	return nil
}

// The hooks that are run.
const (
	hookBefore = "pre_get_sources_script"
	hookAfter  = "post_get_sources_script"
)

// asked says whether a part of the payload asks for anything.
func asked(raw json.RawMessage) bool {
	switch string(bytes.TrimSpace(raw)) {
	case "", "null", "[]", "{}":
		return false
	}
	return true
}

// suspends says whether the environment is to be kept after the job.
func suspends(raw json.RawMessage) bool {
	var o struct {
		OnSuccess bool `json:"suspend_on_success"`
		OnFailure bool `json:"suspend_on_failure"`
	}
	if !asked(raw) {
		return false
	}
	return json.Unmarshal(raw, &o) != nil || o.OnSuccess || o.OnFailure
}
