//go:build unix

// Package artifacts is the bodies of the stages download_artifacts and upload_artifacts: what a job leaves for GitLab and
// what it gets of the jobs before it.
//
// The requests, what their answers mean and how often they are made are gitlab-runner's (commands/helpers/artifacts_*.go,
// network/gitlab.go). Files are packed while they are uploaded: no temporary file, and little memory whatever the size.
// The job's token goes to GitLab only, never to the object store that GitLab redirects to.
package artifacts

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/archive"
	"github.com/switchyard-ci/switchyard/job/transfer"
)

const (
	defaultTimeout         = time.Hour
	defaultResponseTimeout = 10 * time.Minute
	apiPath                = "/api/v4/"
	tokenHeader            = "JOB-TOKEN" // #nosec G101 -- the name of a header
)

// Stage is what both stages need to know. Its functions are called by one goroutine at a time, and only until the method
// returns that calls them.
type Stage struct {
	// ProjectDir is the project folder, TempDir one beside it for files that are removed again; it is made if it is missing.
	ProjectDir, TempDir string
	// ServerURL is GitLab's address as the runner is configured with it.
	ServerURL string
	// CA is PEM that is trusted in addition to the system's certificates; it may be empty.
	CA        string
	UserAgent string
	// JobID and Token are the running job's.
	JobID int64
	Token string

	// Expand replaces references to variables, Value returns one's value or "", Flag says whether a feature flag is on.
	Expand func(text string) (string, error)
	Value  func(key string) string
	Flag   func(name string) bool
	// Git lists untracked files, see archive.Wanted; nil if there is no git.
	Git func(ctx context.Context) ([]byte, error)
	// Provenance is what RUNNER_GENERATE_ARTIFACTS_METADATA needs.
	Provenance Provenance

	// UploadTimeout is that of one try, ResponseTimeout how long an answer may take after what was sent; 0 is 1 h and 10 min.
	UploadTimeout, ResponseTimeout time.Duration
	// Lines is where the words for the trace go.
	Lines transfer.Lines

	wait func(context.Context, time.Duration) error // of tests
}

// What errors of Upload and Download satisfy with errors.Is, besides context.Cause(ctx) if ctx ended. gitlab-runner fails
// the job as if its script had failed with exit code 1 for each of them; after a download it may try the stage again
// (ARTIFACT_DOWNLOAD_ATTEMPTS).
var (
	// ErrPermission: GitLab, or the object store, answered 401 or 403. More tries are of no use.
	ErrPermission = errors.New("permission denied")
	// ErrNotFound: there are no such artifacts (404), for example because they expired.
	ErrNotFound = errors.New("file does not exist")
	// ErrTooLarge: the artifacts are larger than GitLab's settings allow (413).
	ErrTooLarge = errors.New("too large")
	// ErrUnavailable: GitLab could not be reached, or kept failing.
	ErrUnavailable = errors.New("GitLab did not take or give the artifacts")
	// ErrConfiguration: the payload or the runner's settings cannot be used.
	ErrConfiguration = errors.New("wrong configuration")
	// ErrLocal: files could not be read, packed, kept or unpacked. If an archive was refused the error satisfies
	// archive.ErrHostile too.
	ErrLocal = errors.New("the files could not be handled")
)

// Uploads says whether Upload would do anything.
func Uploads(list []runnerapi.Artifact, jobSucceeded bool) bool {
	return slices.ContainsFunc(list, func(a runnerapi.Artifact) bool { return hasContent(a) && wanted(a.When, jobSucceeded) })
}

// Downloads says whether Download would do anything.
func Downloads(list []runnerapi.Dependency) bool {
	return slices.ContainsFunc(list, func(d runnerapi.Dependency) bool { return d.ArtifactsFile.Filename != "" })
}

func hasContent(a runnerapi.Artifact) bool { return len(a.Paths) > 0 || a.Untracked }

// wanted says whether something with this `when` is kept of a job that ended so.
func wanted(when string, jobSucceeded bool) bool {
	switch when {
	case "", "on_success":
		return jobSucceeded
	case "on_failure":
		return !jobSucceeded
	}
	return when == "always"
}

// run is one stage while it runs.
type run struct {
	*Stage
	transfer.Lines
	client *transfer.Client
	root   *os.Root
	base   *url.URL // with the path ".../api/v4/"
	meter  time.Duration
}

// start prepares a stage; stop ends it.
func (s *Stage) start() (*run, error) {
	r := &run{Stage: s, Lines: s.Lines.Serial()}
	var err error
	if r.base, err = baseURL(s.ServerURL); err != nil {
		return nil, fmt.Errorf("%w: the runner's URL of GitLab: %w", ErrConfiguration, err)
	}
	response := s.ResponseTimeout
	if response <= 0 {
		response = defaultResponseTimeout
	}
	r.client, err = transfer.New(transfer.Options{CA: s.CA, Value: s.Value, UserAgent: s.UserAgent, ResponseHeader: response})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfiguration, err)
	}
	if r.root, err = os.OpenRoot(s.ProjectDir); err != nil {
		return nil, fmt.Errorf("%w: open the project folder: %w", ErrLocal, err)
	}
	if v := s.Value("TRANSFER_METER_FREQUENCY"); v != "" {
		var ok bool
		if r.meter, ok = transfer.Frequency(v); !ok {
			r.Warn(fmt.Sprintf("TRANSFER_METER_FREQUENCY: expected a duration such as 5s, got %q", v))
		}
	}
	return r, nil
}

func (r *run) stop() {
	r.client.Close()
	_ = r.root.Close()
}

// baseURL makes the API's address of GitLab's, by gitlab-runner's rules: slashes at the end are cut, then "/ci".
func baseURL(raw string) (*url.URL, error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil, u.Hostname() == "":
		return nil, errors.New("it is no URL with a host; give it as in https://gitlab.example.com")
	case u.Scheme != "http" && u.Scheme != "https":
		return nil, errors.New("it must begin with https:// or http://")
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: strings.TrimSuffix(strings.TrimRight(u.Path, "/"), "/ci") + apiPath}, nil
}

// address is that of a job's artifacts.
func (r *run) address(base *url.URL, job int64, query url.Values) string {
	u := *base
	u.Path += "jobs/" + strconv.FormatInt(job, 10) + "/artifacts"
	u.RawQuery = query.Encode()
	return u.String()
}

// fields are what gitlab-runner has at the end of its lines, in the order of their names.
func fields(pairs ...string) string {
	var b strings.Builder
	for i := 0; i < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			b.WriteString(" " + pairs[i] + "=" + pairs[i+1])
		}
	}
	if b.Len() > 0 {
		return " " + b.String()
	}
	return ""
}

func (r *run) say(messages []archive.Message) {
	for _, m := range messages {
		if m.Warning {
			r.Warn(m.Text)
		} else {
			r.Say(m.Text)
		}
	}
}

func (s *Stage) expandAll(what string, texts []string) ([]string, error) {
	expanded := make([]string, len(texts))
	for i, t := range texts {
		var err error
		if expanded[i], err = s.Expand(t); err != nil {
			return nil, fmt.Errorf("%w: artifacts: %s %q: %w", ErrConfiguration, what, t, err)
		}
	}
	return expanded, nil
}
