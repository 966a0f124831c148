//go:build unix

package git

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

const nonblock = syscall.O_NONBLOCK

// Clean removes from the repository in dir, if there is one, what an earlier job may have left: locks of git commands that
// were killed, hooks and configuration.
func Clean(dir string) error {
	repository := filepath.Join(dir, ".git")
	info, err := os.Lstat(repository)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return nil
	}
	if err != nil {
		return fmt.Errorf("clean the repository: %w", err)
	}
	for _, name := range []string{"index.lock", "shallow.lock", "HEAD.lock", "packed-refs.lock", "config.lock", "config", "hooks"} {
		if err := os.RemoveAll(filepath.Join(repository, name)); err != nil {
			return fmt.Errorf("clean the repository: %w", err)
		}
	}
	err = filepath.WalkDir(filepath.Join(repository, "refs"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".lock") {
			return nil //nolint:nilerr // what cannot be looked at is git's to complain about
		}
		return os.Remove(path)
	})
	if err != nil {
		return fmt.Errorf("clean the repository: %w", err)
	}
	return nil
}

// helper answers git's question for a password with the job's own token.
const helper = `!f() { if test "$1" = get; then echo "password=$CI_JOB_TOKEN"; fi; }; f`

// writeTemplate writes the folder that git init copies configuration from, and returns its path.
func (s *Sources) writeTemplate(r remote) (string, error) {
	template := filepath.Join(s.Temp, "git-template")
	var c strings.Builder
	section := func(name, sub string, values ...[2]string) {
		c.WriteString("[" + name)
		if sub != "" {
			c.WriteString(` "` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(sub) + `"`)
		}
		c.WriteString("]\n")
		for _, v := range values {
			c.WriteString("\t" + v[0] + ` = "` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(v[1]) + "\"\n")
		}
	}
	section("init", "", [2]string{"defaultBranch", "none"})
	section("fetch", "", [2]string{"recurseSubmodules", "false"})
	section("credential", "", [2]string{"interactive", "never"})
	section("gc", "", [2]string{"autoDetach", "false"})
	if s.BundleURIs {
		section("transfer", "", [2]string{"bundleURI", "true"})
	}
	section("remote", "origin", [2]string{"url", r.url}, [2]string{"fetch", "+refs/heads/*:refs/remotes/origin/*"})
	if r.host != "" {
		section("credential", r.host, [2]string{"helper", ""}, [2]string{"helper", helper}, [2]string{"username", r.user})
		if s.CAFile != "" {
			section("http", r.host, [2]string{"sslCAInfo", s.CAFile})
		}
	}
	err := os.RemoveAll(template)
	if err == nil {
		err = os.MkdirAll(template, 0o700)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(template, "config"), []byte(c.String()), 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("write git's configuration: %w", err)
	}
	return template, nil
}

// environment is git's environment: the job's, without questions to anyone, with the configuration that only these
// commands get. A GIT_CONFIG_COUNT of the job's own stays in force.
func (s *Sources) environment(secrets [][2]string) []string {
	config := append([][2]string{{"safe.directory", s.Dir}}, secrets...)
	if s.UserAgent != "" {
		config = append(config, [2]string{"http.userAgent", s.UserAgent})
	}
	own := map[string]string{
		"GIT_TERMINAL_PROMPT": "0",
		"GCM_INTERACTIVE":     "Never",
		"GIT_LFS_SKIP_SMUDGE": "1",
		"LC_ALL":              "C", // damaged reads what git says
	}
	first := 0
	for _, kv := range s.Environment {
		if s.CAFile != "" && strings.HasPrefix(kv, "GIT_SSL_CAINFO=") {
			own["GIT_SSL_CAINFO"] = s.CAFile // it would win over the configuration
		}
		if text, ok := strings.CutPrefix(kv, "GIT_CONFIG_COUNT="); ok {
			if n, err := strconv.Atoi(text); err == nil && n > 0 && n < 1000 {
				first = n
			}
		}
	}
	for i, kv := range config {
		own["GIT_CONFIG_KEY_"+strconv.Itoa(first+i)] = kv[0]
		own["GIT_CONFIG_VALUE_"+strconv.Itoa(first+i)] = kv[1]
	}
	own["GIT_CONFIG_COUNT"] = strconv.Itoa(first + len(config))

	env := make([]string, 0, len(s.Environment)+len(own))
	for _, kv := range s.Environment {
		key, _, _ := strings.Cut(kv, "=")
		if _, ours := own[key]; !ours {
			env = append(env, kv)
		}
	}
	for key, value := range own {
		env = append(env, key+"="+value)
	}
	slices.Sort(env[len(env)-len(own):])
	return env
}

// removeTree removes a folder with all that is in it, read-only folders included.
func removeTree(path string) error {
	err := os.RemoveAll(path)
	if err == nil || !errors.Is(err, fs.ErrPermission) {
		return err
	}
	_ = filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			_ = os.Chmod(path, 0o700) // #nosec G302 -- it is about to be removed
		}
		return nil
	})
	return os.RemoveAll(path)
}
