package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator"
)

// TestMain makes this test binary the program under test when a script calls it.
func TestMain(m *testing.M) {
	testscript.Main(cleaning{m}, map[string]func(){"switchyard": main})
}

// TestScripts runs testdata/script: the programs as a person uses them. Besides the usual commands there are
//
//	gitlab ANSWER   a GitLab that gives every request one answer (ok, 403, 500, html); its address is $GITLAB
//	coordinator     the embedded GitLab, which takes the registration token GR1348941letmein; its address is $GITLAB, the
//	                token of a runner that is in it, and is good for 30 days, is $TOKEN
//	push PROJECT SCRIPT   a pipeline of one job in the embedded GitLab, which has no repository; its number is $JOB
//	get URL         the text at an address becomes the standard output
//	freeport        a port that nobody uses, in $PORT
//	waitfor FILE    waits until the file exists
//	eventually RE COMMAND...   repeats a command until its output matches
//	logged FILE RE  waits until the file has text that matches
//	expand FILE     replaces $NAME in the file by the script's variables
func TestScripts(t *testing.T) {
	bin := buildAgent(t)
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", bin+string(os.PathListSeparator)+e.Getenv("PATH"))
			e.Setenv("HOME", e.WorkDir)
			e.Values[embedded{}] = new(*coordinator.Coordinator)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"gitlab":      startGitLab,
			"coordinator": startCoordinator,
			"push":        push,
			"get":         get,
			"freeport":    freePort,
			"waitfor":     waitFor,
			"eventually":  eventually,
			"logged":      logged,
			"expand":      expand,
		},
	})
}

// buildAgent builds the two other programs once for all scripts.
func buildAgent(t *testing.T) string {
	t.Helper()
	bin := t.TempDir()
	cmd := exec.Command("go", "build", "-o", bin, "../switchyard-agent", "../switchyard-job")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return bin
}

func startGitLab(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: gitlab ok|403|500|html")
	}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch args[0] {
		case "ok":
			if r.URL.Path == "/api/v4/runners/verify" {
				w.Header().Set("Content-Type", "application/json")
				_ = json.NewEncoder(w).Encode(map[string]any{"id": 1, "token": "t"})
				return
			}
			w.WriteHeader(http.StatusNoContent)
		case "403":
			http.Error(w, `{"message":"403 Forbidden"}`, http.StatusForbidden)
		case "500":
			http.Error(w, `{"message":"500 Internal Server Error"}`, http.StatusInternalServerError)
		case "html":
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, "<!DOCTYPE html><html><body>Sign in</body></html>")
		default:
			http.NotFound(w, r)
		}
	}))
	ts.Defer(server.Close)
	ts.Setenv("GITLAB", server.URL)
}

func startCoordinator(ts *testscript.TestScript, _ bool, _ []string) {
	c, err := coordinator.New(coordinator.Options{
		Dir: ts.MkAbs("."), RegistrationToken: "GR1348941letmein", RunnerTokenTTL: 30 * 24 * time.Hour,
	})
	ts.Check(err)
	r, err := c.AddRunner(coordinator.RunnerOptions{RunUntagged: true})
	ts.Check(err)
	server := httptest.NewServer(c.Handler())
	ts.Defer(func() {
		server.CloseClientConnections()
		server.Close()
		ts.Check(c.Close())
	})
	ts.Setenv("GITLAB", server.URL)
	ts.Setenv("TOKEN", r.Token)
	*ts.Value(embedded{}).(**coordinator.Coordinator) = c
}

// embedded is the key of a script's coordinator.
type embedded struct{}

func push(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 2 {
		ts.Fatalf("usage: push PROJECT SCRIPT")
	}
	c := *ts.Value(embedded{}).(**coordinator.Coordinator)
	ctx := context.Background()
	p, err := c.Project(args[0])
	if errors.Is(err, coordinator.ErrNotFound) {
		p, err = c.AddProject(ctx, coordinator.ProjectOptions{Path: args[0]})
	}
	ts.Check(err)
	run, err := c.CreatePipeline(ctx, p.ID, coordinator.PipelineOptions{Config: &ciconfig.Pipeline{Stages: []string{"test"}, Jobs: []ciconfig.Job{{
		Name: "job", Group: "job", Stage: "test", When: ciconfig.OnSuccess, Script: []string{args[1]},
		Variables: []ciconfig.Variable{{Key: "GIT_STRATEGY", Value: "none"}},
	}}}})
	ts.Check(err)
	ts.Setenv("JOB", strconv.FormatInt(run.Jobs[0].ID, 10))
}

func get(ts *testscript.TestScript, _ bool, args []string) {
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, args[0], nil)
	ts.Check(err)
	resp, err := http.DefaultClient.Do(req)
	ts.Check(err)
	defer resp.Body.Close()
	_, err = io.Copy(ts.Stdout(), resp.Body)
	ts.Check(err)
}

func freePort(ts *testscript.TestScript, _ bool, _ []string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	_, port, err := net.SplitHostPort(l.Addr().String())
	ts.Check(err)
	ts.Check(l.Close())
	ts.Setenv("PORT", port)
}

func expand(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.MkAbs(args[0])
	ts.Check(os.WriteFile(path, []byte(os.Expand(ts.ReadFile(args[0]), ts.Getenv)), 0o600))
}

// waitFor polls: the writer is another process, which knows nothing of the test.
func waitFor(ts *testscript.TestScript, _ bool, args []string) {
	poll(ts, args[0]+" did not appear", func() bool {
		_, err := os.Stat(ts.MkAbs(args[0]))
		return err == nil
	})
}

// eventually repeats a command for the same reason.
func eventually(ts *testscript.TestScript, _ bool, args []string) {
	want := regexp.MustCompile(args[0])
	poll(ts, "no output matched "+args[0], func() bool {
		return ts.Exec(args[1], args[2:]...) == nil && want.MatchString(ts.ReadFile("stdout"))
	})
}

func logged(ts *testscript.TestScript, _ bool, args []string) {
	want := regexp.MustCompile(args[1])
	poll(ts, args[0]+" has no "+args[1], func() bool {
		b, err := os.ReadFile(ts.MkAbs(args[0]))
		return err == nil && want.Match(b)
	})
}

func poll(ts *testscript.TestScript, otherwise string, is func() bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for !is() {
		select {
		case <-ctx.Done():
			ts.Fatalf("%s", otherwise)
		case <-ticker.C:
		}
	}
}
