package git

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSSHAddressesOfThisGitLab(t *testing.T) {
	const project = "https://gitlab.example/group/project.git"
	for name, test := range map[string]struct {
		url, clone string
		server     Server
		base       string
		addresses  []string
	}{
		"host": {
			url: project, server: Server{Host: "gitlab.example", SSHPort: "22"}, base: "https://gitlab.example",
			addresses: []string{"git@gitlab.example:", "ssh://git@gitlab.example/", "ssh://git@gitlab.example:22/"},
		},
		"another host for SSH": {
			url: project, server: Server{Host: "gitlab.example", SSHHost: "ssh.example"}, base: "https://gitlab.example",
			addresses: []string{"git@ssh.example:", "ssh://git@ssh.example/", "ssh://git@ssh.example:22/"},
		},
		"another port": {
			url: project, server: Server{Host: "gitlab.example", SSHPort: "2222"}, base: "https://gitlab.example",
			addresses: []string{"ssh://git@gitlab.example:2222/"},
		},
		"nothing known": {
			url: project, base: "https://gitlab.example",
			addresses: []string{"git@gitlab.example:", "ssh://git@gitlab.example/", "ssh://git@gitlab.example:22/"},
		},
		"below a path": {
			url: "https://h:8443/gitlab/group/project.git", server: Server{URL: "https://h:8443/gitlab/", Host: "h"},
			base:      "https://h:8443/gitlab",
			addresses: []string{"git@h:", "ssh://git@h/", "ssh://git@h:22/"},
		},
		"another server's URL": {
			url: project, server: Server{URL: "https://evil.example/x", Host: "gitlab.example"}, base: "https://gitlab.example",
			addresses: []string{"git@gitlab.example:", "ssh://git@gitlab.example/", "ssh://git@gitlab.example:22/"},
		},
		"clone URL": {
			url: project, clone: "http://inside:81/a=b/", server: Server{URL: "https://gitlab.example", Host: "gitlab.example"},
			base:      "http://inside:81/a%3Db",
			addresses: []string{"git@gitlab.example:", "ssh://git@gitlab.example/", "ssh://git@gitlab.example:22/"},
		},
		"no HTTP": {url: "ssh://git@h/p.git"},
	} {
		s := Sources{URL: test.url, CloneURL: test.clone, Options: Options{ForceHTTPS: true, Server: test.server}}
		r, err := s.remote()
		require.NoError(t, err)
		var want [][2]string
		for _, address := range test.addresses {
			want = append(want, [2]string{"url." + test.base + "/.insteadOf", address})
		}
		require.Equal(t, want, r.rewrites(), name)
	}
	s := Sources{URL: project, Options: Options{Server: Server{Host: "h"}}}
	r, err := s.remote()
	require.NoError(t, err)
	require.Empty(t, r.rewrites(), "nobody asked for it")
}

func TestSecretsAreForTheHostsOfThisGitLab(t *testing.T) {
	s := Sources{URL: "https://u:long-password@gitlab.example/g/p.git", CloneURL: "http://inside:81", Token: "the-job-token"}
	r, err := s.remote()
	require.NoError(t, err)
	require.Equal(t, "http://inside:81/g/p.git", r.url)
	const header = "Authorization: Basic dTpsb25nLXBhc3N3b3Jk"
	require.Equal(t, [][2]string{
		{"http.http://inside:81/.extraHeader", header}, {"http.https://gitlab.example/.extraHeader", header},
	}, r.secrets())
	require.Equal(t, []string{"dTpsb25nLXBhc3N3b3Jk", "long-password"}, s.Secrets())

	s = Sources{URL: "https://gitlab.example/g/p.git", Token: "the-job-token"}
	require.Equal(t, []string{"Z2l0bGFiLWNpLXRva2VuOnRoZS1qb2ItdG9rZW4="}, s.Secrets(), "the token is known as a secret already")
	s = Sources{URL: "ssh://u:p@gitlab.example/g/p.git", Token: "the-job-token"}
	require.Empty(t, s.Secrets())
	r, err = s.remote()
	require.NoError(t, err)
	require.Empty(t, r.secrets())
}
