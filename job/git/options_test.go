package git_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/job/git"
)

func TestReadOptions(t *testing.T) {
	defaults := func() git.Options {
		return git.Options{
			Strategy: git.Fetch, Checkout: true, CleanFlags: []string{"-ffdx"}, FetchFlags: []string{"--prune", "--quiet"},
			Submodules: git.NoSubmodules, BundleURIs: true, Correlate: true,
		}
	}
	normal := func(o *git.Options) {
		o.Submodules, o.SubmoduleDepth, o.SubmodulePaths, o.SubmoduleUpdateFlags = git.NormalSubmodules, 20, []string{}, []string{}
	}
	type values map[string]string
	for name, test := range map[string]struct {
		values  values
		change  func(*git.Options)
		warning string
		err     string
	}{
		"nothing":    {},
		"strategy":   {values: values{"GIT_STRATEGY": "clone"}, change: func(o *git.Options) { o.Strategy = git.Clone }},
		"no sources": {values: values{"GIT_STRATEGY": "none"}, change: func(o *git.Options) { o.Strategy, o.Checkout = git.None, false }},
		"no sources, no submodules": {
			values: values{"GIT_STRATEGY": "empty", "GIT_SUBMODULE_STRATEGY": "whatever"},
			change: func(o *git.Options) { o.Strategy, o.Checkout = git.Empty, false },
		},
		"unknown strategy": {
			values:  values{"GIT_STRATEGY": "pull"},
			warning: "GIT_STRATEGY: expected either 'clone', 'fetch', 'none' or 'empty', got \"pull\", using default value 'fetch'",
		},
		"no checkout": {values: values{"GIT_CHECKOUT": "false"}, change: func(o *git.Options) { o.Checkout = false }},
		"a bool that is none": {
			values: values{"GIT_CHECKOUT": "maybe"}, warning: `GIT_CHECKOUT: expected bool, got "maybe", using default value: true`,
		},
		"flags": {
			values: values{"GIT_CLEAN_FLAGS": "-ffd  -e cache/", "GIT_FETCH_EXTRA_FLAGS": "--no-tags"},
			change: func(o *git.Options) {
				o.CleanFlags, o.FetchFlags = []string{"-ffd", "-e", "cache/"}, []string{"--no-tags"}
			},
		},
		"no flags": {
			values: values{"GIT_CLEAN_FLAGS": "none", "GIT_FETCH_EXTRA_FLAGS": "none", "GIT_CLONE_EXTRA_FLAGS": "none"},
			change: func(o *git.Options) { o.CleanFlags, o.FetchFlags = nil, nil },
		},
		"clone flags": {
			values: values{"GIT_STRATEGY": "clone", "GIT_CLONE_EXTRA_FLAGS": "--filter=blob:none", "FF_USE_GIT_NATIVE_CLONE": "true"},
			change: func(o *git.Options) {
				o.Strategy, o.CloneFlags, o.NativeClone = git.Clone, []string{"--filter=blob:none"}, true
			},
		},
		"clone flags without a clone": {
			values:  values{"GIT_CLONE_EXTRA_FLAGS": "--filter=blob:none", "FF_USE_GIT_NATIVE_CLONE": "true"},
			change:  func(o *git.Options) { o.CloneFlags, o.NativeClone = []string{"--filter=blob:none"}, true },
			warning: "GIT_CLONE_EXTRA_FLAGS: has no effect without GIT_STRATEGY 'clone' and FF_USE_GIT_NATIVE_CLONE 'true'",
		},
		"feature flags": {
			values: values{"FF_USE_GIT_BUNDLE_URIS": "0", "FF_USE_GITALY_CORRELATION_ID": "false", "FF_ENABLE_JOB_CLEANUP": "1"},
			change: func(o *git.Options) { o.BundleURIs, o.Correlate, o.CleanUp = false, false, true },
		},
		"lfs":        {values: values{"GIT_LFS_SKIP_SMUDGE": "1"}, change: func(o *git.Options) { o.SkipLFS = true }},
		"clone path": {values: values{"GIT_CLONE_PATH": "/b/p"}, change: func(o *git.Options) { o.ClonePath = "/b/p" }},
		"server": {
			values: values{
				"CI_SERVER_URL": "https://h/gitlab", "CI_SERVER_HOST": "h", "CI_SERVER_SHELL_SSH_HOST": "s",
				"CI_SERVER_SHELL_SSH_PORT": "2222", "CI_PROJECT_PATH": "g/p",
			},
			change: func(o *git.Options) {
				o.Server = git.Server{URL: "https://h/gitlab", Host: "h", SSHHost: "s", SSHPort: "2222", ProjectPath: "g/p"}
			},
		},
		"submodules":    {values: values{"GIT_SUBMODULE_STRATEGY": "normal"}, change: normal},
		"no submodules": {values: values{"GIT_SUBMODULE_STRATEGY": "none", "GIT_SUBMODULE_DEPTH": "3"}},
		"submodules in detail": {
			values: values{
				"GIT_SUBMODULE_STRATEGY": "recursive", "GIT_SUBMODULE_DEPTH": "1", "GIT_SUBMODULE_PATHS": "a/b  :(exclude)a/b/c",
				"GIT_SUBMODULE_UPDATE_FLAGS": "--remote --jobs 4", "GIT_SUBMODULE_FORCE_HTTPS": "true",
			},
			change: func(o *git.Options) {
				o.Submodules, o.SubmoduleDepth, o.ForceHTTPS = git.RecursiveSubmodules, 1, true
				o.SubmodulePaths, o.SubmoduleUpdateFlags = []string{"a/b", ":(exclude)a/b/c"}, []string{"--remote", "--jobs", "4"}
			},
		},
		"all history of submodules": {
			values: values{"GIT_SUBMODULE_STRATEGY": "normal", "GIT_SUBMODULE_DEPTH": "0"},
			change: func(o *git.Options) { normal(o); o.SubmoduleDepth = 0 },
		},
		"a number that is none": {
			values: values{"GIT_SUBMODULE_STRATEGY": "normal", "GIT_SUBMODULE_DEPTH": "deep"}, change: normal,
			warning: `GIT_SUBMODULE_DEPTH: expected int, got "deep", using default value: 20`,
		},
		"unknown submodule strategy": {
			values: values{"GIT_SUBMODULE_STRATEGY": "some"},
			err:    `GIT_SUBMODULE_STRATEGY: expected either 'normal', 'recursive' or 'none', got "some"`,
		},
		"a bare exclude": {
			values: values{"GIT_SUBMODULE_STRATEGY": "normal", "GIT_SUBMODULE_PATHS": "a :(exclude) b"},
			err:    `GIT_SUBMODULE_PATHS: "a :(exclude) b" has a bare :(exclude)`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			var warnings []string
			o, err := git.ReadOptions(func(key string) string { return test.values[key] }, true, 20,
				func(text string) { warnings = append(warnings, text) })
			require.Equal(t, test.warning, strings.Join(warnings, "\n"))
			if test.err != "" {
				require.ErrorContains(t, err, test.err)
				return
			}
			require.NoError(t, err)
			want := defaults()
			if test.change != nil {
				test.change(&want)
			}
			require.Equal(t, want, o)
		})
	}
	o, err := git.ReadOptions(func(string) string { return "" }, false, 0, nil)
	require.NoError(t, err)
	require.Equal(t, git.Clone, o.Strategy, "GitLab does not allow to fetch")
}

func TestClonePath(t *testing.T) {
	for value, want := range map[string]string{
		"/builds/go/src/x":      "/builds/go/src/x",
		"/builds/a/../b/":       "/builds/b",
		"/builds/..x":           "/builds/..x",
		"/builds/go/../../etc":  `the GIT_CLONE_PATH="/builds/go/../../etc" has to be within "/builds": it leads elsewhere`,
		"/builds-of-another/x":  "it leads elsewhere",
		"/nope":                 "it leads elsewhere",
		"/":                     "it leads elsewhere",
		"/builds":               "it is that folder itself",
		"/builds/x/..":          "it is that folder itself",
		"src/x":                 "it is not an absolute path (begin it with $CI_BUILDS_DIR/)",
		"":                      "it is not an absolute path",
		"/builds/a\x00/../../e": "zero byte",
	} {
		got, err := git.ClonePath("/builds", value)
		if strings.HasPrefix(want, "/") {
			require.NoError(t, err, value)
			require.Equal(t, want, got)
		} else {
			require.ErrorContains(t, err, want)
			require.Empty(t, got)
		}
	}
}
