package agent_test

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/agent/internal/fakefleet"
)

// TestThroughAProxy reaches a control plane whose name only the proxy knows.
func TestThroughAProxy(t *testing.T) {
	f := fakefleet.Start(t)
	var asked atomic.Int64
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodConnect || r.Host != "control-plane.invalid:7443" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		asked.Add(1)
		there, err := net.Dial("tcp", f.Address)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer there.Close()
		here, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer here.Close()
		_, _ = io.WriteString(here, "HTTP/1.1 200 Connection established\r\n\r\n")
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = io.Copy(there, buffered)
			_ = there.Close()
		}()
		_, _ = io.Copy(here, there)
		_ = here.Close()
		<-done
	}))
	defer proxy.Close()
	defer proxy.CloseClientConnections()
	t.Setenv("HTTPS_PROXY", proxy.URL)
	t.Setenv("NO_PROXY", "")
	f.SetPayload(1, bash(1, "echo through"))
	spawn(t, f, filepath.Join(t.TempDir(), "data"), "--server", "control-plane.invalid:7443")
	s := f.Next()
	s.Welcome(period, forever)
	run(s, one)
	require.Contains(t, f.WholeTrace(1, s.Finished(one)), "through\n")
	require.GreaterOrEqual(t, asked.Load(), int64(2), "to enrol, and for the session")
}
