//go:build unix

package git_test

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/job/git"
)

// onDisk lists the files below roots that hold one of the secrets.
func onDisk(t *testing.T, secrets []string, roots ...string) []string {
	t.Helper()
	var found []string
	for _, root := range roots {
		err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil
			}
			if err == nil && d.Type().IsRegular() {
				b, err := os.ReadFile(path)
				if err != nil && !os.IsNotExist(err) {
					return err
				}
				for _, secret := range secrets {
					if strings.Contains(string(b), secret) {
						found = append(found, path)
					}
				}
			}
			return err
		})
		require.NoError(t, err)
	}
	return found
}

// inProcesses lists the programs whose arguments hold one of the secrets, and those that have it in their environment.
func inProcesses(secrets []string) (arguments, environment []string) {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		environ, _ := os.ReadFile(filepath.Join(dir, "environ"))
		for _, secret := range secrets {
			if strings.Contains(string(cmdline), secret) {
				arguments = append(arguments, string(cmdline))
			}
			if strings.Contains(string(environ), secret) {
				program, _, _ := strings.Cut(string(cmdline), "\x00")
				environment = append(environment, program)
			}
		}
	}
	return arguments, environment
}

func TestSecretsAreNowhere(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("/proc is Linux's")
	}
	main, _, _ := withSubmodules(t, "sha1")
	p := newProject(t, main)
	p.Submodules, p.Checkout = git.RecursiveSubmodules, true
	home := strings.TrimPrefix(p.Environment[1], "HOME=")
	headers := p.Secrets()
	require.Len(t, headers, 2, "what is masked in the trace: the header and the password")
	headers = headers[:1]
	secrets := p.Secrets()

	fetches := 0
	var disk, arguments, environment []string
	main.locked(func() {
		main.serving = func() {
			main.locked(func() {
				fetches++
				disk = append(disk, onDisk(t, secrets, p.Dir, p.Temp, home)...)
				a, _ := inProcesses(secrets)
				_, e := inProcesses(headers)
				arguments, environment = append(arguments, a...), append(environment, e...)
			})
		}
	})
	p.get()
	main.locked(func() { main.serving = nil })
	require.Greater(t, fetches, 3)
	require.Empty(t, disk)
	require.Empty(t, arguments)
	require.NotEmpty(t, environment, "git that fetches has the header")
	for _, program := range environment {
		require.Regexp(t, `(^|/)(git|git-[a-z-]+|sh)$`, program)
	}
	require.Empty(t, onDisk(t, secrets, p.Dir, p.Temp, home))
	require.Zero(t, main.vain(), "no request is made in vain")
	require.NotContains(t, strings.Join(p.argv, "\n"), token)
	for i, argv := range p.argv {
		has := strings.Contains(strings.Join(p.envs[i], "\n"), headers[0])
		require.Equal(t, strings.Contains(argv, " fetch ") || strings.Contains(argv, " update "), has, argv)
	}
	for _, secret := range secrets {
		require.NotContains(t, p.said, secret)
	}
	require.Equal(t, main.url, run(t, p.Dir, "remote", "get-url", "origin"))

	// The user's script has the token where GitLab puts it and nowhere else, and git works with that.
	for line := range strings.SplitSeq(p.script("env"), "\n") {
		for _, secret := range secrets {
			require.False(t, strings.Contains(line, secret) && !strings.HasPrefix(line, "CI_JOB_TOKEN="), line)
		}
	}
	run(t, main.path, "branch", "other", main.shas[0])
	p.script("git fetch origin other; git -C lib fetch origin; git -C lib/deep fetch origin; git submodule update --remote lib")
	require.Equal(t, main.shas[0], run(t, p.Dir, "rev-parse", "FETCH_HEAD"))
	require.Empty(t, onDisk(t, secrets, p.Dir, p.Temp, home))
}

func TestTheCloneURL(t *testing.T) {
	u := newUpstream(t, "sha1")
	for name, test := range map[string]struct{ url, clone, project, want string }{
		"host": {"http://gitlab-ci-token:" + "secret-of-the-job@gitlab.invalid/group/project.git", u.server.url, "", u.url},
		"path": {
			"http://gitlab-ci-token:secret-of-the-job@gitlab.invalid/gitlab/group/project.git", u.server.url + "/", "group/project",
			u.url,
		},
		"deeper": {"http://gitlab.invalid/group/project.git", "https://h:8/git/lab/", "group/project", "https://h:8/git/lab/group/project.git"},
		"ssh":    {"http://gitlab.invalid/group/project.git", "ssh://h:2222", "", "ssh://git@h:2222/group/project.git"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newProject(t, u)
			p.URL, p.CloneURL, p.Server.ProjectPath = test.url, test.clone, test.project
			if strings.Contains(p.URL, "secret-of-the-job") {
				p.URL = strings.Replace(withToken(u.url), strings.TrimPrefix(u.server.url, "http://"), "gitlab.invalid", 1)
				p.get()
				require.Equal(t, "three", p.file())
				require.Equal(t, test.want, run(t, p.Dir, "remote", "get-url", "origin"))
				return
			}
			p.Run = func(_ context.Context, _, _ []string, _ string) (int, []byte, error) { return 1, nil, nil }
			require.Error(t, p.Get(t.Context()))
			require.Equal(t, test.want, run(t, p.Dir, "remote", "get-url", "origin"))
		})
	}
	p := newProject(t, u)
	p.CloneURL = "ftp://h"
	require.EqualError(t, p.Check(), "clone_url: it must be an http, https or ssh URL with a host")
}

func TestTheCorrelationIsForThisGitLab(t *testing.T) {
	main, _, other := withSubmodules(t, "sha1")
	p := newProject(t, main)
	p.Submodules, p.CorrelationID = git.NormalSubmodules, "01HXYZ"
	p.get()
	headers, _ := main.seen()
	for _, h := range headers {
		require.Empty(t, h.Get("X-Gitaly-Correlation-ID"), "the feature flag is off")
	}
	p.Strategy, p.Correlate = git.Clone, true
	p.get()
	require.Contains(t, p.notices, "Gitaly correlation ID: 01HXYZ")
	headers, _ = main.seen()
	require.NotEmpty(t, headers)
	for _, h := range headers {
		require.Equal(t, "01HXYZ", h.Get("X-Gitaly-Correlation-ID"))
		require.Equal(t, "switchyard-job test", h.Get("User-Agent"))
	}
	headers, _ = other.seen()
	require.NotEmpty(t, headers)
	for _, h := range headers {
		require.Empty(t, h.Get("X-Gitaly-Correlation-ID"))
		require.Empty(t, h.Get("Authorization"))
	}
}

func TestAPrivateCA(t *testing.T) {
	u := newUpstream(t, "sha1")
	front := httptest.NewUnstartedServer(u.handler)
	front.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	front.StartTLS()
	defer front.Close()
	p := newProject(t, u)
	p.URL = strings.Replace(p.URL, u.server.url, front.URL, 1)
	p.URL = strings.Replace(withToken(u.url), u.server.url[len("http://"):], front.URL[len("https://"):], 1)
	p.URL = strings.Replace(p.URL, "http://", "https://", 1)
	var exit *git.ExitError
	require.ErrorAs(t, p.Get(t.Context()), &exit)
	require.Contains(t, p.said, "certificate")

	ca := filepath.Join(t.TempDir(), "ca.pem")
	require.NoError(t, os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw}), 0o600))
	// A certificate that the job names for other servers must not stand in the way.
	p.CAFile, p.Environment = ca, append(p.Environment, "GIT_SSL_CAINFO="+os.DevNull)
	p.get()
	require.Equal(t, "three", p.file())
	p.Environment = p.Environment[:len(p.Environment)-1]
	p.script("git fetch origin main")
}
