// Package compatibility tests that docs/compatibility.md has a row for everything that the code knows of gitlab-runner's
// world, that each row takes a stand, and that the messages which it quotes are the code's.
package compatibility

import (
	"go/ast"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job"
)

const root = "../.."

var states = []string{"works", "differs", "refused", "later", "never"}

func readDocument(t *testing.T) document {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "docs", "compatibility.md"))
	require.NoError(t, err)
	return parse(string(text))
}

func TestEveryRowTakesAStand(t *testing.T) {
	d := readDocument(t)
	require.Greater(t, len(d.rows), 400)
	seen := make(map[string]int)
	for _, r := range d.rows {
		if !slices.Contains(states, r.state) {
			t.Errorf("line %d: the state of %s is %q: it can be %s", r.line, r.name, r.state, strings.Join(states, ", "))
		}
		if strings.Contains(strings.ToLower(strings.Join(r.cells, " ")), "ignored") {
			t.Errorf("line %d: %s is said to be ignored, which nothing may be", r.line, r.name)
		}
		if r.state != "works" && r.note() == "" {
			t.Errorf("line %d: %s is %q without a word about how", r.line, r.name, r.state)
		}
		at := r.section + "\x00" + r.below + "\x00" + r.name
		if before, ok := seen[at]; ok {
			t.Errorf("line %d: %s has a row already, in line %d", r.line, r.name, before)
		}
		seen[at] = r.line
	}
}

func TestPayload(t *testing.T) {
	rows := readDocument(t).names("Payload")
	for _, field := range fields("", reflect.TypeFor[runnerapi.Job]()) {
		if !slices.Contains(rows, field) {
			t.Errorf("the payload's %s has no row", field)
		}
	}
}

// fields are the JSON names of what a type is made of, as the document writes them.
func fields(prefix string, t reflect.Type) (names []string) {
	for f := range t.Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		path, inner := prefix+name, f.Type
		for inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Slice && inner.Elem().Kind() != reflect.Uint8 {
			if inner.Kind() == reflect.Slice && innermost(inner).Kind() == reflect.Struct {
				path += "[]"
			}
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct {
			names = append(names, fields(path+".", inner)...)
			continue
		}
		names = append(names, strings.TrimSuffix(path, "[]"))
	}
	return names
}

func innermost(t reflect.Type) reflect.Type {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	return t
}

func TestFeatureFlags(t *testing.T) {
	d := readDocument(t)
	rows := d.section("Feature flags")
	literals := make(map[string]int)
	for _, f := range sources(t, "job", "executors") {
		if filepath.Base(f.path) != "flags.go" {
			f.strings(func(text string, _ *ast.BasicLit) { literals[text]++ })
		}
	}
	for _, flag := range job.FeatureFlags() {
		r, ok := rows[flag.Name]
		if !ok {
			t.Errorf("%s has no row", flag.Name)
			continue
		}
		value := "`false`"
		if flag.Default {
			value = "`true`"
		}
		require.Equal(t, value, r.cells[2], "line %d: the default of %s", r.line, flag.Name)
		if flag.Fixed != "" {
			require.NotEqual(t, "works", r.state, "line %d: %s cannot be changed", r.line, flag.Name)
			require.Contains(t, r.note(), flag.Fixed, "line %d: why %s cannot be changed", r.line, flag.Name)
		} else {
			require.NotZero(t, literals[flag.Name], "%s can be set, and nothing looks at it", flag.Name)
		}
		delete(rows, flag.Name)
	}
	require.Empty(t, rows, "rows about flags that the code does not know")
}

func TestDockerKeys(t *testing.T) {
	d := readDocument(t)
	rows := d.section("`[runners.docker]`")
	for _, key := range config.Keys() {
		if _, ok := rows[key]; !ok {
			t.Errorf("the key %s of executors.docker has no row", key)
		}
		delete(rows, key)
	}
	require.Empty(t, rows, "rows about keys that executors.docker does not have")
}

// variable is what names of variables look like that are gitlab-runner's affair.
var variable = regexp.MustCompile(`^(GIT|GCM|CI|RUNNER|CACHE|ARTIFACT|FF|TRANSFER|DOCKER|SLSA|GITLAB|HEALTHCHECK|AFTER_SCRIPT)_[A-Z0-9_]+$|^[A-Z_]+_ATTEMPTS$`)

func TestVariables(t *testing.T) {
	d := readDocument(t)
	rows := slices.Concat(d.names("Variables"), d.names("Feature flags"))
	found := 0
	for _, f := range sources(t, "job", "executors") {
		f.strings(func(text string, at *ast.BasicLit) {
			if !variable.MatchString(text) {
				return
			}
			found++
			name := text
			if strings.HasSuffix(text, "_") { // GIT_CONFIG_KEY_0 and so on
				name += "<n>"
			}
			if !slices.Contains(rows, name) {
				t.Errorf("%s: %s has no row", f.position(at), text)
			}
		})
	}
	require.Greater(t, found, 100)
}

func TestMessages(t *testing.T) {
	d := readDocument(t)
	var patterns [][]string
	for _, f := range sources(t, "job", "executors", "controlplane/config", "internal/yamlform", "cmd/switchyard-agent", "gitlab/runnerapi", "agent") {
		patterns = append(patterns, f.messages()...)
	}
	require.Greater(t, len(d.messages), 50)
	for _, m := range d.messages {
		if !slices.ContainsFunc(patterns, func(p []string) bool { return begins(p, m.text) }) {
			t.Errorf("line %d: no message of the code is, or begins with, %q", m.line, m.text)
		}
	}
	quoted := make(map[int]bool)
	for _, m := range d.messages {
		quoted[m.line] = true
	}
	for _, r := range d.rows {
		if r.state == "refused" && !quoted[r.line] {
			t.Errorf("line %d: %s is refused without a message", r.line, r.name)
		}
	}
}
