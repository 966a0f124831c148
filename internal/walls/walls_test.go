// Package walls holds the walls between the parts of the house, also where a forbidden package would come in through
// another one. The linter (depguard in .golangci.yaml) sees direct imports only, but in tests too.
package walls

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const (
	root   = "../.."
	module = "github.com/switchyard-ci/switchyard/"
)

// databases are what only the control plane's store links.
var databases = []string{"database/sql", "modernc.org", "github.com/pressly/goose", "github.com/jackc/pgx"}

// harmless holds a few interfaces; google/uuid implements two of them.
const harmless = "database/sql/driver"

func TestWalls(t *testing.T) {
	for _, wall := range []struct {
		name     string
		packages []string
		// never is a list of import paths; what lies below one is meant, too.
		never []string
	}{
		{
			name:     "switchyard-job is small",
			packages: []string{"./cmd/switchyard-job", "./job/..."},
			never: slices.Concat(databases, []string{
				module + "agent", module + "controlplane", module + "executors", module + "gen",
				"google.golang.org/grpc", "google.golang.org/protobuf", "buf.build", "cel.dev", "go.yaml.in",
				"github.com/prometheus", "github.com/moby", "k8s.io", "github.com/minio",
			}),
		},
		{
			name:     "agents know no control plane",
			packages: []string{"./cmd/switchyard-agent", "./agent/...", "./executors/..."},
			never:    slices.Concat(databases, []string{module + "controlplane", module + "gitlab/coordinator"}),
		},
		{
			name:     "the control plane runs nothing",
			packages: []string{"./controlplane/..."},
			never:    []string{module + "agent", module + "job", module + "executors"},
		},
		{
			name:     "GitLab knows runners by its API",
			packages: []string{"./gitlab/..."},
			never:    []string{module + "agent", module + "job", module + "executors", module + "controlplane", module + "gen"},
		},
		{
			name:     "who is served is a pure decision",
			packages: []string{"./controlplane/allocation/...", "./controlplane/placement/..."},
			never:    slices.Concat(databases, []string{"net/http", "os/exec", "google.golang.org/grpc"}),
		},
	} {
		t.Run(wall.name, func(t *testing.T) {
			for _, dependency := range dependencies(t, wall.packages...) {
				for _, never := range wall.never {
					if dependency == never || strings.HasPrefix(dependency, never+"/") && dependency != harmless {
						t.Errorf("%s links %s; `go mod why` or `go list -deps` shows through what",
							strings.Join(wall.packages, " "), dependency)
					}
				}
			}
		})
	}
}

// dependencies returns the import paths of everything that the packages link on Linux.
func dependencies(t *testing.T, packages ...string) []string {
	t.Helper()
	watchTree(t)
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list", "-deps"}, packages...)...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS=linux", "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	require.NoError(t, err, "%s", stderr.String())
	require.NotContains(t, stderr.String(), "matched no packages")
	return strings.Fields(string(out))
}

// watchTree reads all folders of the tree, by which the go command learns what this test depends on: it caches the result
// of a test until a file or folder that the test opened has changed, and knows nothing of what `go list` opens.
func watchTree(t *testing.T) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // removed meanwhile
		case err != nil:
			return err
		case entry.IsDir() && path != root && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "build" || entry.Name() == "bin"):
			return fs.SkipDir
		}
		return nil
	}))
}
