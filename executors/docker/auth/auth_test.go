package auth

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// docker is a configuration with a password for each registry; the user has the registry's name.
func docker(t *testing.T, passwords map[string]string, more map[string]any) string {
	t.Helper()
	auths := make(map[string]any)
	for name, password := range passwords {
		auths[name] = map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte("user:" + password))}
	}
	file := map[string]any{"auths": auths}
	maps.Copy(file, more)
	text, err := json.Marshal(file)
	require.NoError(t, err)
	return string(text)
}

// find returns the password that an image gets, where it is from, and the warnings.
func find(t *testing.T, s Sources, image string) (password, source, warnings string) {
	t.Helper()
	var w strings.Builder
	found, err := s.Find(t.Context(), image, &w)
	require.NoError(t, err)
	if found == nil {
		return "", "", w.String()
	}
	encoded, err := found.Encode()
	require.NoError(t, err)
	decoded, err := authconfig.Decode(encoded)
	require.NoError(t, err)
	return decoded.Password + decoded.IdentityToken, found.Source, w.String()
}

func TestNamesOfRegistries(t *testing.T) {
	for _, row := range []struct {
		registry, image string
		match           bool
	}{
		{"docker.io", "ruby", true},
		{"docker.io", "library/ruby:3", true},
		{"docker.io", "docker.io/group/ruby", true},
		{"https://index.docker.io/v1/", "ruby", true},
		{"index.docker.io", "group/ruby@sha256:" + strings.Repeat("a", 64), true},
		{"index.docker.io/v1/", "index.docker.io/group/ruby", true},
		{"docker.io/group", "group/ruby", true},
		{"docker.io/ruby", "ruby:3", true},
		{"docker.io/other", "group/ruby", false},
		{"https://registry.example.com", "ruby", false},
		{"registry.example.com", "registry.example.com/a/b:1", true},
		{"REGISTRY.example.com", "registry.example.com/a", true},
		{"HTTPS://registry.example.com/v2/", "registry.example.com/a/b", true},
		{"registry.example.com:5000", "registry.example.com:5000/a", true},
		{"registry.example.com:5000", "registry.example.com/a", false},
		{"registry.example.com", "registry.example.com:5000/a", false},
		{"registry.example.com/a", "registry.example.com/a/b/c:1", true},
		{"registry.example.com/a/", "registry.example.com/a/b", true},
		{"registry.example.com/a/b:1", "registry.example.com/a/b:2", true},
		{"registry.example.com/a", "registry.example.com/ab/c", false},
		{"localhost:5000/a", "localhost:5000/a", true},
		{"localhost", "localhost/a", true},
	} {
		password, _, warnings := find(t, Sources{Variable: docker(t, map[string]string{row.registry: "secret"}, nil)}, row.image)
		require.Equal(t, row.match, password == "secret", "%s for %s", row.registry, row.image)
		require.Empty(t, warnings)
	}
	_, err := Sources{}.Find(t.Context(), "Ruby::", &strings.Builder{})
	require.ErrorContains(t, err, `image "Ruby::": invalid reference format`)
}

func home(t *testing.T, name, text string) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	return dir
}

func TestTheLongestPartCountsThenTheFirstSource(t *testing.T) {
	s := Sources{
		Variable: docker(t, map[string]string{"r.test": "variable"}, nil),
		Home:     home(t, ".docker/config.json", docker(t, map[string]string{"r.test": "home", "r.test/group": "home group", "h.test": "home"}, nil)),
		Job: []runnerapi.Credentials{
			{Type: "registry", URL: "r.test", Username: "u", Password: "job"},
			{Type: "registry", URL: "j.test:5050", Username: "u", Password: "job"},
			{Type: "other", URL: "o.test", Username: "u", Password: "job"},
		},
	}
	for _, row := range [][3]string{
		{"r.test/a", "variable", "$DOCKER_AUTH_CONFIG"},
		{"r.test/group/a", "home group", filepath.Join(s.Home, ".docker", "config.json")},
		{"h.test/a", "home", filepath.Join(s.Home, ".docker", "config.json")},
		{"j.test:5050/a", "job", "job payload (GitLab Registry)"},
		{"o.test/a", "", ""},
		{"ruby", "", ""},
	} {
		password, source, warnings := find(t, s, row[0])
		require.Equal(t, row[1], password, row[0])
		require.Equal(t, row[2], source, row[0])
		require.Empty(t, warnings)
	}

	old := home(t, ".dockercfg", `{"old.test":{"auth":"`+base64.StdEncoding.EncodeToString([]byte("u:old"))+`"}}`)
	password, source, _ := find(t, Sources{Home: old}, "old.test/a")
	require.Equal(t, "old", password)
	require.Equal(t, filepath.Join(old, ".dockercfg"), source)
	password, _, warnings := find(t, Sources{Home: t.TempDir()}, "old.test/a")
	require.Empty(t, password+warnings)
}

func TestASourceThatCannotBeReadIsSaidAndLeftOut(t *testing.T) {
	job := []runnerapi.Credentials{{Type: "registry", URL: "r.test", Username: "u", Password: "job"}}
	for text, want := range map[string]string{
		`{"auths":`: "WARNING: credentials from $DOCKER_AUTH_CONFIG cannot be read: unexpected EOF; use the form of ~/.docker/config.json\n",
		`{"auths":{"r.test":{"auth":"c2VjcmV0"}}}`: "WARNING: credentials from $DOCKER_AUTH_CONFIG cannot be read: invalid auth configuration file; use the form of ~/.docker/config.json\n",
		`[]`: "cannot be read: json: cannot unmarshal array",
	} {
		password, _, warnings := find(t, Sources{Variable: text, Job: job}, "r.test/a")
		require.Equal(t, "job", password)
		require.Contains(t, warnings, want)
		require.NotContains(t, warnings, "c2VjcmV0")
	}
	large := home(t, ".docker/config.json", strings.Repeat(" ", maxFile+1))
	password, _, warnings := find(t, Sources{Home: large, Job: job}, "r.test/a")
	require.Equal(t, "job", password)
	require.Contains(t, warnings, "is longer than 1048576 bytes")
	// An entry without a secret is none.
	password, _, _ = find(t, Sources{Variable: `{"auths":{"r.test":{}}}`, Job: job}, "r.test/a")
	require.Equal(t, "job", password)
}

// helper puts a credential helper into a folder and returns an environment whose PATH is that folder.
func helper(t *testing.T, name, script string) []string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script), 0o755))
	return []string{"PATH=/nowhere:" + dir + ":/usr/bin:/bin", "MARK=here"}
}

const answers = `
case "$1" in
list) echo '{"https://s.test":"u", "token.test":"u"}';;
get)
	read server || test -n "$server"
	case "$server" in
	missing.test) echo "credentials not found in native keychain"; exit 1;;
	token.test) echo '{"ServerURL":"token.test","Username":"<token>","Secret":"identity"}';;
	*) echo '{"Username":"u","Secret":"'"$MARK $server"'"}';;
	esac;;
esac`

func TestCredentialHelpers(t *testing.T) {
	s := Sources{
		Variable: docker(t, map[string]string{"s.test": "file", "f.test": "file", "h.test": "file", "missing.test": "file"}, map[string]any{
			"credsStore": "it", "credHelpers": map[string]string{"h.test": "it", "missing.test": "it"},
		}),
		Environ: helper(t, "it", answers),
	}
	for image, want := range map[string]string{
		"h.test/a": "here h.test", "s.test/a": "here https://s.test", "f.test/a": "file", "token.test/a": "identity", "missing.test/a": "file", "x.test/a": "",
	} {
		password, _, warnings := find(t, s, image)
		require.Equal(t, want, password, image)
		require.Empty(t, warnings)
	}
}

func TestHelpersThatFailAreSaidWithoutTheirOutput(t *testing.T) {
	variable := docker(t, map[string]string{"s.test": "file"}, map[string]any{"credsStore": "bad"})
	for script, want := range map[string]string{
		"echo hidden; exit 3":       "docker-credential-bad list: exit status 3",
		"echo hidden":               "docker-credential-bad list: its answer cannot be read",
		"head -c 2000000 /dev/zero": "docker-credential-bad list: ",
	} {
		password, _, warnings := find(t, Sources{Variable: variable, Environ: helper(t, "bad", script)}, "s.test/a/b")
		require.Equal(t, "file", password)
		require.Equal(t, 1, strings.Count(warnings, "WARNING: credentials from $DOCKER_AUTH_CONFIG: "+want), warnings)
		require.NotContains(t, warnings, "hidden")
	}
	_, _, warnings := find(t, Sources{Variable: variable, Environ: []string{"PATH=" + t.TempDir()}}, "s.test/a")
	require.Contains(t, warnings, "docker-credential-bad list: it is not in the agent's PATH")
	for _, name := range []string{"../bad", "a/b", "..", `a\b`} {
		for _, more := range []map[string]any{{"credsStore": name}, {"credHelpers": map[string]string{"s.test": name}}} {
			_, err := Sources{Variable: docker(t, nil, more)}.Find(t.Context(), "s.test/a", &strings.Builder{})
			require.ErrorContains(t, err, "path traversal is not allowed")
		}
	}
}

func TestSecretsAreKnownAndNotShown(t *testing.T) {
	found, err := Sources{Job: []runnerapi.Credentials{{Type: "registry", URL: "r.test", Username: "u", Password: "pass?word>"}}}.
		Find(t.Context(), "r.test/a", &strings.Builder{})
	require.NoError(t, err)
	encoded, err := found.Encode()
	require.NoError(t, err)
	require.Subset(t, found.Secrets(), []string{
		"pass?word>", base64.StdEncoding.EncodeToString([]byte("u:pass?word>")), base64.StdEncoding.EncodeToString([]byte("pass?word>")), encoded,
	})
	for _, format := range []string{"%v", "%+v", "%#v", "%s"} {
		require.Equal(t, "credentials from job payload (GitLab Registry)", fmt.Sprintf(format, found))
	}
	require.Equal(t, found.String(), found.LogValue().String())
	var none *Credential
	encoded, err = none.Encode()
	require.NoError(t, err)
	require.Empty(t, encoded)
	require.Empty(t, none.Secrets())
	require.Equal(t, "no credentials", none.String())
}
