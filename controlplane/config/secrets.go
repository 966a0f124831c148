package config

import (
	"fmt"
	"os"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

// secret is a kind of secret that a file may hold, name a file of, or name an environment variable of.
type secret struct {
	key     string // of the inline form; with _file and _env those of the others
	noun    string // what it is, for example "the token"
	whole   string // the same with its owner, for example "the runner's token"
	hint    string // what it looks like
	example string // of a variable's name
	most    int    // bytes
}

var (
	runnerToken = secret{
		"token", "the token", "the runner's token", "a runner's token is one word; GitLab shows it once, when the runner is created", "RUNNER_TOKEN", 1024,
	}
	accessKey = secret{
		"access_key", "the access key", "the object store's access key", "an access key is one word, as the object store shows it", "AWS_ACCESS_KEY_ID", 1024,
	}
	secretKey = secret{
		"secret_key", "the secret key", "the object store's secret key", "a secret key is one word, as the object store shows it once", "AWS_SECRET_ACCESS_KEY", 1024,
	}
	sessionToken = secret{
		"session_token", "the session token", "the object store's session token", "a session token is one word", "AWS_SESSION_TOKEN", 8192,
	}
)

// secret adds the three keys of a secret to those of a mapping; to is given its value.
func (r *reader) secret(s secret, known yamlform.Fields, to func(string)) {
	known[s.key] = func(n *yaml.Node, p string) { to(r.secretInline(s, n, p)) }
	known[s.key+"_file"] = func(n *yaml.Node, p string) { to(r.secretFile(s, n, p)) }
	known[s.key+"_env"] = func(n *yaml.Node, p string) { to(r.secretEnv(s, n, p)) }
}

// given returns which of a secret's keys a mapping has, and complains about more than one.
func (r *reader) given(s secret, mapping *yaml.Node, path string) []string {
	var given []string
	for _, key := range []string{s.key, s.key + "_file", s.key + "_env"} {
		if yamlform.Value(mapping, key) != nil {
			given = append(given, key)
		}
	}
	if len(given) > 1 {
		r.Problem(mapping, path, strings.Join(given, " and ")+" are both set", "keep one of them")
	}
	return given
}

func (r *reader) secretInline(s secret, n *yaml.Node, path string) string {
	text, ok := r.Text(n, path)
	if !ok {
		return ""
	}
	r.inline(n, s)
	return r.checked(s, n, path, s.noun, text)
}

// inline notes that the file itself holds a secret.
func (r *reader) inline(n *yaml.Node, s secret) {
	if r.inlineSecret == nil {
		r.inlineSecret, r.inlineNoun = yamlform.Resolve(n), s.noun
	}
}

func (r *reader) secretFile(s secret, n *yaml.Node, path string) string {
	text, ok := r.Text(n, path)
	if !ok {
		return ""
	}
	file := r.path(text)
	data, info, err := readFile(file)
	if err != nil {
		r.Problem(yamlform.Resolve(n), path, fmt.Sprintf("%s cannot be read: %v", file, err), fmt.Sprintf("put %s into it, with mode 600 and the owner of this process", s.whole))
		return ""
	}
	if info.Mode().Perm()&0o077 != 0 {
		r.Warn(yamlform.Resolve(n), path, fmt.Sprintf("others can read %s (mode %#o)", file, info.Mode().Perm()), "chmod 600 "+file)
	}
	return r.checked(s, n, path, file, string(data))
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func (r *reader) secretEnv(s secret, n *yaml.Node, path string) string {
	name, ok := r.Text(n, path)
	if !ok {
		return ""
	}
	if !envName.MatchString(name) {
		// It is not repeated: it may well be the secret itself.
		r.Problem(yamlform.Resolve(n), path, "is not the name of an environment variable", fmt.Sprintf("name the variable that holds %s, for example %s", s.noun, s.example))
		return ""
	}
	value, ok := os.LookupEnv(name)
	if !ok {
		r.Problem(yamlform.Resolve(n), path, fmt.Sprintf("the environment variable %s is not set", name), fmt.Sprintf("set it to %s, or use %s_file", s.whole, s.key))
		return ""
	}
	return r.checked(s, n, path, "the environment variable "+name, value)
}

// checked checks a secret and never shows it.
func (r *reader) checked(s secret, n *yaml.Node, path, where, text string) string {
	n = yamlform.Resolve(n)
	word := strings.TrimSpace(text)
	switch {
	case word == "":
		r.Problem(n, path, where+" is empty", s.hint)
	case len(word) > s.most:
		r.Problem(n, path, fmt.Sprintf("%s has more than %d bytes", where, s.most), s.hint)
	case strings.ContainsAny(word, "\r\n"):
		r.Problem(n, path, where+" has more than one line", s.hint)
	case strings.ContainsFunc(word, func(c rune) bool { return c <= ' ' || c > '~' }):
		r.Problem(n, path, where+" has spaces or special characters in it", s.hint)
	case s.key == runnerToken.key && strings.HasPrefix(word, "glpat-"):
		r.Problem(n, path, where+" holds a personal access token (glpat-)", "a runner needs its own, which begins with glrt-")
	default:
		return word
	}
	return ""
}
