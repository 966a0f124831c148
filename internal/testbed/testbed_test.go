package testbed

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/stretchr/testify/require"
)

// A name in SWITCHYARD_REQUIRE that no test knows would require nothing.
func TestTheEnvironmentHasWhatItRequires(t *testing.T) {
	require.NoError(t, CheckRequired())
}

func TestCheckRequired(t *testing.T) {
	t.Setenv(RequireVariable, "")
	require.NoError(t, CheckRequired())
	t.Setenv(RequireVariable, " git, ,dokcer")
	t.Setenv("PATH", t.TempDir())
	err := CheckRequired()
	require.ErrorContains(t, err, "git is not installed")
	require.ErrorContains(t, err, `no component "dokcer"; known are [git git-lfs bash gcc]`)
}

// outcome runs Need against a test that only takes notes.
func outcome(components ...Component) (skipped, failed string) {
	n := &notes{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		Need(n, components...)
	}()
	<-done
	return n.skipped, n.failed
}

type notes struct {
	testing.TB
	skipped, failed string
}

func (*notes) Helper() {}

func (n *notes) Skipf(format string, args ...any) {
	n.skipped = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (n *notes) Fatalf(format string, args ...any) {
	n.failed = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (n *notes) Fatal(args ...any) {
	n.failed = fmt.Sprint(args...)
	runtime.Goexit()
}

func TestNeed(t *testing.T) {
	t.Setenv(RequireVariable, "")
	skipped, failed := outcome()
	require.Empty(t, skipped)
	require.Empty(t, failed)

	t.Setenv("PATH", t.TempDir())
	skipped, failed = outcome(Git)
	require.Contains(t, skipped, "needs git: git is not installed")
	require.Empty(t, failed)

	skipped, failed = outcome("dokcer")
	require.Empty(t, skipped)
	require.Contains(t, failed, `no component "dokcer"`)

	t.Setenv(RequireVariable, "git")
	skipped, failed = outcome(Git)
	require.Empty(t, skipped)
	require.Contains(t, failed, "SWITCHYARD_REQUIRE lists git")
	skipped, failed = outcome(Bash)
	require.Contains(t, skipped, "needs bash")
	require.Empty(t, failed)
}
