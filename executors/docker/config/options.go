package config

import (
	"encoding/json"
	"fmt"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Options are what `image:docker` and `services:docker` may say. Their variables are not replaced.
type Options struct {
	Platform string
	User     string
}

// ImageOptions reads the options of a job's image or service. Options that are not known fail the job, in gitlab-runner's
// words.
func ImageOptions(image runnerapi.Image) (Options, error) {
	if err := image.UnsupportedOptions(); err != nil {
		return Options{}, optionError(err)
	}
	var fields map[string]json.RawMessage
	if raw := image.ExecutorOpts["docker"]; len(raw) > 0 {
		if err := json.Unmarshal(raw, &fields); err != nil {
			return Options{}, optionError(fmt.Errorf("executor_opts:docker of the image %q: %w", image.Name, err))
		}
	}
	var o Options
	for key, target := range map[string]*string{"platform": &o.Platform, "user": &o.User} {
		text, err := textOption(fields[key], key == "user")
		if err != nil {
			return Options{}, optionError(fmt.Errorf("docker:%s of the image %q: %w", key, image.Name, err))
		}
		*target = text
	}
	return o, nil
}

// textOption reads text, or a whole number where one may stand for it.
func textOption(raw json.RawMessage, number bool) (string, error) {
	if len(raw) == 0 {
		return "", nil
	}
	var text string
	err := json.Unmarshal(raw, &text)
	if err == nil || !number {
		return text, err
	}
	var n int64
	if json.Unmarshal(raw, &n) != nil {
		return "", err
	}
	return fmt.Sprint(n), nil
}

func optionError(err error) error {
	return &executors.Error{Reason: runnerapi.ReasonRunnerSystem, ExitCode: runnerapi.ExitCodeUnsupportedOptions, Err: err}
}
