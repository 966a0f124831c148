package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/switchyard-ci/switchyard/controlplane"
	"github.com/switchyard-ci/switchyard/controlplane/config"
	"github.com/switchyard-ci/switchyard/controlplane/datafolder"
	"github.com/switchyard-ci/switchyard/controlplane/registry"
	adminv1 "github.com/switchyard-ci/switchyard/gen/switchyard/admin/v1"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi/client"
)

// withRegistrations calls use with the configured runners while no control plane works in the data folder.
func withRegistrations(ctx context.Context, cfg *config.Config, use func(*controlplane.Registrations) error) error {
	if _, err := os.Stat(cfg.Data); err == nil {
		folder, err := datafolder.Open(cfg.Data)
		if err != nil {
			return err
		}
		defer folder.Close()
	} else if !errors.Is(err, fs.ErrNotExist) {
		return usageError(err)
	}
	r, err := controlplane.OpenRegistrations(ctx, controlplane.Config{Data: cfg.Data, Database: cfg.Database, Runners: cfg.Runners})
	if err != nil {
		return err
	}
	return errors.Join(use(r), r.Close())
}

// codeOf is the status in an error of GitLab's; 0 if there is none.
func codeOf(err error) int {
	if e, ok := errors.AsType[*client.StatusError](err); ok && !e.HTML {
		return e.Code
	}
	return 0
}

type runnersVerifyCmd struct {
	configFlag
	outputFlag
}

// Help is shown by --help.
func (runnersVerifyCmd) Help() string {
	return `Each runner's address, certificates and token are tried (POST /runners/verify). The exit code is 1 if GitLab does not confirm
one of them, so that a deployment can ask before it starts a control plane:

  switchyard config check -c switchyard.yaml && switchyard runners verify -c switchyard.yaml

A token that was replaced since it was configured is read from the store, which one process has at a time: while a control
plane is running use "switchyard runners list".`
}

func (c *runnersVerifyCmd) Run(ctx context.Context, std streams) error {
	cfg, err := c.load(std.err)
	if err != nil {
		return err
	}
	var all []*adminv1.Runner
	bad := 0
	err = withRegistrations(ctx, cfg, func(r *controlplane.Registrations) error {
		for _, runner := range cfg.Runners {
			found := verifyRunner(ctx, r, runner)
			if found.GetState() != "online" {
				bad++
			}
			all = append(all, found)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("look at the runners: %w", withHint(err, "ask it with `switchyard runners list`"))
	}
	if err := printList(c.outputFlag, std.out, all, "NAME\tRESULT\tGITLAB\tID\tTOKEN EXPIRES\tPROBLEM", func(r *adminv1.Runner) []string {
		return []string{
			r.GetName(), r.GetState(), r.GetUrl(), idOrDash(r.GetGitlabId()), until(r.GetToken().GetExpiresAt()), orDash(r.GetLastError()),
		}
	}); err != nil {
		return err
	}
	if bad > 0 {
		return fmt.Errorf("GitLab does not confirm %d of %d runners", bad, len(all))
	}
	return nil
}

// withHint adds what to do about a control plane that is in the way.
func withHint(err error, hint string) error {
	if _, ok := errors.AsType[*datafolder.InUseError](err); ok {
		return fmt.Errorf("%w; %s", err, hint)
	}
	return err
}

func verifyRunner(ctx context.Context, r *controlplane.Registrations, runner config.Runner) *adminv1.Runner {
	answer, rotated, err := r.Verify(ctx, runner)
	found := &adminv1.Runner{
		Name: runner.Name, Url: runner.URL, Executor: runner.Executor, Limit: uint32(runner.Limit), //nolint:gosec // checked
		State: "online", Token: &adminv1.RunnerToken{Rotated: rotated},
	}
	switch {
	case codeOf(err) == http.StatusForbidden:
		found.State = "refused"
		found.LastError = "GitLab does not know the token: it was reset, it expired, or the runner was removed"
	case err != nil:
		found.State, found.LastError = "trouble", err.Error()
	default:
		found.GitlabId = answer.ID
		if answer.TokenExpiresAt != nil {
			found.Token.ExpiresAt = timestamppb.New(*answer.TokenExpiresAt)
		}
	}
	return found
}

type runnersUnregisterCmd struct {
	configFlag
	Name        string `arg:"" help:"The runner's name in the configuration."`
	ManagerOnly bool   `help:"Remove only this control plane from the runner's managers; the runner and its token stay."`
}

// Help is shown by --help.
func (runnersUnregisterCmd) Help() string {
	return `Without --manager-only the runner is gone from GitLab, for whoever else uses its token too. The control plane has to be stopped
first. Afterwards remove the runner from the configuration: nothing here changes that file.

With --manager-only GitLab forgets that this control plane has served the runner. That is for one that moves to another
data folder or is taken out of service; a control plane that serves the runner is entered again by its first request.`
}

func (c *runnersUnregisterCmd) Run(ctx context.Context, std streams) error {
	cfg, err := c.load(std.err)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(cfg.Runners, func(r config.Runner) bool { return r.Name == c.Name })
	if i < 0 {
		var names []string
		for _, r := range cfg.Runners {
			names = append(names, strconv.Quote(r.Name))
		}
		return usageError(fmt.Errorf("no runner %q in %s; there are %s", c.Name, c.Config, strings.Join(names, ", ")))
	}
	runner := cfg.Runners[i]
	err = withRegistrations(ctx, cfg, func(r *controlplane.Registrations) error {
		if c.ManagerOnly {
			return r.UnregisterManager(ctx, runner)
		}
		return r.Unregister(ctx, runner)
	})
	switch {
	case codeOf(err) == http.StatusForbidden:
		return fmt.Errorf("GitLab does not know the token of runner %q: it was reset, or the runner is gone already: %w", c.Name, err)
	case codeOf(err) == http.StatusNotFound && c.ManagerOnly:
		return fmt.Errorf("GitLab does not know this control plane as a manager of runner %q: %w", c.Name, err)
	case err != nil:
		return fmt.Errorf("unregister runner %q: %w", c.Name, withHint(err, "stop it first, or it would go on with this runner"))
	case c.ManagerOnly:
		fmt.Fprintf(std.out, "%s has forgotten that this control plane served runner %s\n", runner.URL, c.Name)
	default:
		fmt.Fprintf(std.out, "runner %s is removed from %s; remove it from %s too\n", c.Name, runner.URL, c.Config)
	}
	return nil
}

type runnersRegisterCmd struct {
	outputFlag
	URL                   string        `required:"" name:"url" help:"GitLab's address, for example https://gitlab.example.com." placeholder:"URL"`
	RegistrationTokenFile string        `required:"" type:"path" help:"A file with the registration token; - reads standard input." placeholder:"FILE"`
	Name                  string        `default:"switchyard" help:"The runner's name in switchyard.yaml, and its description in GitLab if there is no other."`
	Description           string        `help:"The runner's description in GitLab."`
	MaintenanceNote       string        `help:"A note that GitLab shows to administrators."`
	TagList               string        `help:"Tags with commas between them." placeholder:"a,b"`
	RunUntagged           bool          `help:"Take jobs without tags too. It is on if there are no tags."`
	Locked                bool          `help:"Keep the runner from being used by other projects."`
	Paused                bool          `help:"Take no jobs before it is resumed in GitLab."`
	AccessLevel           string        `enum:"not_protected,ref_protected" default:"not_protected" help:"ref_protected takes jobs of protected branches and tags only."`
	MaximumTimeout        time.Duration `help:"The longest that a job may take, at least 10m; without it the project's timeout counts." placeholder:"1h"`
	Executor              string        `default:"shell" help:"The executor for switchyard.yaml."`
	TokenFile             string        `type:"path" help:"Write the runner's token into this new file (mode 0600) instead of printing it." placeholder:"FILE"`
	TLSCAFile             string        `type:"path" name:"tls-ca-file" help:"PEM of a private CA of that GitLab." placeholder:"FILE"`
	TLSCertFile           string        `type:"path" name:"tls-cert-file" help:"PEM of a client certificate." placeholder:"FILE"`
	TLSKeyFile            string        `type:"path" name:"tls-key-file" help:"PEM of its key." placeholder:"FILE"`
}

// Help is shown by --help.
func (runnersRegisterCmd) Help() string {
	return `Registration tokens are GitLab's old way, which it has announced to end and which can be turned off. The new way needs no
command: create the runner in GitLab (Settings > CI/CD > Runners), and put the token that it shows (glrt-...) into
token_file of switchyard.yaml.

What to put into switchyard.yaml is printed, with the token in it unless --token-file is given:

  switchyard runners register --url https://gitlab.example.com --registration-token-file reg --token-file token >> switchyard.yaml

GitLab shows the token this one time.`
}

func (c *runnersRegisterCmd) Run(ctx context.Context, std streams) error {
	registration, err := readWord(c.RegistrationTokenFile, "registration token")
	if err != nil {
		return usageError(err)
	}
	switch {
	case strings.HasPrefix(registration, "glrt-"):
		return usageError(errors.New("this is the token of a runner that exists already (glrt-): put it into token_file of switchyard.yaml, and try it with `switchyard runners verify`"))
	case c.MaximumTimeout%time.Second != 0 || c.MaximumTimeout < 0:
		return usageError(fmt.Errorf("--maximum-timeout is %s: it must be whole seconds", c.MaximumTimeout))
	}
	at := config.Runner{Runner: registry.Runner{URL: c.URL, CAFile: c.TLSCAFile, CertFile: c.TLSCertFile, KeyFile: c.TLSKeyFile}}
	var file *os.File
	if c.TokenFile != "" { // before there is a token that could be lost
		if file, err = os.OpenFile(c.TokenFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600); err != nil {
			return usageError(fmt.Errorf("--token-file must name a new file: %w", err))
		}
	}
	answer, err := controlplane.Register(ctx, at, runnerapi.RegisterRequest{
		Token: registration, Description: cmp.Or(c.Description, c.Name), MaintenanceNote: c.MaintenanceNote, TagList: c.TagList,
		RunUntagged: c.RunUntagged || c.TagList == "", Locked: c.Locked, Paused: c.Paused, AccessLevel: c.AccessLevel,
		MaximumTimeout: int(c.MaximumTimeout / time.Second),
	})
	if err != nil {
		if file != nil {
			err = errors.Join(err, file.Close(), os.Remove(c.TokenFile))
		}
		return registerError(err)
	}
	if file != nil {
		_, err = file.WriteString(answer.Token + "\n")
		if err := errors.Join(err, file.Sync(), file.Close()); err != nil {
			return fmt.Errorf("runner %d is registered, but its token could not be written; remove it in GitLab: %w", answer.ID, err)
		}
	}
	return c.print(std.out, answer)
}

// registerError adds the way out.
func registerError(err error) error {
	var hint string
	switch codeOf(err) {
	case http.StatusForbidden:
		hint = "GitLab does not know this registration token; it is in the settings of the instance, the group or the project"
	case http.StatusGone:
		hint = "this GitLab takes no registration tokens any more; create the runner in its pages and put the token into token_file"
	case http.StatusBadRequest:
		hint = "one of the options does not suit GitLab"
	default:
		return fmt.Errorf("register: %w", err)
	}
	return fmt.Errorf("register: %s: %w", hint, err)
}

func (c *runnersRegisterCmd) print(w io.Writer, answer *runnerapi.RegisterResponse) error {
	if c.Output == "json" {
		token := answer.Token
		if c.TokenFile != "" {
			token = ""
		}
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(struct {
			ID             int64      `json:"id"`
			URL            string     `json:"url"`
			Token          string     `json:"token,omitempty"`
			TokenFile      string     `json:"token_file,omitempty"`
			TokenExpiresAt *time.Time `json:"token_expires_at"`
		}{answer.ID, c.URL, token, c.TokenFile, answer.TokenExpiresAt})
	}
	line := func(key, value string) {
		if value != "" {
			fmt.Fprintf(w, "    %s: %s\n", key, value)
		}
	}
	fmt.Fprintf(w, "# runner %d, registered %s\n  - name: %s\n", answer.ID, time.Now().UTC().Format(time.DateOnly), strconv.Quote(c.Name))
	line("url", strconv.Quote(c.URL))
	if c.TokenFile != "" {
		line("token_file", strconv.Quote(c.TokenFile))
	} else {
		line("token", strconv.Quote(answer.Token))
	}
	for _, f := range [][2]string{{"tls_ca_file", c.TLSCAFile}, {"tls_cert_file", c.TLSCertFile}, {"tls_key_file", c.TLSKeyFile}} {
		if f[1] != "" {
			line(f[0], strconv.Quote(f[1]))
		}
	}
	line("executor", c.Executor)
	return nil
}

// readWord reads a secret of one word from a file, or from standard input.
func readWord(path, noun string) (string, error) {
	in := os.Stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", fmt.Errorf("read the %s: %w", noun, err)
		}
		defer f.Close()
		in = f
	}
	const most = 1024
	text, err := io.ReadAll(io.LimitReader(in, most+1))
	if err != nil {
		return "", fmt.Errorf("read the %s: %w", noun, err)
	}
	words := strings.Fields(string(text))
	if len(words) != 1 || len(text) > most {
		return "", fmt.Errorf("the %s in %s must be one word of at most %d bytes", noun, path, most)
	}
	return words[0], nil
}
