package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/agent"
	"github.com/switchyard-ci/switchyard/executors/docker/config"
	"github.com/switchyard-ci/switchyard/executors/shell"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// command runs the program until it fails or has printed what was asked for.
func command(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(args, make(chan os.Signal), &out, &errs)
	return code, out.String(), errs.String()
}

func TestHelpTeaches(t *testing.T) {
	code, out, _ := command(t, "--help")
	require.Zero(t, code)
	out = strings.Join(strings.Fields(out), " ")
	for _, text := range []string{"switchyard agents token", "--token-file", "SIGTERM", "SIGQUIT", "Exit codes", "5 another agent", "agent.crt"} {
		require.Contains(t, out, text)
	}
	code, out, _ = command(t, "--version")
	require.Zero(t, code)
	require.True(t, strings.HasPrefix(out, "switchyard-agent "), out)
}

func TestUsageErrors(t *testing.T) {
	bin := filepath.Join(t.TempDir(), "switchyard-job")
	require.NoError(t, os.WriteFile(bin, []byte("#!/bin/sh\n"), 0o755))
	for want, args := range map[string][]string{
		"the control plane's address is missing: give --server": {"--job-binary", bin},
		"unknown flag --serve":                       {"--serve", "h:1"},
		`server "https://h:1": it must be HOST:PORT`: {"--server", "https://h:1", "--job-binary", bin},
		"slots is -1":                                {"--server", "h:1", "--slots=-1", "--job-binary", bin},
		`spool.max_size: "much" is no size`:          {"--server", "h:1", "--spool-max-size", "much", "--job-binary", bin},
		"give each at least 1 MiB":                   {"--server", "h:1", "--slots=9", "--spool-max-size", "8m", "--job-binary", bin},
		`label "a b"`:                                {"--server", "h:1", "--label", "a b=c", "--job-binary", bin},
		`expected "<key>=<value>"`:                   {"--server", "h:1", "--label", "os", "--job-binary", bin},
		`job binary "/no/such/file"`:                 {"--server", "h:1", "--job-binary", "/no/such/file"},
		"--log-level must be one of":                 {"--server", "h:1", "--log-level", "loud"},
		"read the configuration: open /no/such/file": {"--config", "/no/such/file"},
	} {
		t.Run(want, func(t *testing.T) {
			code, _, errs := command(t, args...)
			require.Equal(t, exitUsage, code)
			require.Contains(t, errs, want)
			require.Contains(t, errs, "--help")
		})
	}
}

func TestAMissingJobBinaryIsAClearError(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	code, _, errs := command(t, "--server", "h:1", "--data", t.TempDir())
	require.Equal(t, exitUsage, code)
	require.Contains(t, errs, "put it beside switchyard-agent, or say where it is with --job-binary")
}

// read is what a file and flags give.
func read(t *testing.T, text string, flags flags) (*settings, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent.yaml")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	flags.Config = path
	return flags.settings()
}

func TestFileAndFlags(t *testing.T) {
	text := `
server: a:1
token_file: ./token
data: data
slots: 3
labels: {os: linux, zone: west}
name: one
job_binary: ./bin/switchyard-job
executors:
  shell:
    builds_dir: /builds
    cache_dir: cache
    shell: sh
`
	s, err := read(t, text, flags{})
	require.NoError(t, err)
	dir := filepath.Dir(s.TokenFile)
	require.Equal(t, file{
		Server: "a:1", TokenFile: filepath.Join(dir, "token"), Data: filepath.Join(dir, "data"), Slots: 3, Name: "one",
		Labels: map[string]string{"os": "linux", "zone": "west"}, JobBinary: filepath.Join(dir, "bin", "switchyard-job"),
		Executors: executorsFile{Shell: &shellFile{BuildsDir: "/builds", CacheDir: filepath.Join(dir, "cache"), Shell: "sh"}},
	}, s.file)

	s, err = read(t, text, flags{Server: "b:2", Slots: 5, Label: map[string]string{"zone": "east"}, Data: "elsewhere"})
	require.NoError(t, err)
	require.Equal(t, "b:2", s.Server)
	require.Equal(t, 5, s.Slots)
	require.Equal(t, "elsewhere", s.Data)
	require.Equal(t, map[string]string{"os": "linux", "zone": "east"}, s.Labels)

	s, err = read(t, "# nothing\n", flags{Server: "b:2"})
	require.NoError(t, err)
	require.Equal(t, runtime.NumCPU(), s.Slots)
	require.NotEmpty(t, s.Data)
	s, err = read(t, "server: a:1\nexecutors:\n  shell:\n", flags{})
	require.NoError(t, err)
	require.Equal(t, executorsFile{Shell: &shellFile{}}, s.Executors)
}

func TestTheFileSaysWhereJobsRun(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	for text, want := range map[string][]string{
		"":                        {"shell"},
		"executors:":              {"shell"},
		"executors: {}":           {"shell"},
		"executors: {shell: }":    {"shell"},
		"executors: {docker: }":   {"docker"},
		"executors: {docker: {}}": {"docker"},
		"executors: {docker: {image: alpine}, shell: {}}": {"shell", "docker"},
	} {
		s, err := read(t, "server: a:1\n"+text, flags{})
		require.NoError(t, err, text)
		places, err := s.places(t.TempDir(), log)
		require.NoError(t, err, text)
		var names []string
		for _, x := range places {
			names = append(names, x.Name())
		}
		require.Equal(t, want, names, text)
		leavePlaces(places, log)
	}
}

func TestShellSettings(t *testing.T) {
	s, err := read(t, "server: a:1\nexecutors: {shell: {run_as: ci, memory: 2g, cpus: 1.5, custom_build_dir: true}}\n", flags{})
	require.NoError(t, err)
	require.Equal(t, names{"ci"}, s.Executors.Shell.RunAs)
	require.True(t, s.Executors.Shell.CustomBuildDir)
	l, err := s.Executors.Shell.limits()
	require.NoError(t, err)
	require.Equal(t, shell.Limits{Memory: 2 << 30, CPUs: 1.5}, l)

	for text, want := range map[string]string{
		"memory: much":   `executors.shell.memory: "much" is no size`,
		"memory: 0":      `executors.shell.memory: "0" is no size`,
		"cpus: all":      `executors.shell.cpus: "all" is no number of processors`,
		"run_as: [a, b]": "executors.shell.run_as names 2 users for 3 slots",
	} {
		s, err := read(t, "server: a:1\nslots: 3\nexecutors: {shell: {"+text+"}}\n", flags{})
		require.NoError(t, err)
		_, err = s.places(t.TempDir(), slog.New(slog.DiscardHandler))
		require.ErrorContains(t, err, want)
	}
}

func TestDockerSettings(t *testing.T) {
	s, err := read(t, `
server: a:1
executors:
  docker:
    tls_cert_path: certs
    helper_image_file: helper.tar
    cpus: 1.5
    pull_policy: [if-not-present, always]
    services:
      - name: redis:7
        alias: cache
`, flags{})
	require.NoError(t, err)
	d := s.Executors.Docker
	require.True(t, filepath.IsAbs(d.TLSCertPath))
	require.True(t, filepath.IsAbs(d.HelperImageFile))
	require.Equal(t, "1.5", d.CPUs)
	require.Equal(t, config.PullPolicies{config.PullIfNotPresent, config.PullAlways}, d.PullPolicy)
	require.Equal(t, []config.Service{{Name: "redis:7", Alias: "cache"}}, d.Services)
}

func TestMistakesInTheFileAreNamedWithTheirLine(t *testing.T) {
	for text, want := range map[string]string{
		"server: a:1\nslot: 3\n":                                             "agent.yaml:2: unknown key \"slot\"; known here are data, executors, job_binary, labels, name, protected_only, server, slots, spool, token_file",
		"executors:\n  ssh: {}\n":                                            "agent.yaml:2: unknown key \"ssh\"; known here are docker, shell",
		"executors:\n  docker:\n    mem: 1g\n":                               "agent.yaml:3: unknown key \"mem\"; known here are allowed_images, ",
		"executors:\n  docker:\n    memory: x\n    services:\n    - name:\n": "agent.yaml:3: executors.docker: memory: \"x\" is no size",
		"executors:\n  docker:\n    services:\n    - name: \"\"\n":           "agent.yaml:4: executors.docker: services[0].name: \"\" must name an image",
		"executors:\n  docker:\n    services:\n    - nam: x\n":               "agent.yaml:4: unknown key \"nam\"; known here are alias,",
		"executors:\n  docker:\n    shm_size: 1g\n":                          "agent.yaml:3: cannot unmarshal !!str `1g` into int64",
		"executors:\n  shell:\n    build_dir: x\n":                           "agent.yaml:3: unknown key \"build_dir\"; known here are builds_dir, cache_dir, cpus, custom_build_dir,",
		"server: a:1\nslots: many\n":                                         "agent.yaml:2: cannot unmarshal !!str `many` into int",
		"server: a:1\nserver: b:1\n":                                         "agent.yaml:2: mapping key \"server\" already defined at line 1",
		"- server\n":                                                         "agent.yaml:1: the file must be a mapping with the keys data,",
		"executors: shell\n":                                                 "agent.yaml:1: executors must be a mapping with the keys docker, shell",
		"server: [\n":                                                        "agent.yaml:",
		"labels:\n  os: [a]\n":                                               "agent.yaml:2: cannot unmarshal",
		"server: a:1\n" + strings.Repeat("# long\n", 200000):                 "is longer than 1048576 bytes",
	} {
		_, err := read(t, text, flags{})
		require.ErrorContains(t, err, want)
	}
}

func TestTheTokenIsReadOnlyWhenItIsAskedFor(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	s := &settings{}
	require.Nil(t, s.token(log))
	s.TokenFile = filepath.Join(t.TempDir(), "token")
	token := s.token(log)
	_, err := token()
	require.ErrorIs(t, err, errToken)
	require.NoError(t, os.WriteFile(s.TokenFile, []byte("glrt-something-else\n"), 0o600))
	_, err = token()
	require.ErrorContains(t, err, "malformed join token")
	require.NotContains(t, err.Error(), "something-else")
}

func TestTheExampleOfTheHelpIsAccepted(t *testing.T) {
	require.NoError(t, agent.CheckAddress("switchyard.example.com:7443"))
	require.NoError(t, agent.CheckAddress("[::1]:7443"))
	require.NoError(t, agent.CheckLabels(map[string]string{"os": "linux"}))
}

func TestLogFormats(t *testing.T) {
	var out bytes.Buffer
	newLogger(&out, "warn", "json").Warn("text", "k", 1)
	require.Contains(t, out.String(), `"msg":"text","k":1`)
	out.Reset()
	log := newLogger(&out, "warn", "auto")
	log.Info("quiet")
	log.Warn("loud")
	require.NotContains(t, out.String(), "quiet")
	require.Contains(t, out.String(), "msg=loud")
}
