package coordinator

import (
	"cmp"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/variables"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// The version of GitLab whose behaviour this is, for scripts that ask.
const (
	serverVersion  = "18.6.0"
	serverRevision = "switchyard"
)

// maxCommitMessage is GitLab's GITLAB_CI_MAX_COMMIT_MESSAGE_SIZE_IN_BYTES.
const maxCommitMessage = 100_000

// list collects predefined variables, which are public unless said otherwise.
type list []runnerapi.Variable

func (l *list) add(key, value string) {
	*l = append(*l, runnerapi.Variable{Key: key, Value: value, Public: true})
}

func (l *list) secret(key, value string, masked bool) {
	*l = append(*l, runnerapi.Variable{Key: key, Value: value, Masked: masked})
}

// baseURL is the base of addresses: what SetURL set, or else the address of the present request.
func (c *Coordinator) baseURL(ofRequest string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return cmp.Or(c.url, ofRequest, "http://localhost")
}

// pipelineVariables are the predefined ones of project and pipeline (Project#predefined_variables,
// Gitlab::Ci::Variables::Builder::Pipeline), which rules and includes see too.
func (c *Coordinator) pipelineVariables(run *pipelineRun, base string) list {
	var l list
	l.server(base)
	l.project(run.project, base)
	l.add("CI_API_V4_URL", base+"/api/v4")
	l.add("CI_API_GRAPHQL_URL", base+"/api/graphql")
	l.add("CI_TEMPLATE_REGISTRY_HOST", "registry.gitlab.com")
	l.pipeline(run)
	return l
}

func (l *list) server(base string) {
	u, err := url.Parse(base)
	if err != nil {
		u = &url.URL{Scheme: "http", Host: "localhost"} // SetURL refuses such
	}
	port := cmp.Or(u.Port(), map[string]string{"http": "80", "https": "443"}[u.Scheme])
	version := strings.Split(serverVersion, ".")
	l.add("CI", "true")
	l.add("GITLAB_CI", "true")
	l.add("CI_SERVER_FQDN", u.Host)
	l.add("CI_SERVER_URL", base)
	l.add("CI_SERVER_HOST", u.Hostname())
	l.add("CI_SERVER_PORT", port)
	l.add("CI_SERVER_PROTOCOL", u.Scheme)
	l.add("CI_SERVER_SHELL_SSH_HOST", u.Hostname())
	l.add("CI_SERVER_SHELL_SSH_PORT", "22")
	l.add("CI_SERVER_NAME", "GitLab")
	l.add("CI_SERVER_VERSION", serverVersion)
	l.add("CI_SERVER_VERSION_MAJOR", version[0])
	l.add("CI_SERVER_VERSION_MINOR", version[1])
	l.add("CI_SERVER_VERSION_PATCH", version[2])
	l.add("CI_SERVER_REVISION", serverRevision)
}

func (l *list) project(p *project, base string) {
	l.add("GITLAB_FEATURES", "")
	l.add("CI_PROJECT_ID", strconv.FormatInt(p.id, 10))
	l.add("CI_PROJECT_NAME", p.parts[len(p.parts)-1])
	l.add("CI_PROJECT_TITLE", p.Title)
	l.add("CI_PROJECT_DESCRIPTION", p.Description)
	l.add("CI_PROJECT_PATH", p.Path)
	l.add("CI_PROJECT_PATH_SLUG", variables.Slug(p.Path))
	l.add("CI_PROJECT_NAMESPACE", p.namespacePath())
	l.add("CI_PROJECT_NAMESPACE_SLUG", variables.Slug(p.namespacePath()))
	l.add("CI_PROJECT_NAMESPACE_ID", strconv.FormatInt(p.namespaces[len(p.namespaces)-1], 10))
	l.add("CI_PROJECT_ROOT_NAMESPACE", p.parts[0])
	l.add("CI_PROJECT_URL", base+"/"+p.Path)
	l.add("CI_PROJECT_VISIBILITY", "private")
	l.add("CI_PROJECT_REPOSITORY_LANGUAGES", "")
	l.add("CI_PROJECT_CLASSIFICATION_LABEL", "")
	l.add("CI_DEFAULT_BRANCH", p.DefaultBranch)
	l.add("CI_DEFAULT_BRANCH_SLUG", variables.Slug(p.DefaultBranch))
	l.add("CI_CONFIG_PATH", p.CIConfigPath)
}

func (l *list) pipeline(run *pipelineRun) {
	l.add("CI_PIPELINE_IID", strconv.FormatInt(run.iid, 10))
	l.add("CI_PIPELINE_SOURCE", run.opts.Source)
	l.add("CI_PIPELINE_CREATED_AT", run.createdAt.UTC().Format(time.RFC3339))
	if run.def != nil && run.def.Name != "" {
		l.add("CI_PIPELINE_NAME", run.def.Name)
	}
	commit, ref := &run.commit, run.opts.Ref
	message, truncated := truncate(commit.Message, maxCommitMessage)
	title, description := splitMessage(message)
	l.add("CI_COMMIT_SHA", commit.SHA)
	l.add("CI_COMMIT_SHORT_SHA", commit.SHA[:min(8, len(commit.SHA))])
	l.add("CI_COMMIT_BEFORE_SHA", run.before)
	l.add("CI_COMMIT_REF_NAME", ref)
	l.add("CI_COMMIT_REF_SLUG", variables.Slug(ref))
	if !run.opts.Tag && run.opts.Source != "merge_request_event" {
		l.add("CI_COMMIT_BRANCH", ref)
	}
	l.add("CI_COMMIT_MESSAGE", message)
	l.add("CI_COMMIT_MESSAGE_IS_TRUNCATED", strconv.FormatBool(truncated))
	l.add("CI_COMMIT_TITLE", title)
	l.add("CI_COMMIT_DESCRIPTION", description)
	l.add("CI_COMMIT_REF_PROTECTED", strconv.FormatBool(run.protected))
	timestamp := ""
	if !commit.Timestamp.IsZero() {
		timestamp = commit.Timestamp.Format(time.RFC3339)
	}
	l.add("CI_COMMIT_TIMESTAMP", timestamp)
	l.add("CI_COMMIT_AUTHOR", commit.Author)
	if run.opts.Tag {
		l.add("CI_COMMIT_TAG", ref)
		l.add("CI_COMMIT_TAG_MESSAGE", run.tagText)
	}
}

// persisted are the predefined variables that only a job on a runner has.
func (l *list) persisted(j *job, view *payloadView) {
	run := j.pipe
	projectURL := view.base + "/" + run.project.Path
	l.add("CI_PIPELINE_ID", strconv.FormatInt(run.id, 10))
	l.add("CI_PIPELINE_URL", projectURL+"/-/pipelines/"+strconv.FormatInt(run.id, 10))
	l.add("CI_JOB_ID", strconv.FormatInt(j.id, 10))
	l.add("CI_JOB_URL", projectURL+"/-/jobs/"+strconv.FormatInt(j.id, 10))
	l.secret("CI_JOB_TOKEN", view.token, true)
	l.add("CI_JOB_STARTED_AT", view.now.UTC().Format(time.RFC3339))
	l.add("CI_REGISTRY_USER", jobUser)
	l.secret("CI_REGISTRY_PASSWORD", view.token, true)
	l.secret("CI_REPOSITORY_URL", view.repoURL, false)
}

// registry are those of the container registry, if there is one.
func (l *list) registry(host string, p *project) {
	if host != "" {
		l.add("CI_REGISTRY", host)
		l.add("CI_REGISTRY_IMAGE", host+"/"+strings.ToLower(p.Path))
	}
}

// job are the predefined variables that depend on the job alone.
func (l *list) job(d *ciconfig.Job) {
	l.add("CI_JOB_NAME", d.Name)
	l.add("CI_JOB_NAME_SLUG", variables.Slug(d.Name))
	l.add("CI_JOB_GROUP_NAME", cmp.Or(d.Group, d.Name))
	l.add("CI_JOB_STAGE", d.Stage)
	if d.When == ciconfig.Manual || d.When == ciconfig.Delayed {
		l.add("CI_JOB_MANUAL", "true")
	}
	if d.NodeIndex > 0 {
		l.add("CI_NODE_INDEX", strconv.Itoa(d.NodeIndex))
	}
	l.add("CI_NODE_TOTAL", strconv.Itoa(max(1, d.NodeTotal)))
}

func (l *list) runner(r *runner) {
	l.add("CI_RUNNER_ID", strconv.FormatInt(r.id, 10))
	l.add("CI_RUNNER_DESCRIPTION", r.Description)
	l.add("CI_RUNNER_TAGS", strings.Join(r.Tags, ", "))
}

func (l *list) user(u User, id int64) {
	l.add("GITLAB_USER_ID", strconv.FormatInt(id, 10))
	l.add("GITLAB_USER_EMAIL", u.Email)
	l.add("GITLAB_USER_LOGIN", u.Login)
	l.add("GITLAB_USER_NAME", u.Name)
}

// configured adds variables that people have written.
func (l *list) configured(vars []ciconfig.Variable) {
	for _, v := range vars {
		*l = append(*l, runnerapi.Variable{
			Key: v.Key, Value: v.Value, Public: v.Public, Masked: v.Masked, File: v.File, Raw: v.Raw,
		})
	}
}

// configVariables is the list in the configuration's form.
func configVariables(l list) []ciconfig.Variable {
	out := make([]ciconfig.Variable, len(l))
	for i, v := range l {
		out[i] = ciconfig.Variable{Key: v.Key, Value: v.Value, Public: v.Public, Masked: v.Masked, File: v.File, Raw: v.Raw}
	}
	return out
}

// splitMessage is GitLab's title and description of a commit: the description is the message without its first line and
// its last line break if the title is shorter than 100 characters, the whole message otherwise.
func splitMessage(message string) (title, description string) {
	title = message
	if i := strings.IndexAny(message, "\r\n"); i >= 0 {
		title = message[:i]
	}
	if utf8.RuneCountInString(title) >= 100 {
		return title, message
	}
	_, rest, _ := strings.Cut(message, "\n")
	return title, strings.TrimSuffix(strings.TrimSuffix(rest, "\n"), "\r")
}

func truncate(s string, limit int) (string, bool) {
	if len(s) <= limit {
		return s, false
	}
	return s[:limit], true
}

// withCredentials puts user and password into a URL.
func withCredentials(base, path, user, password string) string {
	u, err := url.Parse(base)
	if err != nil {
		return base + path // SetURL refuses such
	}
	u.User = url.UserPassword(user, password)
	u.Path = path
	return u.String()
}

// requestBase is the address that a request was sent to.
func requestBase(host string, encrypted bool) string {
	if host == "" {
		return ""
	}
	if _, _, err := net.SplitHostPort(host); err != nil && strings.ContainsAny(host, "/?#@") {
		return ""
	}
	if encrypted {
		return "https://" + host
	}
	return "http://" + host
}
