package ciconfig

import (
	"go/parser"
	gotoken "go/token"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The package reaches the outside through Options alone.
func TestNoIO(t *testing.T) {
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	checked := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(gotoken.NewFileSet(), name, nil, parser.ImportsOnly)
		require.NoError(t, err)
		checked++
		for _, spec := range f.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			require.NoError(t, err)
			for _, wall := range []string{"os", "net", "syscall", "unsafe", "io/fs", "io/ioutil", "path/filepath", "log", "log/slog", "math/rand", "runtime"} {
				require.False(t, path == wall || strings.HasPrefix(path, wall+"/"), "%s imports %s", name, path)
			}
		}
	}
	require.Greater(t, checked, 10)
}
