package config

import (
	"fmt"
	"os"
	"regexp"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxToken is the size of a token in bytes.
const maxToken = 1024

const tokenHint = "a runner's token is one word; GitLab shows it once, when the runner is created"

func (r *reader) tokenInline(n *yaml.Node, path string) string {
	text, ok := r.text(n, path)
	if !ok {
		return ""
	}
	if r.inlineToken == nil {
		r.inlineToken = resolve(n)
	}
	return r.token(n, path, "the token", text)
}

func (r *reader) tokenFile(n *yaml.Node, path string) string {
	text, ok := r.text(n, path)
	if !ok {
		return ""
	}
	file := r.path(text)
	data, info, err := readFile(file)
	if err != nil {
		r.problem(resolve(n), path, fmt.Sprintf("%s cannot be read: %v", file, err), "put the runner's token into it, with mode 600 and the owner of this process")
		return ""
	}
	if info.Mode().Perm()&0o077 != 0 {
		r.warn(resolve(n), path, fmt.Sprintf("others can read %s (mode %#o)", file, info.Mode().Perm()), "chmod 600 "+file)
	}
	return r.token(n, path, file, string(data))
}

var envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

func (r *reader) tokenEnv(n *yaml.Node, path string) string {
	name, ok := r.text(n, path)
	if !ok {
		return ""
	}
	if !envName.MatchString(name) {
		// It is not repeated: it may well be the token itself.
		r.problem(resolve(n), path, "is not the name of an environment variable", "name the variable that holds the token, for example RUNNER_TOKEN")
		return ""
	}
	value, ok := os.LookupEnv(name)
	if !ok {
		r.problem(resolve(n), path, fmt.Sprintf("the environment variable %s is not set", name), "set it to the runner's token, or use token_file")
		return ""
	}
	return r.token(n, path, "the environment variable "+name, value)
}

// token checks a token and never shows it.
func (r *reader) token(n *yaml.Node, path, where, text string) string {
	n = resolve(n)
	token := strings.TrimSpace(text)
	switch {
	case token == "":
		r.problem(n, path, where+" is empty", tokenHint)
	case len(token) > maxToken:
		r.problem(n, path, fmt.Sprintf("%s has more than %d bytes", where, maxToken), tokenHint)
	case strings.ContainsAny(token, "\r\n"):
		r.problem(n, path, where+" has more than one line", tokenHint)
	case strings.ContainsFunc(token, func(c rune) bool { return c <= ' ' || c > '~' }):
		r.problem(n, path, where+" has spaces or special characters in it", tokenHint)
	case strings.HasPrefix(token, "glpat-"):
		r.problem(n, path, where+" holds a personal access token (glpat-)", "a runner needs its own, which begins with glrt-")
	default:
		return token
	}
	return ""
}
