// Package auth finds the credentials with which an engine pulls an image: in the variable DOCKER_AUTH_CONFIG, in a user's
// Docker configuration, and in a job's payload, in this order and by the rules of gitlab-runner.
package auth

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/distribution/reference"
	"github.com/docker/cli/cli/config/configfile"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

const (
	fromVariable = "$DOCKER_AUTH_CONFIG"
	fromPayload  = "job payload (GitLab Registry)"

	defaultRegistry = "docker.io"
	maxFile         = 1 << 20
)

// Sources are where credentials come from. Empty ones are left out.
type Sources struct {
	// Variable is the value of DOCKER_AUTH_CONFIG: the job's, else that of the runner's environment.
	Variable string
	// Home is the folder with .docker/config.json, or the older .dockercfg.
	Home string
	// Job are the credentials of the job's payload.
	Job []runnerapi.Credentials
	// Environ is the environment of credential helpers, in the form of os.Environ; they are looked up in its PATH.
	Environ []string
}

// Credential opens a registry. It prints as where it is from, never as what it is.
type Credential struct {
	// Source says where it is from, for the job's trace.
	Source string
	config registry.AuthConfig
}

// Encode returns the value of the header X-Registry-Auth; that of nil is empty.
func (c *Credential) Encode() (string, error) {
	if c == nil {
		return "", nil
	}
	encoded, err := authconfig.Encode(c.config)
	if err != nil {
		return "", fmt.Errorf("encode credentials from %s: %w", c.Source, err)
	}
	return encoded, nil
}

// Secrets returns what must not be seen in a trace or a log: the secrets, and the forms in which they travel.
func (c *Credential) Secrets() []string {
	if c == nil {
		return nil
	}
	var secrets []string
	for _, secret := range []string{c.config.Password, c.config.IdentityToken, c.config.RegistryToken} {
		if secret != "" {
			secrets = append(secrets, secret, base64.StdEncoding.EncodeToString([]byte(secret)))
		}
	}
	if c.config.Password != "" {
		pair := []byte(c.config.Username + ":" + c.config.Password)
		secrets = append(secrets, base64.StdEncoding.EncodeToString(pair), base64.URLEncoding.EncodeToString(pair))
	}
	if encoded, err := c.Encode(); err == nil && len(secrets) > 0 {
		secrets = append(secrets, encoded)
	}
	return secrets
}

func (c *Credential) String() string {
	if c == nil {
		return "no credentials"
	}
	return "credentials from " + c.Source
}

// GoString is String: secrets stay out of debugging output, too.
func (c *Credential) GoString() string { return c.String() }

// LogValue is String.
func (c *Credential) LogValue() slog.Value { return slog.StringValue(c.String()) }

// Find returns the credential for an image, nil if there is none. Of several the one for the longest part of the image's
// name counts; among these the first source's. What is wrong with a source goes to warnings, one line each, and the
// source is left out; an error means that one must not be used at all.
func (s Sources) Find(ctx context.Context, image string, warnings io.Writer) (*Credential, error) {
	paths, err := imagePaths(image)
	if err != nil {
		return nil, err
	}
	var stores []*store
	for _, read := range []func() (*store, error){s.variable, s.home, s.job} {
		one, err := read()
		if errors.Is(err, errTraversal) {
			return nil, err
		}
		if err != nil {
			fmt.Fprintf(warnings, "WARNING: %v\n", err)
		}
		if one != nil {
			one.environ = s.Environ
			stores = append(stores, one)
		}
	}
	for _, path := range paths {
		for _, one := range stores {
			config, err := one.get(ctx, path)
			if errors.Is(err, errTraversal) || ctx.Err() != nil {
				return nil, err
			}
			if err != nil {
				fmt.Fprintf(warnings, "WARNING: %v\n", err)
			}
			if config != nil {
				return &Credential{Source: one.source, config: *config}, nil
			}
		}
	}
	return nil, nil
}

func (s Sources) variable() (*store, error) {
	if strings.TrimSpace(s.Variable) == "" {
		return nil, nil
	}
	return parse(fromVariable, []byte(s.Variable))
}

func (s Sources) home() (*store, error) {
	if s.Home == "" {
		return nil, nil
	}
	path := filepath.Join(s.Home, ".docker", "config.json")
	data, err := readFile(path)
	if err == nil {
		return parse(path, data)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	path = filepath.Join(s.Home, ".dockercfg")
	data, err = readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read credentials: %w", err)
	}
	// The older form is what is below "auths" today.
	return parse(path, append(append([]byte(`{"auths":`), data...), '}'))
}

func (s Sources) job() (*store, error) {
	one := newStore(fromPayload)
	for _, c := range s.Job {
		if c.Type == "registry" {
			one.auths[registryPath(c.URL)] = registry.AuthConfig{Username: c.Username, Password: c.Password, ServerAddress: c.URL}
		}
	}
	return one, nil
}

func readFile(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err == nil && len(data) > maxFile {
		err = fmt.Errorf("%s is longer than %d bytes", path, maxFile)
	}
	return data, err
}

func parse(source string, data []byte) (*store, error) {
	var file configfile.ConfigFile
	if err := file.LoadFromReader(strings.NewReader(string(data))); err != nil {
		return nil, fmt.Errorf("credentials from %s cannot be read: %w; use the form of ~/.docker/config.json", source, err)
	}
	one := newStore(source)
	for name, config := range file.AuthConfigs {
		one.auths[registryPath(name)] = registry.AuthConfig{
			Username: config.Username, Password: config.Password, ServerAddress: name,
			IdentityToken: config.IdentityToken, RegistryToken: config.RegistryToken,
		}
	}
	one.helper = file.CredentialsStore
	for name, helper := range file.CredentialHelpers {
		one.helpers[registryPath(name)] = namedHelper{name, helper}
	}
	return one, nil
}

// imagePaths are the parts of an image's name that credentials may be for, the longest first.
func imagePaths(image string) ([]string, error) {
	named, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return nil, fmt.Errorf("image %q: %w", image, err)
	}
	path := strings.ToLower(reference.Domain(named)) + "/" + reference.Path(named)
	if reference.Domain(named) == defaultRegistry {
		path = defaultRegistry + "/" + strings.TrimPrefix(reference.Path(named), "library/")
	}
	var paths []string
	for path != "" {
		paths = append(paths, path)
		path = path[:max(strings.LastIndexByte(path, '/'), 0)]
	}
	return paths, nil
}

// registryPath is the form in which the names of registries in configurations compare with imagePaths.
func registryPath(name string) string {
	path := strings.TrimSuffix(name, "/")
	for _, scheme := range []string{"https://", "http://"} {
		if len(path) >= len(scheme) && strings.EqualFold(path[:len(scheme)], scheme) {
			// The oldest form: an address, of which only the host counts.
			path, _, _ = strings.Cut(path[len(scheme):], "/")
		}
	}
	if slash, colon := strings.LastIndexByte(path, '/'), strings.LastIndexByte(path, ':'); slash >= 0 && colon > slash {
		path = path[:colon] // an image's tag
	}
	host, rest, deeper := strings.Cut(path, "/")
	if host = strings.ToLower(host); host == "index."+defaultRegistry {
		host = defaultRegistry
		if rest == "v1" || rest == "v2" {
			return host
		}
	}
	if !deeper {
		return host
	}
	return host + "/" + rest
}
