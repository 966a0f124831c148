package auth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/docker-credential-helpers/client"
	"github.com/docker/docker-credential-helpers/credentials"
	"github.com/moby/moby/api/types/registry"
)

const (
	// helperTime is what a credential helper may take: some ask a cloud.
	helperTime = 30 * time.Second
	maxAnswer  = 1 << 20
	// tokenUser is the name that a helper gives to what is a token and no password.
	tokenUser = "<token>"
)

// errTraversal is about helpers whose name leads elsewhere; the words are gitlab-runner's.
var errTraversal = errors.New("path traversal is not allowed")

// A store is one source of credentials. A registry's own helper counts before the helper for all, and that before what is
// in the file.
type store struct {
	source  string
	auths   map[string]registry.AuthConfig
	helper  string
	helpers map[string]namedHelper
	environ []string
	listed  map[string]string // by registryPath, the name that helper knows
	failed  bool              // it was said that the helper does not work
}

// namedHelper is a helper and the registry's name as it stands in the configuration.
type namedHelper struct{ registry, helper string }

func newStore(source string) *store {
	return &store{source: source, auths: make(map[string]registry.AuthConfig), helpers: make(map[string]namedHelper)}
}

// get returns what there is for exactly this path, nil if there is nothing.
func (s *store) get(ctx context.Context, path string) (*registry.AuthConfig, error) {
	var errs []error
	if own, ok := s.helpers[path]; ok {
		found, err := s.ask(ctx, own.helper, own.registry)
		if found != nil {
			return found, nil
		}
		errs = append(errs, err)
	}
	if s.helper != "" && !s.failed {
		found, err := s.askStore(ctx, path)
		if found != nil {
			return found, nil
		}
		errs = append(errs, err)
	}
	if found, ok := s.auths[path]; ok && (found.Password != "" || found.IdentityToken != "" || found.RegistryToken != "") {
		return &found, errors.Join(errs...)
	}
	return nil, errors.Join(errs...)
}

func (s *store) askStore(ctx context.Context, path string) (*registry.AuthConfig, error) {
	if s.listed == nil {
		program, done, err := s.program(ctx, s.helper)
		if err != nil {
			return nil, err
		}
		names, err := client.List(program)
		done()
		if err != nil {
			s.failed = true
			return nil, s.helperError(ctx, s.helper, "list", err)
		}
		s.listed = make(map[string]string, len(names))
		for name := range names {
			s.listed[registryPath(name)] = name
		}
	}
	name, ok := s.listed[path]
	if !ok {
		return nil, nil
	}
	return s.ask(ctx, s.helper, name)
}

func (s *store) ask(ctx context.Context, helper, name string) (*registry.AuthConfig, error) {
	program, done, err := s.program(ctx, helper)
	if err != nil {
		return nil, err
	}
	defer done()
	answer, err := client.Get(program, name)
	if credentials.IsErrCredentialsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, s.helperError(ctx, helper, "get", err)
	}
	config := registry.AuthConfig{Username: answer.Username, Password: answer.Secret, ServerAddress: name}
	if answer.Username == tokenUser {
		config = registry.AuthConfig{IdentityToken: answer.Secret, ServerAddress: name}
	}
	return &config, nil
}

// helperError leaves out what the helper wrote on its standard output: it may be a secret.
func (s *store) helperError(ctx context.Context, helper, action string, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	reason := "its answer cannot be read"
	// The client hides the cause in its text, before the output.
	if _, cause, ok := strings.Cut(err.Error(), "err: "); ok {
		reason, _, _ = strings.Cut(cause, ", out: `")
	}
	return fmt.Errorf("credentials from %s: docker-credential-%s %s: %s", s.source, helper, action, reason)
}

// program returns how the client starts a helper; done ends its time.
func (s *store) program(ctx context.Context, helper string) (start client.ProgramFunc, done context.CancelFunc, err error) {
	if helper != filepath.Base(helper) || strings.ContainsAny(helper, `/\`) || helper == "" || helper == "." || helper == ".." {
		return nil, nil, fmt.Errorf("credentials from %s: helper %q: %w", s.source, helper, errTraversal)
	}
	ctx, done = context.WithTimeout(ctx, helperTime)
	return func(args ...string) client.Program {
		return &program{ctx: ctx, name: "docker-credential-" + helper, args: args, environ: s.environ}
	}, done, nil
}

// program is one run of a helper.
type program struct {
	ctx     context.Context // the client's interface has no place for it
	name    string
	args    []string
	environ []string
	input   io.Reader
}

func (p *program) Input(in io.Reader) { p.input = in }

func (p *program) Output() ([]byte, error) {
	path, err := lookPath(p.name, p.environ)
	if err != nil {
		return nil, errors.New("it is not in the agent's PATH")
	}
	var out limited
	cmd := exec.CommandContext(p.ctx, path, p.args...)
	cmd.Stdin, cmd.Stdout, cmd.Env = p.input, &out, p.environ
	cmd.WaitDelay = time.Second
	err = cmd.Run()
	if p.ctx.Err() != nil {
		err = fmt.Errorf("it took longer than %v, or the job has ended", helperTime)
	}
	return out.Bytes(), err
}

// lookPath finds a program in the PATH of environ.
func lookPath(name string, environ []string) (string, error) {
	for _, variable := range slices.Backward(environ) {
		list, ok := strings.CutPrefix(variable, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(list) {
			if !filepath.IsAbs(dir) {
				continue
			}
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
				return path, nil
			}
		}
		break
	}
	return "", exec.ErrNotFound
}

// limited refuses more than an answer can be.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	if l.Len()+len(p) > maxAnswer {
		return 0, fmt.Errorf("it wrote more than %d bytes", maxAnswer)
	}
	return l.Buffer.Write(p)
}
