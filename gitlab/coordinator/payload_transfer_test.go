package coordinator

import (
	"bytes"
	"crypto/sha1"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

var update = flag.Bool("update", false, "write the golden files")

// transferParts are the fields of a payload that the golden files show.
var transferParts = []string{"steps", "hooks", "image", "services", "artifacts", "cache", "dependencies", "credentials"}

// Each configuration in testdata/payloads is run by a runner that can do everything; the files beside it have what it is
// sent of each job. A job uploads an archive before it ends if it has one.
func TestGoldenPayloads(t *testing.T) {
	files, err := filepath.Glob("testdata/payloads/*.yml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".yml"), func(t *testing.T) {
			src, err := os.ReadFile(name)
			require.NoError(t, err)
			s := newServer(t, Options{Registry: "registry.example.com:5050"})
			dir := repository(t, map[string]string{".gitlab-ci.yml": string(src), "go.sum": "sums\n", "web/package-lock.json": "{}\n"})
			p, r := s.projectWith(ProjectOptions{Path: "g/p", RepoDir: dir}), s.runner()
			run := s.runWith(p, PipelineOptions{})
			var got bytes.Buffer
			for range run.Jobs {
				w := s.request(r, obj{"info": capable()})
				j := s.decode(w)
				var payload map[string]any
				require.NoError(t, json.Unmarshal(w.Body.Bytes(), &payload))
				parts := map[string]any{}
				for _, key := range transferParts {
					parts[key] = payload[key]
				}
				text, err := json.MarshalIndent(parts, "", "  ")
				require.NoError(t, err)
				fmt.Fprintf(&got, "# %s\n%s\n", j.JobInfo.Name, strings.ReplaceAll(string(text), j.Token, "<token>"))
				if slices.ContainsFunc(j.Artifacts, func(a runnerapi.Artifact) bool { return a.Type == "archive" }) {
					s.uploaded(j, []byte("an archive"))
				}
				s.finish(j, "success")
			}
			golden := strings.TrimSuffix(name, ".yml") + ".json"
			if *update {
				require.NoError(t, os.WriteFile(golden, got.Bytes(), 0o644))
			}
			want, err := os.ReadFile(golden)
			require.NoError(t, err)
			require.Equal(t, string(want), got.String())
		})
	}
}

// The keys of caches depend on files as in GitLab, and keep the caches of protected branches apart.
func TestCacheKeys(t *testing.T) {
	s := newServer(t, Options{})
	files := map[string]string{".gitlab-ci.yml": `
job:
  script: x
  cache:
    - {key: {files: [go.sum, b/package.json], prefix: $CI_JOB_NAME}, paths: [a]}
    - {key: {files: ["**/*.json"]}, paths: [a]}
    - {key: {files_commits: [go.sum]}, paths: [a], unprotect: true}
    - {paths: [a], fallback_keys: [one, $TWO]}
`, "go.sum": "sums\n", "b/package.json": "{}\n", "c/package.json": "{}\n"}
	dir := repository(t, files)
	first := strings.TrimSpace(git(t, dir, "rev-parse", "HEAD"))
	blob := func(path string) string { return strings.TrimSpace(git(t, dir, "rev-parse", "HEAD:"+path)) }
	digest := func(ids ...string) string {
		slices.Sort(ids)
		sum := sha1.Sum([]byte(strings.Join(slices.Compact(ids), "-")))
		return hex.EncodeToString(sum[:])
	}
	commit(t, dir, "Second", map[string]string{"other": "x"})
	git(t, dir, "branch", "topic")
	p, r := s.projectWith(ProjectOptions{Path: "g/p", RepoDir: dir}), s.runner()
	keys := func(o PipelineOptions) (list, fallback []string) {
		s.runWith(p, o)
		j := s.claimed(r)
		for _, c := range j.Cache {
			list, fallback = append(list, c.Key), append(fallback, c.FallbackKeys...)
		}
		s.finish(j, "success")
		return list, fallback
	}
	// Two files of equal contents are one blob.
	want := []string{
		"$CI_JOB_NAME-" + digest(blob("go.sum"), blob("b/package.json")), "1_**/*-" + digest(blob("b/package.json")),
		"2-" + digest(first), "default",
	}
	with := func(suffix string) []string {
		out := make([]string, len(want))
		for i, key := range want {
			out[i] = key + suffix
		}
		return out
	}
	got, fallback := keys(PipelineOptions{Ref: "topic"})
	require.Equal(t, with("-non_protected"), got)
	require.Equal(t, []string{"one-non_protected", "$TWO-non_protected"}, fallback)
	protected := with("-protected")
	protected[2] = want[2] + "-non_protected"
	got, fallback = keys(PipelineOptions{})
	require.Equal(t, protected, got)
	require.Equal(t, []string{"one-protected", "$TWO-protected"}, fallback)

	require.NoError(t, s.ClearCaches("g/p"))
	got, _ = keys(PipelineOptions{Ref: "topic"})
	require.Equal(t, with("-1-non_protected"), got)
	require.ErrorIs(t, s.ClearCaches("g/none"), ErrNotFound)

	commit(t, dir, "Third", map[string]string{"go.sum": "other\n"})
	got, _ = keys(PipelineOptions{})
	require.NotEqual(t, want[0]+"-1-protected", got[0])
	require.Equal(t, want[1]+"-1-protected", got[1])

	shared := s.projectWith(ProjectOptions{Path: "g/shared", SharedCaches: true})
	s.run(shared, ciconfig.Job{Caches: []ciconfig.Cache{{Key: "default", FallbackKeys: []string{}}}})
	require.Equal(t, "default", s.claimed(r).Cache[0].Key)
}

// Jobs that need what a runner cannot do are not given to it.
func TestFeaturesThatJobsNeed(t *testing.T) {
	for feature, j := range map[string]ciconfig.Job{
		"return_exit_code":          {Retry: &ciconfig.Retry{Max: 1, ExitCodes: []int{3}}},
		"upload_multiple_artifacts": {Artifacts: &ciconfig.Artifacts{Reports: []ciconfig.Report{{Type: "junit"}}}},
		"artifacts_exclude":         {Artifacts: &ciconfig.Artifacts{Paths: []string{"a"}, Exclude: []string{"b"}}},
		"fallback_cache_keys":       {Caches: []ciconfig.Cache{{FallbackKeys: []string{"a"}}}},
	} {
		s := newServer(t, Options{})
		p, r := s.project("g/p"), s.runner()
		run := s.run(p, j)
		w := s.request(r, obj{"info": obj{"features": obj{}}})
		require.Equal(t, http.StatusNoContent, w.Code, feature)
		require.EqualValues(t, "runner_unsupported", s.job(run.Jobs[0].ID).FailureReason)
		run = s.run(p, j)
		got := s.claimWith(r, obj{"info": obj{"features": obj{feature: true}}})
		require.Equal(t, run.Jobs[0].ID, got.ID, feature)
	}
}

// A stage of thousands does not make the payloads of the next one large.
func TestDependenciesWithoutArchivesAreFew(t *testing.T) {
	s := newServer(t, Options{})
	jobs := make([]ciconfig.Job, maxEmptyDependencies+20)
	for i := range jobs {
		jobs[i].Stage = "build"
	}
	p, r := s.project("g/p"), s.runner()
	s.run(p, append(jobs, ciconfig.Job{})...)
	var last runnerapi.Job
	for range jobs {
		last = s.claimed(r)
		if last.ID == int64(len(jobs)) {
			s.uploaded(last, []byte("x"))
		}
		s.finish(last, "success")
	}
	d := s.claimed(r).Dependencies
	require.Len(t, d, maxEmptyDependencies+1)
	require.Equal(t, last.ID, d[maxEmptyDependencies].ID)
	require.Empty(t, d[0].ArtifactsFile.Filename)
	require.Equal(t, "artifacts.zip", d[maxEmptyDependencies].ArtifactsFile.Filename)
}

// visible says by the documentation of `needs` and `dependencies` whether a job gets the artifacts of another one.
func visible(jobs []ciconfig.Job, of, from int) bool {
	a, b := jobs[of], jobs[from]
	switch {
	case of == from:
		return false
	case a.Dependencies != nil && !slices.Contains(a.Dependencies, b.Name):
		return false
	case a.NeedsDeclared:
		return slices.ContainsFunc(a.Needs, func(n ciconfig.Need) bool { return n.Job == b.Name && n.Artifacts })
	default:
		return b.Stage < a.Stage
	}
}

// TestVisibility runs random pipelines, in which some jobs upload, some fail once and some jobs are retried by hand, and
// compares what each job is given with the rules: archives, their sizes and dotenv variables, of the latest attempts.
func TestVisibility(t *testing.T) {
	s := newServer(t, Options{})
	r := s.runner()
	n := 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		p := s.project(fmt.Sprint("g/p", n))
		jobs := visibilityJobs(rt)
		def := config(jobs...)
		run := s.runWith(p, PipelineOptions{Config: def})
		uploaded := map[string]int64{} // size of the archive of the latest attempt, by name
		attempts := map[string]int64{} // its id
		for range 4 * len(jobs) {
			w := s.request(r, obj{"info": capable()})
			if w.Code != http.StatusCreated {
				break
			}
			j := s.decode(w)
			name := j.JobInfo.Name
			at := slices.IndexFunc(jobs, func(d ciconfig.Job) bool { return d.Name == name })
			var want []string
			got := map[string]runnerapi.Dependency{}
			for _, d := range j.Dependencies {
				got[d.Name] = d
			}
			for from, other := range jobs {
				if visible(jobs, at, from) {
					want = append(want, other.Name)
					d, ok := got[other.Name]
					if !ok || d.ArtifactsFile.Size != uploaded[other.Name] || d.Token != j.Token || attempts[other.Name] != 0 && d.ID != attempts[other.Name] {
						rt.Fatalf("%s: of %s it is told %+v; uploaded %d by %d", name, other.Name, d, uploaded[other.Name], attempts[other.Name])
					}
				}
				if value, ok := values(j)["FROM_"+other.Name]; ok != (visible(jobs, at, from) && uploaded[other.Name] > 0) ||
					ok && value != fmt.Sprint(attempts[other.Name]) {
					rt.Fatalf("%s: the variable of %s is %q (%v)", name, other.Name, value, ok)
				}
			}
			if len(got) != len(want) {
				rt.Fatalf("%s is told of %v, not of %v", name, got, want)
			}
			attempts[name], uploaded[name] = j.ID, 0
			if rapid.Bool().Draw(rt, "uploads") {
				uploaded[name] = int64(rapid.IntRange(1, 100).Draw(rt, "size"))
				s.uploaded(j, make([]byte, uploaded[name]))
				w := s.upload(j, "artifact_type=dotenv&artifact_format=gzip", ".env", gzipped(s.t, fmt.Sprintf("FROM_%s=%d\n", name, j.ID)))
				if w.Code != http.StatusCreated {
					rt.Fatalf("%s", w.Body)
				}
			}
			s.finish(j, rapid.SampledFrom([]string{"success", "success", "failed"}).Draw(rt, "result"))
			if now := s.job(j.ID); now.Retried || rapid.IntRange(0, 5).Draw(rt, "again") == 0 {
				if !now.Retried {
					again, err := s.Retry(j.ID)
					if err != nil {
						rt.Fatal(err)
					}
					j.ID = again.ID
				} else {
					j.ID = latestOf(s, run.ID, name)
				}
				attempts[name], uploaded[name] = j.ID, 0 // the new attempt has nothing yet
			}
		}
		if _, err := s.CancelPipeline(run.ID); err != nil {
			rt.Fatal(err)
		}
	})
}

func latestOf(s *server, pipeline int64, name string) int64 {
	p, err := s.Pipeline(pipeline)
	require.NoError(s.t, err)
	i := slices.IndexFunc(p.Jobs, func(j Job) bool { return j.Name == name })
	return p.Jobs[i].ID
}

// visibilityJobs draws jobs with needs and dependencies, ordered by stage; nothing is skipped for a failure.
func visibilityJobs(t *rapid.T) []ciconfig.Job {
	stages := rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "c"}), 1, 7).Draw(t, "stages")
	slices.Sort(stages)
	jobs := make([]ciconfig.Job, len(stages))
	for i, stage := range stages {
		j := ciconfig.Job{Name: fmt.Sprint("j", i), Stage: stage, AllowFailure: true}
		if rapid.IntRange(0, 2).Draw(t, "retry") == 0 {
			j.Retry = &ciconfig.Retry{Max: 1}
		}
		j.NeedsDeclared = rapid.Bool().Draw(t, "dag")
		for k := range i {
			name := jobs[k].Name
			if j.NeedsDeclared && rapid.Bool().Draw(t, "need") {
				j.Needs = append(j.Needs, ciconfig.Need{Job: name, Artifacts: rapid.Bool().Draw(t, "artifacts")})
			}
		}
		if rapid.IntRange(0, 2).Draw(t, "with dependencies") == 0 {
			j.Dependencies = []string{}
			for k := range i {
				if rapid.Bool().Draw(t, "dependency") {
					j.Dependencies = append(j.Dependencies, jobs[k].Name)
				}
			}
		}
		jobs[i] = j
	}
	return jobs
}
