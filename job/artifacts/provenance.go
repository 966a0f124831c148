//go:build unix

package artifacts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/archive"
)

// Provenance is what a provenance statement says about the job, see RUNNER_GENERATE_ARTIFACTS_METADATA.
type Provenance struct {
	RunnerID                      int64
	RunnerName, Executor, JobName string
	// RepoURL may have credentials and .git at its end; neither is shown.
	RepoURL, SHA string
	// StartedAt is when the job began.
	StartedAt time.Time
	// Parameters are the names of the job's variables.
	Parameters []string
	// Version is this program's.
	Version string
}

const (
	provenanceVersion = "v1"
	// buildType names the description of what the fields mean; they are gitlab-runner's.
	buildType = "https://gitlab.com/gitlab-org/gitlab-runner/-/blob/main/PROVENANCE.md"
)

// statement is an in-toto statement with a SLSA provenance of version 1, as gitlab-runner writes it.
type statement struct {
	Type          string     `json:"_type"`
	Subject       []resource `json:"subject"`
	PredicateType string     `json:"predicateType"`
	Predicate     predicate  `json:"predicate"`
}

type resource struct {
	Name   string            `json:"name,omitempty"`
	URI    string            `json:"uri,omitempty"`
	Digest map[string]string `json:"digest"`
}

type predicate struct {
	BuildDefinition struct {
		BuildType            string            `json:"buildType"`
		ExternalParameters   map[string]string `json:"externalParameters"`
		InternalParameters   map[string]string `json:"internalParameters"`
		ResolvedDependencies []resource        `json:"resolvedDependencies"`
	} `json:"buildDefinition"`
	RunDetails struct {
		Builder struct {
			ID      string            `json:"id"`
			Version map[string]string `json:"version"`
		} `json:"builder"`
		Metadata struct {
			InvocationID string `json:"invocationId"`
			StartedOn    string `json:"startedOn"`
			FinishedOn   string `json:"finishedOn"`
		} `json:"metadata"`
	} `json:"runDetails"`
}

// provenanceWanted says whether an upload gets a statement: it is one more file in it, so only an archive can have it.
func (r *run) provenanceWanted(a runnerapi.Artifact) bool {
	on, _ := strconv.ParseBool(r.Value("RUNNER_GENERATE_ARTIFACTS_METADATA"))
	return on && archive.Format(a.Format) == archive.Zip
}

// addProvenance writes <name>-metadata.json into the project folder and returns the names with it.
func (r *run) addProvenance(ctx context.Context, name string, names, exclude []string) ([]string, error) {
	r.Say("Generating artifacts statement")
	if v := r.Value("SLSA_PROVENANCE_SCHEMA_VERSION"); v != "" && v != provenanceVersion {
		r.Warn(fmt.Sprintf("Unknown SLSA provenance version %s, defaulting to %s", v, provenanceVersion))
	}
	finished := time.Now()
	subjects, err := r.subjects(ctx, names)
	if err != nil {
		return nil, err
	}
	text, err := json.MarshalIndent(r.statement(subjects, finished), "", " ")
	if err != nil {
		return nil, err
	}
	file := name + "-metadata.json"
	// A link that the script left must not be followed.
	if err := r.root.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	f, err := r.root.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	// exclude is about this file, too.
	selected, err := archive.Select(ctx, r.ProjectDir, archive.Wanted{Paths: []string{literal(file)}, Exclude: exclude})
	if err != nil {
		return nil, err
	}
	all := append(slices.Clone(names), selected.Names...)
	slices.Sort(all)
	return slices.Compact(all), nil
}

// literal is a pattern that means a name.
func literal(name string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `{`, `\{`).Replace(name)
}

// subjects are the regular files with their digests.
func (r *run) subjects(ctx context.Context, names []string) ([]resource, error) {
	list := make([]resource, 0, len(names))
	buffer := make([]byte, 256<<10)
	hash := sha256.New()
	for _, name := range names {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		info, err := r.root.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
			continue
		}
		if err != nil {
			return nil, err
		}
		f, err := r.root.Open(name)
		if err != nil {
			return nil, err
		}
		hash.Reset()
		_, err = io.CopyBuffer(struct{ io.Writer }{hash}, struct{ io.Reader }{f}, buffer)
		if err = errors.Join(err, f.Close()); err != nil {
			return nil, fmt.Errorf("digest of %s: %w", name, err)
		}
		list = append(list, resource{Name: name, Digest: map[string]string{"sha256": hex.EncodeToString(hash.Sum(nil))}})
	}
	return list, nil
}

func (r *run) statement(subjects []resource, finished time.Time) statement {
	p := &r.Provenance
	repo := p.RepoURL
	if u, err := url.Parse(repo); err == nil {
		u.User, u.RawQuery, u.Fragment = nil, "", ""
		repo = u.String()
	} else {
		repo = ""
	}
	repo = strings.TrimSuffix(repo, ".git")
	s := statement{Type: "https://in-toto.io/Statement/v0.1", Subject: subjects, PredicateType: "https://slsa.dev/provenance/v1"}
	b := &s.Predicate.BuildDefinition
	b.BuildType = buildType
	b.ExternalParameters = map[string]string{}
	for _, key := range p.Parameters {
		b.ExternalParameters[key] = ""
	}
	b.ExternalParameters["entryPoint"] = p.JobName
	b.ExternalParameters["source"] = repo
	b.InternalParameters = map[string]string{
		"name": p.RunnerName, "executor": p.Executor, "architecture": runtime.GOARCH, "job": strconv.FormatInt(r.JobID, 10),
	}
	b.ResolvedDependencies = []resource{{URI: repo, Digest: map[string]string{"sha256": p.SHA}}}
	d := &s.Predicate.RunDetails
	d.Builder.ID = repo + "/-/runners/" + strconv.FormatInt(p.RunnerID, 10)
	d.Builder.Version = map[string]string{"switchyard": p.Version}
	d.Metadata.InvocationID = strconv.FormatInt(r.JobID, 10)
	d.Metadata.StartedOn = p.StartedAt.UTC().Format(time.RFC3339)
	d.Metadata.FinishedOn = finished.UTC().Format(time.RFC3339)
	return s
}
