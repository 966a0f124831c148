//go:build unix

package git_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/cgi"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/internal/testbed"
	"github.com/switchyard-ci/switchyard/job/git"
)

// serveVariable makes this test's program a server of the repositories in the folder that it names: what a server costs must
// not be counted among this process's children.
const serveVariable = "SWITCHYARD_TEST_SERVES_GIT"

func TestMain(m *testing.M) {
	root := os.Getenv(serveVariable)
	if root == "" {
		os.Exit(m.Run())
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	if _, err := fmt.Fprintln(os.Stdout, "http://"+l.Addr().String()); err != nil {
		panic(err)
	}
	program, err := exec.LookPath("git")
	if err != nil {
		panic(err)
	}
	backend := &cgi.Handler{
		Path: program, Args: []string{"http-backend"}, Env: []string{"GIT_PROJECT_ROOT=" + root, "GIT_HTTP_EXPORT_ALL=1"},
	}
	panic(http.Serve(l, backend)) // #nosec G114 -- it lives as long as the benchmark
}

func serveApart(b *testing.B, root string) string {
	b.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), serveVariable+"="+root)
	out, err := c.StdoutPipe()
	require.NoError(b, err)
	require.NoError(b, c.Start())
	b.Cleanup(func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	})
	url, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(b, err)
	return strings.TrimSpace(url)
}

// childCPU is what the children of this process, and theirs, have used up to now.
func childCPU(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkFetch is get_sources of a repository of 650 KB in 100 files: cpu-ms is the time of all processes of git, and the
// least of it says most on a machine that does other things too.
func BenchmarkFetch(b *testing.B) {
	testbed.Need(b, testbed.Git)
	s := &server{root: b.TempDir()}
	s.url = serveApart(b, s.root)
	r := s.repository(b, "group/project", "sha1")
	words := rand.New(rand.NewPCG(1, 2))
	for i := range 100 {
		var text strings.Builder
		for text.Len() < 6500 {
			fmt.Fprintf(&text, "%x ", words.Uint32())
		}
		r.write(b, fmt.Sprintf("package%d/file%d", i%10, i), text.String())
	}
	for _, text := range []string{"one", "two", "three"} {
		r.commit(b, text)
	}
	measure := func(name string, before func(p *project)) {
		b.Run(name, func(b *testing.B) {
			p := newProject(b, r)
			p.Depth = 20
			p.get()
			var cpu, least time.Duration
			for b.Loop() {
				b.StopTimer()
				before(p)
				start := childCPU(b)
				b.StartTimer()
				p.get()
				spent := childCPU(b) - start
				if cpu += spent; least == 0 || spent < least {
					least = spent
				}
			}
			b.ReportMetric(float64(cpu.Microseconds())/1000/float64(b.N), "cpu-ms/op")
			b.ReportMetric(float64(least.Microseconds())/1000, "least-cpu-ms")
			b.ReportMetric(float64(len(p.argv)), "commands/op")
		})
	}
	measure("Fresh", func(p *project) { require.NoError(b, os.RemoveAll(p.Dir)) })
	measure("Clone", func(p *project) { p.Strategy = git.Clone })
	i := 0
	measure("Warm", func(p *project) {
		i++
		r.write(b, "file", fmt.Sprint(i))
		r.commit(b, fmt.Sprint(i))
		p.wants(r)
	})
	measure("Same", func(p *project) {
		require.NoError(b, os.WriteFile(filepath.Join(p.Dir, "untracked"), nil, 0o600))
	})
}
