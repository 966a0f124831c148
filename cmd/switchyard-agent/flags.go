package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/lmittmann/tint"
	"golang.org/x/term"

	"github.com/switchyard-ci/switchyard/agent"
	"github.com/switchyard-ci/switchyard/internal/jointoken"
)

const description = `Runs jobs on this host for a Switchyard fleet.

The agent dials out to the control plane (through HTTPS_PROXY, if that is set) and listens on nothing. The first time it
needs a join token, which "switchyard agents token" prints on the control plane's host:

  switchyard-agent --server switchyard.example.com:7443 --token-file ./token --label os=linux

From then on its identity is a certificate in the data folder, renewed by itself, and the token file may be deleted. To
enrol again, delete agent.crt in the data folder and start with a new token.

SIGTERM or SIGINT: take no more jobs, finish the running ones, get them reported, leave. A second one: cancel the jobs.
A third one, or SIGQUIT at any time: leave at once. Jobs go on without the agent and its next start takes them up again;
that is also what happens when it is killed.

Exit codes: 0 left as asked, 1 failed, 2 bad usage or configuration, 3 not enrolled (no token, or the control plane
refuses it), 4 the certificate has expired, 5 another agent uses the data folder.`

// flags are the command line; what is not given there comes from the file, then from the defaults.
type flags struct {
	Server    string            `help:"The control plane's address." placeholder:"HOST:PORT"`
	TokenFile string            `help:"File with the join token. Only read while the agent is not enrolled." placeholder:"FILE" env:"SWITCHYARD_TOKEN_FILE"`
	Data      string            `help:"Folder for all that the agent keeps (${data})." placeholder:"DIR"`
	Slots     int               `help:"Jobs that may run at once (the number of CPUs)." placeholder:"N"`
	Protected bool              `name:"protected-only" help:"Take jobs of protected branches and tags only."`
	Label     map[string]string `help:"Label by which runners select agents; may be repeated." placeholder:"KEY=VALUE" mapsep:"none"`
	Name      string            `help:"What the agent is called (the host's name). A name that is taken gets a suffix." placeholder:"NAME"`
	Config    string            `help:"YAML file with the same settings: server, token_file, data, slots, protected_only, labels, name, job_binary, spool, executors. Flags win." placeholder:"FILE"`
	SpoolMax  string            `name:"spool-max-size" help:"What all traces together may take of the disk, for example 2g (no limit)." placeholder:"SIZE"`
	SpoolFree string            `name:"spool-min-free" help:"What must be free on the data folder's disk to take a job (1%, at least 100m, at most 1g)." placeholder:"SIZE"`
	JobBinary string            `help:"Path of switchyard-job (beside this program, or in PATH)." placeholder:"FILE"`
	LogLevel  string            `help:"debug, info, warn or error." default:"info" enum:"debug,info,warn,error"`
	LogFormat string            `help:"auto, text or json; auto is coloured text on a terminal." default:"auto" enum:"auto,text,json"`
	Version   bool              `help:"Print the version and leave."`
}

// settings are flags and file together.
type settings struct {
	file
	logLevel, logFormat string
}

func (f *flags) settings() (*settings, error) {
	s := &settings{logLevel: f.LogLevel, logFormat: f.LogFormat}
	if f.Config != "" {
		read, err := readFile(f.Config)
		if err != nil {
			return nil, err
		}
		s.file = *read
	}
	override(&s.Server, f.Server)
	override(&s.TokenFile, f.TokenFile)
	override(&s.Data, f.Data)
	override(&s.Name, f.Name)
	override(&s.JobBinary, f.JobBinary)
	override(&s.Spool.MaxSize, f.SpoolMax)
	override(&s.Spool.MinFree, f.SpoolFree)
	override(&s.Slots, f.Slots)
	override(&s.ProtectedOnly, f.Protected)
	for k, v := range f.Label {
		if s.Labels == nil {
			s.Labels = make(map[string]string)
		}
		s.Labels[k] = v
	}
	if s.Server == "" {
		return nil, errors.New("the control plane's address is missing: give --server HOST:PORT, or server in the file")
	}
	if s.Data == "" {
		s.Data = defaultData()
	}
	if s.Slots == 0 {
		s.Slots = runtime.NumCPU()
	}
	return s, nil
}

// override sets what was given.
func override[T comparable](setting *T, given T) {
	var zero T
	if given != zero {
		*setting = given
	}
}

// config is what the agent is made with.
func (s *settings) config(log *slog.Logger) (agent.Config, error) {
	data, err := filepath.Abs(s.Data)
	if err != nil {
		return agent.Config{}, fmt.Errorf("data %q: %w", s.Data, err)
	}
	job, err := findJobBinary(s.JobBinary)
	if err != nil {
		return agent.Config{}, err
	}
	places, err := s.places(data, log)
	if err != nil {
		return agent.Config{}, err
	}
	spool, err := s.Spool.limits()
	if err != nil {
		return agent.Config{}, err
	}
	return agent.Config{
		Server: s.Server, Data: data, Name: s.Name, Slots: s.Slots, ProtectedOnly: s.ProtectedOnly, Labels: s.Labels, Token: s.token(log), JobBinary: job,
		Executors: places, Spool: spool, Log: log,
	}, nil
}

func or(path, otherwise string) string {
	if path != "" {
		return path
	}
	return otherwise
}

var errToken = errors.New("no join token")

// token returns the function that reads the token file, nil if there is none.
func (s *settings) token(log *slog.Logger) func() (jointoken.Token, error) {
	if s.TokenFile == "" {
		return nil
	}
	return func() (jointoken.Token, error) {
		fail := func(err error) (jointoken.Token, error) {
			return jointoken.Token{}, fmt.Errorf("%w: %s: %w (`switchyard agents token` prints one)", errToken, s.TokenFile, err)
		}
		f, err := os.Open(s.TokenFile)
		if err != nil {
			return fail(err)
		}
		defer func() { _ = f.Close() }()
		if info, err := f.Stat(); err == nil && info.Mode().Perm()&0o077 != 0 {
			log.Warn("others can read the join token; chmod 600 it", "file", s.TokenFile)
		}
		text, err := io.ReadAll(io.LimitReader(f, 4096))
		if err != nil {
			return fail(err)
		}
		token, err := jointoken.Parse(string(text))
		if err != nil {
			return fail(err)
		}
		return token, nil
	}
}

// findJobBinary returns the absolute path of switchyard-job: the one that was given, the one beside this program, or the
// one in PATH.
func findJobBinary(given string) (string, error) {
	const name = "switchyard-job"
	if given != "" {
		path, err := exec.LookPath(given)
		if err != nil {
			return "", fmt.Errorf("job binary %q: %w", given, err)
		}
		return filepath.Abs(path)
	}
	beside := ""
	if self, err := os.Executable(); err == nil {
		if resolved, err := filepath.EvalSymlinks(self); err == nil {
			self = resolved
		}
		beside = filepath.Join(filepath.Dir(self), name)
		if path, err := exec.LookPath(beside); err == nil {
			return path, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%s is neither at %s nor in PATH: put it beside switchyard-agent, or say where it is with --job-binary", name, beside)
	}
	return filepath.Abs(path)
}

// defaultData is where the agent keeps its things unless it is told otherwise.
func defaultData() string {
	if os.Geteuid() == 0 {
		return "/var/lib/switchyard-agent"
	}
	if state := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(state) {
		return filepath.Join(state, "switchyard-agent")
	}
	if home, err := os.UserHomeDir(); err == nil {
		return filepath.Join(home, ".local", "state", "switchyard-agent")
	}
	return "switchyard-agent"
}

func newLogger(w io.Writer, level, format string) *slog.Logger {
	var l slog.Level
	_ = l.UnmarshalText([]byte(strings.ToUpper(level))) // one of the enum's
	options := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	if f, ok := w.(*os.File); ok && format == "auto" && term.IsTerminal(int(f.Fd())) {
		return slog.New(tint.NewTextHandler(w, &tint.Options{Level: l, TimeFormat: "15:04:05.000"}))
	}
	return slog.New(slog.NewTextHandler(w, options))
}
