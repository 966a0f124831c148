package testbed

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
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
	require.ErrorContains(t, err, `no component "dokcer"; known are [git git-lfs bash docker busybox zip unzip zstd sshd ssh iproute2 iptables postgresql gcc]`)
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

func TestOnlyAnEngineThatAnswersIsDocker(t *testing.T) {
	answer := func(header string) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/_ping" && header != "" {
				w.Header().Set(header, "1.41")
			}
		}))
		t.Cleanup(server.Close)
		return "tcp://" + server.Listener.Addr().String()
	}
	t.Setenv(dockerHost, answer("Api-Version"))
	require.NoError(t, Docker.Check())
	t.Setenv(dockerHost, answer(""))
	require.ErrorContains(t, Docker.Check(), "is not an engine's answer")
	t.Setenv(dockerHost, "unix://"+filepath.Join(t.TempDir(), "none.sock"))
	require.ErrorContains(t, Docker.Check(), "no such file or directory); `make testbed` starts one")
	t.Setenv(dockerHost, "ssh://host")
	require.ErrorContains(t, Docker.Check(), "the tests talk to unix:///PATH or tcp://HOST:PORT")
}
