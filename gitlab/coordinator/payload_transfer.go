package coordinator

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/artifacts"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// The parts of a payload about images, artifacts and caches, with the fields that GitLab sends (null where it has
// nothing to say).

type payloadImage struct {
	Name         string          `json:"name"`
	Entrypoint   []string        `json:"entrypoint"`
	Ports        []any           `json:"ports"`
	ExecutorOpts json.RawMessage `json:"executor_opts"`
	PullPolicy   []string        `json:"pull_policy"`
}

type payloadService struct {
	payloadImage
	Alias     *string           `json:"alias"`
	Command   []string          `json:"command"`
	Variables []payloadVariable `json:"variables"`
}

// payloadVariable is a variable of a service.
type payloadVariable struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

type payloadArtifact struct {
	Name      *string  `json:"name"`
	Untracked bool     `json:"untracked,omitempty"`
	Paths     []string `json:"paths"`
	Exclude   []string `json:"exclude,omitempty"`
	When      *string  `json:"when"`
	ExpireIn  *string  `json:"expire_in"`
	Type      string   `json:"artifact_type"`
	Format    string   `json:"artifact_format"`
}

type payloadCache struct {
	Key          string   `json:"key"`
	Untracked    *bool    `json:"untracked"`
	Paths        []string `json:"paths"`
	Policy       string   `json:"policy"`
	When         string   `json:"when"`
	FallbackKeys []string `json:"fallback_keys"`
}

type payloadDependency struct {
	ID            int64                  `json:"id"`
	Name          string                 `json:"name"`
	Token         string                 `json:"token"`
	ArtifactsFile *payloadDependencyFile `json:"artifacts_file,omitempty"`
}

type payloadDependencyFile struct {
	Filename string `json:"filename"`
	Size     int64  `json:"size"`
}

// orNull is a text that may be missing.
func orNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func imageOf(i *ciconfig.Image) *payloadImage {
	if i == nil {
		return nil
	}
	out := &payloadImage{Name: i.Name, Entrypoint: i.Entrypoint, Ports: []any{}, PullPolicy: i.PullPolicy}
	out.ExecutorOpts = executorOpts(i)
	return out
}

// executorOpts has what was written for each kind of executor, {} if nothing was.
func executorOpts(i *ciconfig.Image) json.RawMessage {
	opts := map[string]map[string]string{}
	add := func(executor, key, value string) {
		if value == "" {
			return
		}
		if opts[executor] == nil {
			opts[executor] = map[string]string{}
		}
		opts[executor][key] = value
	}
	if i.Docker != nil {
		add("docker", "platform", i.Docker.Platform)
		add("docker", "user", i.Docker.User)
	}
	if i.Kubernetes != nil {
		add("kubernetes", "user", i.Kubernetes.User)
	}
	text, err := json.Marshal(opts)
	if err != nil { // never: texts only
		return json.RawMessage("{}")
	}
	return text
}

func servicesOf(list []ciconfig.Image) []payloadService {
	out := make([]payloadService, len(list))
	for i := range list {
		s := &list[i]
		out[i] = payloadService{payloadImage: *imageOf(s), Alias: orNull(s.Alias), Command: s.Command, Variables: []payloadVariable{}}
		for _, v := range s.Variables {
			out[i].Variables = append(out[i].Variables, payloadVariable{v.Key, v.Value})
		}
	}
	return out
}

func hooksOf(d *ciconfig.Job) []runnerapi.Hook {
	if d.PreGetSources == nil {
		return []runnerapi.Hook{}
	}
	return []runnerapi.Hook{{Name: "pre_get_sources_script", Script: d.PreGetSources}}
}

// artifactsOf are the uploads that a job has to make (Ci::BuildRunnerPresenter#artifacts): an archive if there are files
// for one, then each report by itself. Nil without the keyword.
func artifactsOf(a *ciconfig.Artifacts) []payloadArtifact {
	if a == nil {
		return nil
	}
	out := make([]payloadArtifact, 0, 1+len(a.Reports))
	if a.Archive() {
		out = append(out, payloadArtifact{
			Name: orNull(a.Name), Untracked: a.Untracked, Paths: a.Paths, Exclude: a.Exclude, When: orNull(a.When),
			ExpireIn: orNull(a.ExpireIn), Type: artifacts.Archive, Format: artifacts.Zip,
		})
	}
	always := "always"
	for _, r := range a.Reports {
		out = append(out, payloadArtifact{
			Name: orNull(artifacts.ReportName(r.Type)), Paths: r.Paths, When: &always, ExpireIn: orNull(a.ExpireIn),
			Type: r.Type, Format: artifacts.FormatOf(r.Type),
		})
	}
	return out
}

// cachesOf are a job's caches with the keys that keep the caches of protected branches from others (Ci::Build#cache).
func cachesOf(run *pipelineRun, list []ciconfig.Cache, index int64) []payloadCache {
	p := run.project
	out := make([]payloadCache, len(list))
	for i := range list {
		cache := &list[i]
		suffix := ""
		if index > 0 {
			suffix = "-" + strconv.FormatInt(index, 10)
		}
		switch {
		case p.SharedCaches:
		case run.protected && !cache.Unprotect:
			suffix += "-protected"
		default:
			suffix += "-non_protected"
		}
		out[i] = payloadCache{
			Key: cache.Key + suffix, Paths: cache.Paths, Policy: cache.Policy, When: cache.When, FallbackKeys: []string{},
		}
		if cache.Untracked {
			out[i].Untracked = &cache.Untracked
		}
		for _, key := range cache.FallbackKeys {
			out[i].FallbackKeys = append(out[i].FallbackKeys, key+suffix)
		}
	}
	return out
}

// maxEmptyDependencies bounds the dependencies without an archive in a payload. GitLab sends all of them, which in a
// pipeline of thousands of jobs makes a megabyte of every payload.
const maxEmptyDependencies = 100

// dependenciesOf is what a job downloads. All carry the token of the job that downloads; those without an archive are
// there too, as in GitLab, and runners skip them. mu is held.
func dependenciesOf(list []*job, token string, now time.Time) []payloadDependency {
	out, empty := []payloadDependency{}, 0
	for _, d := range list {
		p := payloadDependency{ID: d.id, Name: d.def.Name, Token: token}
		if a := d.archive(now); a != nil {
			p.ArtifactsFile = &payloadDependencyFile{a.Name, a.Size}
		} else if empty++; empty > maxEmptyDependencies {
			continue
		}
		out = append(out, p)
	}
	return out
}

// credentialsOf open the registry of the GitLab, if it has one.
func (c *Coordinator) credentialsOf(token string) []runnerapi.Credentials {
	if c.opts.Registry == "" {
		return []runnerapi.Credentials{}
	}
	return []runnerapi.Credentials{{Type: "registry", URL: c.opts.Registry, Username: jobUser, Password: token}}
}

// jobUser is the name that goes with a job's token (Gitlab::Auth::CI_JOB_USER).
const jobUser = "gitlab-ci-token"
