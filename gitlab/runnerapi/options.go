package runnerapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
)

// ExitCodeUnsupportedOptions is the exit code of a job that is refused because of its image's or a service's options.
const ExitCodeUnsupportedOptions = 3

// executorOptions are the options of images that GitLab has, by executor.
var executorOptions = map[string][]string{"docker": {"platform", "user"}, "kubernetes": {"user"}}

// UnsupportedOptions returns, in gitlab-runner's words, which of the image's `executor_opts` nobody knows; nil if there is
// none. A job with any is not run, whatever its executor.
func (i Image) UnsupportedOptions() error {
	known := slices.Sorted(maps.Keys(executorOptions))
	errs := []error{unknownOptions(i.ExecutorOpts, known, "executor_opts")}
	for _, executor := range known {
		raw := i.ExecutorOpts[executor]
		if len(raw) == 0 {
			continue
		}
		var options map[string]json.RawMessage
		if err := json.Unmarshal(raw, &options); err != nil {
			return fmt.Errorf("executor_opts:%s of the image %q: %w", executor, i.Name, err)
		}
		errs = append(errs, unknownOptions(options, executorOptions[executor], executor+" executor"))
	}
	return errors.Join(errs...)
}

func unknownOptions(options map[string]json.RawMessage, known []string, of string) error {
	var unknown []string
	for _, key := range slices.Sorted(maps.Keys(options)) {
		if !slices.Contains(known, key) {
			unknown = append(unknown, key)
		}
	}
	if len(unknown) == 0 {
		return nil
	}
	return fmt.Errorf("Unsupported \"image\" options %v for %q; supported options are %v", unknown, of, known) // gitlab-runner's words, for users
}
