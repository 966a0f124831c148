package config

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/bmatcuk/doublestar/v4"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

var errDisallowedImage = errors.New("disallowed image")

// BuildImage returns the image that a job's scripts run in: the job's own (variables replaced), which must be allowed,
// else the default one of the settings. Why it is not allowed goes to trace, in gitlab-runner's words; the error is for the
// job.
func (c *Containers) BuildImage(job runnerapi.Image, expand func(string) string, trace io.Writer) (string, error) {
	byDefault := expand(c.config.Image)
	if job.Name == "" {
		if byDefault == "" {
			return "", &executors.Error{
				Reason: runnerapi.ReasonRunnerSystem,
				Err:    errors.New("no Docker image specified to run the build in: set image in the job, or executors.docker.image in the agent's configuration"),
			}
		}
		return byDefault, nil
	}
	image := expand(job.Name)
	return image, verify(image, "images", c.config.AllowedImages, []string{byDefault}, trace)
}

// ServiceImage returns the image of a job's service (variables replaced), which must be allowed; those of the settings
// always are.
func (c *Containers) ServiceImage(service runnerapi.Image, expand func(string) string, trace io.Writer) (string, error) {
	var own []string
	for _, s := range c.config.Services {
		own = append(own, expand(s.Name))
	}
	image := expand(service.Name)
	return image, verify(image, "services", c.config.AllowedServices, own, trace)
}

func verify(image, option string, patterns, own []string, trace io.Writer) error {
	if allowed(patterns, image) || slices.Contains(own, image) {
		return nil
	}
	fmt.Fprintf(trace, "\nERROR: The %q image is not present on list of allowed %s:\n", image, option)
	for _, pattern := range patterns {
		fmt.Fprintf(trace, "- %s\n", pattern)
	}
	fmt.Fprintf(trace, "\nPlease check runner's allowed_%s configuration\n", option)
	return &executors.Error{Reason: runnerapi.ReasonRunnerSystem, Err: errDisallowedImage}
}

// CheckServices returns an error if a job with so many services, those of the settings included, is over services_limit.
func (c *Containers) CheckServices(count int) error {
	limit := c.config.ServicesLimit
	if limit == nil || *limit < 0 || count <= *limit {
		return nil
	}
	return &executors.Error{
		Reason: runnerapi.ReasonRunnerSystem,
		Err:    fmt.Errorf("too many services requested: %d, only %d allowed", count, *limit),
	}
}

// user is who the build container runs as: the settings' user, else the job's; "" is the image's own.
func (c *Containers) user(job string) (string, error) {
	user := c.config.User
	if user == "" {
		user = job
	}
	list := c.config.AllowedUsers
	if len(list) == 0 && c.config.User != "" {
		list = []string{c.config.User}
	}
	if user == "" || len(list) == 0 || slices.Contains(list, user) {
		return user, nil
	}
	return "", &executors.Error{
		Reason: runnerapi.ReasonRunnerSystem, Err: fmt.Errorf("user %q is not an allowed user: %v", user, list),
	}
}

// allowed says whether a list, of which an empty one allows all, has a pattern for the image.
func allowed(patterns []string, image string) bool {
	return len(patterns) == 0 || slices.ContainsFunc(patterns, func(pattern string) bool { return matches(pattern, image) })
}

func matches(pattern, image string) bool {
	ok, err := doublestar.Match(pattern, image)
	return ok && err == nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
