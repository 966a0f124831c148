package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// sample is a module whose packages end in every way there is.
var sample = map[string]string{
	"go.mod":         "module sample\n\ngo 1.26\n",
	"empty/empty.go": "package empty\n",
	"good/good_test.go": `package good
import "testing"
func TestOne(t *testing.T) { t.Log("nobody reads this") }
func TestTable(t *testing.T) { for _, n := range []string{"a", "b"} { t.Run(n, func(*testing.T) {}) } }
func TestNeedy(t *testing.T) { t.Skip("needs a moon") }
`,
	"bad/bad_test.go": `package bad
import "testing"
func TestTable(t *testing.T) {
	t.Run("fine", func(*testing.T) {})
	t.Run("broken", func(t *testing.T) { t.Error("two is not three") })
}
func TestAlone(t *testing.T) { print("half a line"); t.Error("alone it fails") }
`,
	"panics/panics_test.go": `package panics
import "testing"
func TestBefore(*testing.T) {}
func TestPanics(*testing.T) { panic("out of luck") }
`,
	"leaks/leaks_test.go": `package leaks
import ("fmt"; "os"; "testing")
func TestFine(*testing.T) {}
func TestMain(m *testing.M) { m.Run(); fmt.Println("a goroutine is left"); os.Exit(1) }
`,
	"wrong/wrong_test.go": `package wrong
import "testing"
func TestNever(t *testing.T) { undefined() }
`,
}

// events returns what `go test -json` says about the packages of the sample.
func events(t *testing.T, packages ...string) []byte {
	t.Helper()
	dir := t.TempDir()
	for name, text := range sample {
		name = filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(name), 0o700))
		require.NoError(t, os.WriteFile(name, []byte(text), 0o600))
	}
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"test", "-json"}, packages...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=", "GOWORK=off", "CGO_ENABLED=0")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if err != nil {
		require.ErrorAs(t, err, &exit)
	}
	return out
}

func TestReport(t *testing.T) {
	for _, c := range []struct {
		pkg    string
		total  counts
		has    []string
		hasNot []string
	}{
		{"empty", counts{}, []string{"[no test files]"}, nil},
		{
			"good",
			counts{passed: 3, skipped: 1},
			[]string{"ok  \tsample/good", "sample/good: TestNeedy skipped\n", "needs a moon"},
			[]string{"nobody", "=== "},
		},
		{
			"bad",
			counts{passed: 1, failed: 2},
			[]string{"FAIL\tsample/bad", "sample/bad: TestTable/broken failed\n", "two is not three", "half a line", "alone it fails"},
			[]string{"fine"},
		},
		{"panics", counts{passed: 1, failed: 1}, []string{"sample/panics: TestPanics", "out of luck", "goroutine", "FAIL\tsample/panics"}, nil},
		{"leaks", counts{passed: 1, failed: 1}, []string{"a goroutine is left", "FAIL\tsample/leaks"}, nil},
		{"wrong", counts{failed: 1}, []string{"undefined: undefined", "FAIL\tsample/wrong [build failed]"}, nil},
	} {
		t.Run(c.pkg, func(t *testing.T) {
			var out bytes.Buffer
			total, err := report(bytes.NewReader(events(t, "./"+c.pkg)), &out)
			require.NoError(t, err)
			require.Equal(t, c.total, total, "%s", out.String())
			for _, s := range c.has {
				require.Contains(t, out.String(), s)
			}
			for _, s := range c.hasNot {
				require.NotContains(t, out.String(), s)
			}
		})
	}
}

func TestConvert(t *testing.T) {
	file := filepath.Join(t.TempDir(), "summary")
	last := func(out string) string {
		lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
		return lines[len(lines)-1]
	}
	var out bytes.Buffer
	require.NoError(t, convert(bytes.NewReader(events(t, "./good", "./empty")), &out, file))
	require.Equal(t, "3 passed, 0 failed, 1 skipped", last(out.String()))
	written, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Equal(t, "3 passed, 0 failed, 1 skipped\n", string(written))

	out.Reset()
	require.EqualError(t, convert(bytes.NewReader(events(t, "./good", "./bad")), &out, ""), "tests failed")
	require.Equal(t, "4 passed, 2 failed, 1 skipped", last(out.String()))
}

func TestReportOfACutStream(t *testing.T) {
	var out bytes.Buffer
	whole := events(t, "./good")
	total, err := report(bytes.NewReader(whole[:bytes.Index(whole, []byte(`"Test":"TestTable"`))]), &out)
	require.NoError(t, err)
	require.Equal(t, counts{passed: 1, failed: 1}, total)

	_, err = report(strings.NewReader(""), &out)
	require.EqualError(t, err, "no package reported a result")

	out.Reset()
	_, err = report(strings.NewReader("go: no such module\n"), &out)
	require.Error(t, err)
	require.Equal(t, "go: no such module\n", out.String())
}
