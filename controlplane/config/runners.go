package config

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/controlplane/registry"
	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

// Limits of a runner's entry.
const (
	maxName        = 128 // bytes
	maxJobs        = 100_000
	maxOutputLimit = 16 << 20 // KiB
)

// executors are those that this version has; planned are those that the design names.
var (
	executors = []string{"shell", "docker"}
	planned   = []string{"kubernetes", "ssh"}
)

func (r *reader) runners(n *yaml.Node, path string) []Runner {
	n = yamlform.Resolve(n)
	switch {
	case n.Kind != yaml.SequenceNode:
		r.Problem(n, path, "must be a list of runners, not "+yamlform.Kind(n), "begin each runner with \"- name: …\"")
		return nil
	case len(n.Content) == 0:
		r.Problem(n, path, "is empty", runnersHint)
	case len(n.Content) > maxRunners:
		r.Problem(n, path, fmt.Sprintf("has %d entries, more than %d", len(n.Content), maxRunners), "use a second control plane")
		return nil
	}
	runners := make([]Runner, 0, len(n.Content))
	names, registrations := map[string]int{}, map[[2]string]string{}
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		runner, ok := r.runner(item, at)
		if !ok {
			continue
		}
		if line, again := names[runner.Name]; again && runner.Name != "" {
			r.Problem(yamlform.Resolve(yamlform.Value(yamlform.Resolve(item), "name")), at+".name", fmt.Sprintf("%s is the name of the runner in line %d too", yamlform.Quoted(runner.Name), line), "give each runner its own")
		}
		names[runner.Name] = item.Line
		registration := [2]string{runner.URL, runner.Token}
		if other, again := registrations[registration]; again && runner.URL != "" && runner.Token != "" {
			r.Problem(yamlform.Resolve(item), at, fmt.Sprintf("has the same url and token as %s", other), "register a runner of its own in GitLab, or raise the limit of the other")
		}
		registrations[registration] = at
		runners = append(runners, runner)
	}
	return runners
}

// runner reads an entry. It says no if the entry is not even a mapping; yamlform.Fields with complaints stay empty.
func (r *reader) runner(n *yaml.Node, path string) (runner Runner, ok bool) {
	runner.Runner = registry.Runner{Executor: DefaultExecutor, OutputLimit: DefaultOutputLimit << 10}
	known := yamlform.Fields{
		"name":        func(n *yaml.Node, p string) { runner.Name = r.name(n, p) },
		"url":         func(n *yaml.Node, p string) { runner.URL = r.url(n, p) },
		"tls_ca_file": func(n *yaml.Node, p string) { runner.CAFile = r.caFile(n, p) },
		"tls_cert_file": func(n *yaml.Node, p string) {
			runner.CertFile = r.pemFile(n, p, "CERTIFICATE", "name a file with the PEM certificate that GitLab asks its clients for")
		},
		"tls_key_file": func(n *yaml.Node, p string) {
			runner.KeyFile = r.pemFile(n, p, "PRIVATE KEY", "name a file with the PEM key of tls_cert_file, of mode 600")
		},
		"labels":   func(n *yaml.Node, p string) { runner.Labels = r.runnerLabels(n, p) },
		"executor": func(n *yaml.Node, p string) { runner.Executor = r.executor(n, p) },
		"limit": func(n *yaml.Node, p string) {
			limit, _ := r.Number(n, p, 0, maxJobs, "jobs at once, 0 for no limit")
			runner.Limit = int(limit)
		},
		"output_limit": func(n *yaml.Node, p string) {
			limit, _ := r.Number(n, p, 1, maxOutputLimit, fmt.Sprintf("KiB of trace per job; without it %d", DefaultOutputLimit))
			runner.OutputLimit = limit << 10
		},
		"agents": func(n *yaml.Node, p string) { runner.Selector = r.selector(n, p) },
		"check_interval": func(n *yaml.Node, p string) {
			runner.CheckInterval = r.Duration(n, p, 100*time.Millisecond, time.Hour)
		},
		"requests_per_minute": func(n *yaml.Node, p string) {
			limit, _ := r.Number(n, p, 1, 1_000_000, "requests that GitLab has to work on in any minute")
			runner.RequestsPerMinute = int(limit)
		},
		"lease": func(n *yaml.Node, p string) { runner.StopAfter, runner.LostAfter = r.runnerLease(n, p) },
	}
	r.secret(runnerToken, known, func(token string) { runner.Token = token })
	r.settings(known, &runner.Settings)
	if !r.Mapping(n, path, known) {
		return runner, false
	}
	n = yamlform.Resolve(n)
	for _, required := range [][2]string{{"name", "any text of your own, for logs and lists"}, {"url", urlHint}} {
		if yamlform.Value(n, required[0]) == nil {
			r.Problem(n, path+"."+required[0], "is missing", required[1])
		}
	}
	r.clientCertificate(n, path, &runner)
	if len(r.given(runnerToken, n, path)) == 0 {
		r.Problem(n, path+".token_file", "is missing",
			"create a runner in GitLab (Settings > CI/CD > Runners), put its token into a file of mode 600 and name it here, or use token_env")
	}
	return runner, true
}

func (r *reader) name(n *yaml.Node, path string) string {
	text, ok := r.Text(n, path)
	switch {
	case !ok:
		return ""
	case len(text) > maxName:
		r.Problem(yamlform.Resolve(n), path, fmt.Sprintf("has %d bytes, more than %d", len(text), maxName), "")
	case !utf8.ValidString(text), strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) }), text != strings.TrimSpace(text):
		r.Problem(yamlform.Resolve(n), path, yamlform.Quoted(text)+" has characters that cannot be shown, or spaces around it", "")
	default:
		return text
	}
	return ""
}

const urlHint = "write GitLab's address as in the browser, for example https://gitlab.example.com"

// url reads GitLab's address and gives it one form.
func (r *reader) url(n *yaml.Node, path string) string {
	text, ok := r.Text(n, path)
	if !ok {
		return ""
	}
	n = yamlform.Resolve(n)
	u, err := url.Parse(text)
	switch {
	case err != nil:
		r.Problem(n, path, yamlform.Quoted(text)+" is not a URL", urlHint) // err repeats the text, a password included
		return ""
	case u.User != nil:
		r.Problem(n, path, "has a user or a password in it", "remove them; the runner's token is all that is needed")
		return ""
	case u.Scheme != "http" && u.Scheme != "https":
		r.Problem(n, path, fmt.Sprintf("%s begins with neither https:// nor http://", yamlform.Quoted(text)), urlHint)
		return ""
	case u.Hostname() == "":
		r.Problem(n, path, yamlform.Quoted(text)+" names no host", urlHint)
		return ""
	case u.RawQuery != "" || u.Fragment != "" || u.ForceQuery:
		r.Problem(n, path, "has a part after ? or #", urlHint) // not shown: it may be a secret
		return ""
	}
	if u.Scheme == "http" {
		r.Warn(n, path, "http:// sends tokens and sources in the clear", "use https:// if GitLab has it")
	}
	u.Host = strings.ToLower(u.Host)
	u.Path, u.RawPath = strings.TrimSuffix(strings.TrimRight(u.Path, "/"), "/ci"), ""
	return u.String()
}

func (r *reader) executor(n *yaml.Node, path string) string {
	text, ok := r.Text(n, path)
	switch {
	case !ok:
		return ""
	case slices.Contains(executors, text):
		return text
	case slices.Contains(planned, text):
		r.Problem(yamlform.Resolve(n), path, fmt.Sprintf("%s is not available in this version", text), "available: "+strings.Join(executors, ", "))
	default:
		near := yamlform.Nearest(text, slices.Concat(executors, planned))
		hint := "available: " + strings.Join(executors, ", ")
		if near != "" {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		r.Problem(yamlform.Resolve(n), path, "unknown executor "+yamlform.Quoted(text), hint)
	}
	return ""
}
