package pull

import (
	"strings"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// What engines and registries say, in lower case, and whose failure it is. The first match counts; the list is
// gitlab-runner's and a few more words for the same things.
var causes = []struct {
	reason runnerapi.FailureReason
	words  []string
}{
	{runnerapi.ReasonExternalDependency, []string{
		"dial tcp", "connection refused", "no such host", "i/o timeout", "tls handshake", "client.timeout", "request canceled",
		"connection reset", "unexpected eof", "\": eof", "502 bad gateway", "503 service unavailable", "504 gateway time",
	}},
	{runnerapi.ReasonConfiguration, []string{
		"not found", "manifest unknown", "no matching manifest", "pull access denied", "access to the resource is denied",
		"no basic auth credentials", "repository does not exist or may require", "unauthorized", "authentication required",
	}},
}

// Classify returns why a pull failed, by what the engine said: the network or the registry's service, the job's or the
// runner's configuration, or image_pull_failure if it is neither.
func Classify(message string) runnerapi.FailureReason {
	lower := strings.ToLower(message)
	for _, cause := range causes {
		for _, words := range cause.words {
			if strings.Contains(lower, words) {
				return cause.reason
			}
		}
	}
	return runnerapi.ReasonImagePull
}
