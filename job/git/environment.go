package git

import (
	"slices"
	"strconv"
	"strings"
)

// elsewhere are variables that would lead git to another repository than the project's.
var elsewhere = []string{
	"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_COMMON_DIR",
	"GIT_NAMESPACE", "GIT_PREFIX",
}

// parameters is the variable by which git passes on to its children what -c gave it. Unlike GIT_CONFIG_COUNT git has it
// before 2.31, and git submodule, while it was a shell script, kept it and lost the other.
const parameters = "GIT_CONFIG_PARAMETERS"

// environment is git's environment: the job's, without questions to anyone, with configuration that only this command and
// its children get.
func (s *Sources) environment(config ...[2]string) []string {
	own := map[string]string{
		"GIT_TERMINAL_PROMPT": "0",
		"GCM_INTERACTIVE":     "Never",
		"GIT_TEMPLATE_DIR":    "", // submodules need no examples of hooks
		// What an earlier job replaced is not what this one wants.
		"GIT_NO_REPLACE_OBJECTS": "1",
		"GIT_DEFAULT_REF_FORMAT": "files",
		"LC_ALL":                 "C", // damaged reads what git says
	}
	if !s.SkipLFS {
		own["GIT_LFS_SKIP_SMUDGE"] = "1" // git lfs pull does the same for all files together
	}
	safe := s.Dir
	if s.submodules() || s.SharedFiles {
		safe = "*"
	}
	config = slices.Concat([][2]string{{"safe.directory", safe}}, config)
	if s.UserAgent != "" {
		config = append(config, [2]string{"http.userAgent", s.UserAgent})
	}

	env := make([]string, 0, len(s.Environment)+len(own)+1)
	var given string
	for _, kv := range s.Environment {
		key, value, _ := strings.Cut(kv, "=")
		switch _, ours := own[key]; {
		case key == parameters:
			given = value + " "
			continue
		case key == "GIT_SSL_CAINFO" && s.CAFile != "":
			// As a variable it would win over the certificate of this GitLab; as configuration it is for all other servers.
			config = append(config, [2]string{"http.sslCAInfo", value})
			continue
		case ours || slices.Contains(elsewhere, key):
			continue
		}
		env = append(env, kv)
	}
	var quoted []string
	for _, kv := range config {
		quoted = append(quoted, "'"+strings.NewReplacer("'", `'\''`, "!", `'\!'`).Replace(kv[0]+"="+kv[1])+"'")
	}
	own[parameters] = given + strings.Join(quoted, " ")
	theirs := len(env)
	for key, value := range own {
		env = append(env, key+"="+value)
	}
	slices.Sort(env[theirs:])
	return env
}

// ScriptEnvironment returns variables, as pairs of name and value, that the user's scripts need where SharedFiles is set,
// and nothing elsewhere: git would not touch a repository of another user. The commands of git from 2.38 on take them; for
// older ones a script has to say `git config --global --add safe.directory "$CI_PROJECT_DIR"`, as with gitlab-runner.
// All folders are safe, because what caches, artifacts and submodules bring is of the other user too, and the
// environment is the job's own.
func (s *Sources) ScriptEnvironment() [][2]string {
	if !s.SharedFiles {
		return nil
	}
	first := 0
	for _, kv := range s.Environment {
		if text, ok := strings.CutPrefix(kv, "GIT_CONFIG_COUNT="); ok {
			if n, err := strconv.Atoi(text); err == nil && n > 0 && n < 1000 {
				first = n
			}
		}
	}
	n := strconv.Itoa(first)
	return [][2]string{
		{"GIT_CONFIG_COUNT", strconv.Itoa(first + 1)},
		{"GIT_CONFIG_KEY_" + n, "safe.directory"},
		{"GIT_CONFIG_VALUE_" + n, "*"},
	}
}
