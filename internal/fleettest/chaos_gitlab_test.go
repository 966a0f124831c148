package fleettest

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
	"github.com/switchyard-ci/switchyard/internal/faults"
)

// chaosGitLab is one of the two GitLabs of a chaos run: the embedded one behind faults. It knows which jobs it has handed
// out to nobody, because the answer was destroyed or because the control plane was killed before it had written them down.
type chaosGitLab struct {
	t      testing.TB
	name   string
	legacy bool // without two-phase commit
	*coordinator.Coordinator
	proxy    *faults.GitLab
	marks    string // folder with a file per job, a line per start of its script
	projects []coordinator.Project
	config   string // of its runners in switchyard.yaml

	mu     sync.Mutex
	handed map[int64]bool   // handed out, and no request about them so far
	lost   map[int64]string // handed out to nobody, and why

	wanted map[string]wantedJob // by name; only the test's goroutine
}

// ackExpiry is half of GitLab's, so that a job whose claim was lost is handed out again soon, and longer than the 45 s after
// which the control plane says of a job that waits for an agent that it is still there.
const ackExpiry = time.Minute

func newChaosGitLab(t testing.TB, name string, legacy bool, marks string) *chaosGitLab {
	t.Helper()
	g := &chaosGitLab{t: t, name: name, legacy: legacy, marks: marks, handed: map[int64]bool{}, lost: map[int64]string{}, wanted: map[string]wantedJob{}}
	require.NoError(t, os.Mkdir(marks, 0o755))
	var err error
	g.Coordinator, err = coordinator.New(coordinator.Options{
		Dir: t.TempDir(), LegacyCommit: legacy, AckExpiry: ackExpiry, TraceInterval: 5 * time.Second,
		DecoratePayload: func(job int64, _ map[string]any) error {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.handed[job] = true
			return nil
		},
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	g.proxy, err = faults.NewGitLab(g)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.proxy.Close()) })
	require.NoError(t, g.SetURL(g.proxy.URL()))
	g.proxy.Observe(g.observe)
	for i := range 3 {
		p, err := g.AddProject(t.Context(), coordinator.ProjectOptions{Path: fmt.Sprintf("chaos/%s-%d", name, i), NoAutoCancel: true})
		require.NoError(t, err)
		g.projects = append(g.projects, p)
	}
	for _, tag := range []string{"even", "odd"} {
		r, err := g.AddRunner(coordinator.RunnerOptions{Description: tag, Tags: []string{tag}})
		require.NoError(t, err)
		g.config += fmt.Sprintf("  - name: %s-%s\n    url: %s\n    token: %s\n    executor: shell\n%s", name, tag, g.proxy.URL(), r.Token, unhurried)
	}
	return g
}

// ServeHTTP is between the faults and the embedded GitLab.
func (g *chaosGitLab) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if rest, ok := strings.CutPrefix(r.URL.Path, "/api/v4/jobs/"); ok && r.Method != http.MethodPost {
		id, _, _ := strings.Cut(rest, "/")
		if job, err := strconv.ParseInt(id, 10, 64); err == nil {
			g.mu.Lock()
			delete(g.handed, job)
			g.mu.Unlock()
		}
	}
	g.Handler().ServeHTTP(w, r)
}

// observe notes the jobs whose claim had its effect and whose answer was destroyed.
func (g *chaosGitLab) observe(i faults.Injection) {
	if !i.Lost() || i.Code != http.StatusCreated || !isClaim(i.Request) {
		return
	}
	var job struct{ ID int64 }
	if err := json.Unmarshal(i.Body, &job); err != nil || job.ID == 0 {
		panic(fmt.Sprintf("a claim was answered with %q", i.Body)) // the embedded GitLab is at fault
	}
	g.lose(job.ID, fmt.Sprintf("the answer to its claim was destroyed: %s", i.Fault.Kind))
}

func (g *chaosGitLab) lose(job int64, why string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.handed, job)
	g.lost[job] = why
}

// planeIsDead is called when the control plane is dead and no request of it is left; kept are the jobs that it had written
// down. It returns the jobs that it knew and had not written down.
func (g *chaosGitLab) planeIsDead(kept map[int64]bool) []int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	var forgotten []int64
	for job := range g.handed {
		if !kept[job] {
			forgotten = append(forgotten, job)
			g.lost[job] = "the control plane was killed before it had written it down"
		}
	}
	clear(g.handed)
	return forgotten
}

func (g *chaosGitLab) lostCount() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.lost)
}

func (g *chaosGitLab) whyLost(job int64) string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.lost[job]
}

func isClaim(r *http.Request) bool {
	return r.Method == http.MethodPost && r.URL.Path == "/api/v4/jobs/request"
}

func isUpdate(r *http.Request) bool { return r.Method == http.MethodPut }
func isTrace(r *http.Request) bool  { return r.Method == http.MethodPatch }
func isAny(*http.Request) bool      { return true }

// wantedJob is a job and what must come of it.
type wantedJob struct {
	script string
	output string // with $CI_JOB_ID for the job's id
	exit   int
	retry  chaosRetry
}

// chaosRetry is what a job says of being tried again.
type chaosRetry int

const (
	retryDefault chaosRetry = iota // nothing: GitLab tries twice again what no runner has confirmed
	retryNever                     // `retry: 0`
	retryOnce                      // `retry: 1`
)

// most is how many attempts GitLab makes at most.
func (r chaosRetry) most() int { return []int{3, 1, 2}[r] }

func (r chaosRetry) yaml() string {
	return []string{"", "  retry: 0\n", "  retry: 1\n"}[r]
}

// submit makes a pipeline of these jobs.
func (g *chaosGitLab) submit(number int, jobs []wantedJob) {
	g.t.Helper()
	var config strings.Builder
	config.WriteString("variables: {GIT_STRATEGY: none}\n")
	for i, j := range jobs {
		name := fmt.Sprintf("job-%d-%d", number, i)
		j.script = fmt.Sprintf("echo begun >> %s/$CI_JOB_ID; %s", g.marks, j.script)
		g.wanted[name] = j
		script, err := json.Marshal(j.script)
		require.NoError(g.t, err)
		fmt.Fprintf(&config, "%s:\n  tags: [%s]\n%s  script: [%s]\n", name, []string{"even", "odd"}[i%2], j.retry.yaml(), script)
	}
	compiled, err := ciconfig.Compile(".gitlab-ci.yml", []byte(config.String()), ciconfig.Options{})
	require.NoError(g.t, err)
	_, err = g.CreatePipeline(g.t.Context(), g.projects[number%len(g.projects)].ID, coordinator.PipelineOptions{Config: compiled})
	require.NoError(g.t, err)
}
