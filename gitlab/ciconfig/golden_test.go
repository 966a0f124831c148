package ciconfig

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the golden files")

// Every configuration in testdata/errors is refused with exactly the lines of the file beside it.
func TestGoldenErrors(t *testing.T) {
	files, err := filepath.Glob("testdata/errors/*.yml")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	opt := repository(map[string]string{})
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".yml"), func(t *testing.T) {
			src, err := os.ReadFile(name)
			require.NoError(t, err)
			p, err := Compile(file, src, opt)
			require.Nil(t, p)
			require.Error(t, err)
			golden := strings.TrimSuffix(name, ".yml") + ".txt"
			if *update {
				require.NoError(t, os.WriteFile(golden, []byte(err.Error()+"\n"), 0o644))
			}
			want, readErr := os.ReadFile(golden)
			require.NoError(t, readErr)
			require.Equal(t, string(want), err.Error()+"\n")
			var errs Errors
			require.ErrorAs(t, err, &errs)
			for _, e := range errs {
				require.Positivef(t, e.Line, "%s", e)
				require.Positivef(t, e.Column, "%s", e)
			}
		})
	}
}
