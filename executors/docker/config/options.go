package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Options are what `image:docker` and `services:docker` may say. Their variables are not replaced.
type Options struct {
	Platform string
	User     string
}

// knownOptions are those of each executor, of which only docker's are used here.
var knownOptions = map[string][]string{"docker": {"platform", "user"}, "kubernetes": {"user"}}

// ImageOptions reads the options of a job's image or service. Options that are not known fail the job, in gitlab-runner's
// words.
func ImageOptions(image runnerapi.Image) (Options, error) {
	errs := []error{unknownOptions(image.ExecutorOpts, sortedKeys(knownOptions), "executor_opts")}
	var o Options
	for _, executor := range sortedKeys(knownOptions) {
		raw := image.ExecutorOpts[executor]
		if len(raw) == 0 {
			continue
		}
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(raw, &fields); err != nil {
			return Options{}, optionError(fmt.Errorf("executor_opts:%s of the image %q: %w", executor, image.Name, err))
		}
		errs = append(errs, unknownOptions(fields, knownOptions[executor], executor+" executor"))
		if executor != "docker" {
			continue
		}
		for key, target := range map[string]*string{"platform": &o.Platform, "user": &o.User} {
			text, err := textOption(fields[key], key == "user")
			if err != nil {
				return Options{}, optionError(fmt.Errorf("docker:%s of the image %q: %w", key, image.Name, err))
			}
			*target = text
		}
	}
	if err := errors.Join(errs...); err != nil {
		return Options{}, optionError(err)
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

func unknownOptions(fields map[string]json.RawMessage, known []string, of string) error {
	var unknown []string
	for _, key := range sortedKeys(fields) {
		if !slices.Contains(known, key) {
			unknown = append(unknown, key)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	return fmt.Errorf("Unsupported \"image\" options %v for %q; supported options are %v", unknown, of, known) // gitlab-runner's words, for users
}

func optionError(err error) error {
	return &executors.Error{Reason: runnerapi.ReasonRunnerSystem, Err: err}
}
