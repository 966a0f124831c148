//go:build unix

package conformance

import (
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/folder"
)

// The payloads are jobs in GitLab's form, each with what has to come of it; testdata/payloads/README explains the form.
//
//go:embed testdata/payloads
var payloadFiles embed.FS

// payloadCases is their name among the cases.
const payloadCases = "Payloads"

const payloadFolder = "testdata/payloads"

// payloads runs each payload. A file may say for which executors it is.
func payloads(t *testing.T, p *place) {
	names, err := fs.Glob(payloadFiles, payloadFolder+"/*.txtar")
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(names), 60)
	server := p.newGitLab(payloadToken)
	for _, file := range names {
		name := strings.TrimSuffix(path.Base(file), ".txtar")
		b, err := payloadFiles.ReadFile(file)
		require.NoError(t, err)
		c := payloadCase{name: name, file: txtar.Parse(b), place: p, gitlab: server}
		if only := c.header("only"); only != "" && !slices.Contains(strings.Fields(only), p.Executor.Name()) {
			continue
		}
		t.Run(name, c.run)
	}
}

// payloadCase is one file: one job, or several one after another in one place.
type payloadCase struct {
	name   string
	file   *txtar.Archive
	place  *place
	gitlab *gitlab
}

// header is the value of a line "key: value" of the file's comment.
func (c *payloadCase) header(key string) string {
	for line := range strings.Lines(string(c.file.Comment)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == key {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

const payloadToken = "glcbt-64_the-jobs-own-token"

func (c *payloadCase) run(t *testing.T) {
	shared := *c.place
	shared.t = t
	p := &shared
	defer func() { c.place.last = p.last }()
	// One slot for all jobs of the case, which no other case has.
	slot := 1000 + p.last
	settings := map[string]any{}
	clear(c.gitlab.offered)
	ran := 0
	for _, f := range c.file.Files {
		text := c.expand(string(f.Data))
		switch strings.TrimRight(f.Name, "0123456789") {
		case "offer": // artifacts of another job: id, then path=content lines
			c.offer(t, text)
		case "spec":
			require.NoError(t, yaml.Unmarshal([]byte(text), &settings), f.Name)
		case "payload":
			ran++
		case "expect":
			job := c.payload(t, strings.Replace(f.Name, "expect", "payload", 1))
			p.adjust = c.specOf(t, settings)
			c.gitlab.mu.Lock()
			c.gitlab.uploads = nil
			c.gitlab.mu.Unlock()
			e := newExpectation(t, text)
			e.before(c.gitlab)
			r := p.start(job, func(_ *runnerapi.Job, s *folder.Spec) { s.ConcurrentProjectID = slot })
			e.during(r)
			r.wait()
			e.after(t, r.result(), r.text(), c.gitlab)
			destroy(t, r)
		default:
			t.Fatalf("%s: payload, spec, offer or expect", f.Name)
		}
	}
	require.NotZero(t, ran)
}

// expand fills in what is known only now.
func (c *payloadCase) expand(text string) string {
	return strings.NewReplacer(
		"@CASE@", c.name, "@URL@", c.gitlab.url, "@HOST@", c.gitlab.host, "@REPO@", c.gitlab.repoURL(), "@TOKEN@", payloadToken,
		"@SHA@", c.gitlab.commits[1], "@FIRST@", c.gitlab.commits[0], "@TAGGED@", c.gitlab.tagged,
	).Replace(text)
}

func (c *payloadCase) offer(t *testing.T, text string) {
	id, files := int64(0), map[string]string{}
	for line := range strings.Lines(strings.TrimSpace(text)) {
		if name, content, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			files[name] = content + "\n"
		} else {
			_, err := fmt.Sscan(line, &id)
			require.NoError(t, err)
		}
	}
	c.gitlab.offer(t, id, files)
}

// payload is the job of that file above what every job has: maps are merged, everything else is replaced.
func (c *payloadCase) payload(t *testing.T, name string) *runnerapi.Job {
	base, err := payloadFiles.ReadFile(payloadFolder + "/base.yaml")
	require.NoError(t, err)
	whole := map[string]any{}
	require.NoError(t, yaml.Unmarshal([]byte(c.expand(string(base))), &whole))
	found := false
	for _, f := range c.file.Files {
		if f.Name == name {
			found = true
			change := map[string]any{}
			require.NoError(t, yaml.Unmarshal([]byte(c.expand(string(f.Data))), &change), name)
			merge(whole, change)
		}
	}
	require.True(t, found, "there is no %s", name)
	b, err := json.Marshal(whole)
	require.NoError(t, err)
	job := &runnerapi.Job{}
	require.NoError(t, json.Unmarshal(b, job), name)
	return job
}

// merge adds change to whole. "variables+" adds to the list instead of replacing it.
func merge(whole, change map[string]any) {
	for key, value := range change {
		if list, ok := value.([]any); ok && strings.HasSuffix(key, "+") {
			key = strings.TrimSuffix(key, "+")
			old, _ := whole[key].([]any)
			whole[key] = append(slices.Clone(old), list...)
			continue
		}
		inner, isMap := value.(map[string]any)
		if old, ok := whole[key].(map[string]any); ok && isMap {
			old = maps.Clone(old)
			merge(old, inner)
			value = old
		}
		whole[key] = value
	}
}

// specOf changes the agent's part as the file says.
func (c *payloadCase) specOf(t *testing.T, settings map[string]any) func(*folder.Spec) {
	b, err := json.Marshal(settings)
	require.NoError(t, err)
	return func(s *folder.Spec) {
		s.ServerURL = c.gitlab.url
		require.NoError(t, json.Unmarshal(b, s))
	}
}

func destroy(t *testing.T, r *running) {
	t.Helper()
	require.NoError(t, r.env.Destroy(t.Context()))
}

// expectation is what has to come of a job.
type expectation struct {
	lines [][2]string // word and rest
}

func newExpectation(t *testing.T, text string) expectation {
	var e expectation
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		word, rest, _ := strings.Cut(line, " ")
		if !slices.Contains(words, word) {
			t.Fatalf("%q: no expectation begins with %q; known are %v", line, word, words)
		}
		e.lines = append(e.lines, [2]string{word, strings.NewReplacer(`\n`, "\n", `\r`, "\r", `\e`, "\x1b").Replace(rest)})
	}
	return e
}

var words = []string{
	"state", "reason", "exit", "message", "has", "lacks", "matches", "order", "stages", "times",
	"upload", "file", "nofile", "uploads", "refuse", "refuse-download", "cancel",
}

// before prepares what answers the job will get.
func (e expectation) before(g *gitlab) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.refusals, g.downloadRefusals = nil, nil
	for _, l := range e.lines {
		var status int
		_, _ = fmt.Sscan(l[1], &status)
		switch l[0] {
		case "refuse":
			g.refusals = append(g.refusals, status)
		case "refuse-download":
			g.downloadRefusals = append(g.downloadRefusals, status)
		}
	}
}

// during does what is to happen while the job runs: "cancel graceful|kill TEXT" cancels it when its trace has the text.
func (e expectation) during(r *running) {
	for _, l := range e.lines {
		if l[0] != "cancel" {
			continue
		}
		how, text, _ := strings.Cut(l[1], " ")
		r.awaitReady()
		r.await(text)
		require.NoError(r.t, r.follow().Cancel(how == "kill"))
	}
}

var sectionStart = regexp.MustCompile(`section_start:\d+:([a-z_]+)[\[\r]`)

func (e expectation) after(t *testing.T, result folder.Result, trace string, g *gitlab) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	var files map[string]string // of the upload that was named last
	at := 0
	for _, l := range e.lines {
		what, rest := strings.Join(l[:], " "), l[1]
		switch l[0] {
		case "state":
			require.Equal(t, rest, result.State, "%s\n%s", result.Message, trace)
		case "reason":
			require.Equal(t, rest, string(result.FailureReason), trace)
		case "exit":
			require.Equal(t, rest, fmt.Sprint(result.ExitCode), trace)
		case "message":
			require.Contains(t, result.Message, rest)
		case "has":
			require.Contains(t, trace, rest)
		case "lacks":
			require.NotContains(t, trace, rest)
		case "matches":
			require.Regexp(t, rest, trace)
		case "times":
			n, text, _ := strings.Cut(rest, " ")
			require.Equal(t, n, fmt.Sprint(strings.Count(trace, text)), "%s\n%s", what, trace)
		case "order":
			i := strings.Index(trace[at:], rest)
			require.GreaterOrEqual(t, i, 0, "%s comes too early or not at all\n%s", what, trace)
			at += i + len(rest)
		case "stages":
			var stages []string
			for _, m := range sectionStart.FindAllStringSubmatch(trace, -1) {
				stages = append(stages, m[1])
			}
			require.Equal(t, rest, strings.Join(stages, " "), trace)
		case "uploads":
			require.Equal(t, rest, fmt.Sprint(len(g.uploads)), trace)
		case "upload":
			files = g.find(t, rest, trace)
		case "file":
			name, content, _ := strings.Cut(rest, "=")
			require.Contains(t, files, name, trace)
			require.Equal(t, content, strings.TrimSuffix(files[name], "\n"), name)
		case "nofile":
			require.NotContains(t, files, rest)
		}
	}
}

// find looks an upload up by "type format filename" and returns its files, if it is a zip archive; of another format there
// is one file, "-", with the bytes as they are.
func (g *gitlab) find(t *testing.T, what, trace string) map[string]string {
	t.Helper()
	for _, u := range g.uploads {
		if strings.TrimSpace(u.kind+" "+u.format+" "+u.filename) != what && strings.TrimSpace(u.kind+" "+u.format) != what {
			continue
		}
		if u.format == "zip" || u.format == "zipzstd" {
			return u.contents(t)
		}
		return map[string]string{"-": string(u.body)}
	}
	var all []string
	for _, u := range g.uploads {
		all = append(all, u.kind+" "+u.format+" "+u.filename)
	}
	t.Fatalf("there was no upload %q, but %q\n%s", what, all, trace)
	return nil
}
