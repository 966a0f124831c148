package docker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/cli/cli/connhelper"
	"github.com/docker/go-connections/tlsconfig"
	"github.com/moby/moby/client"

	"github.com/switchyard-ci/switchyard/internal/buildinfo"
)

const (
	dialTimeout = 15 * time.Second
	// idle connections that are kept: a job's preparation asks many things at once.
	maxIdle     = 16
	idleTimeout = 90 * time.Second
)

// keepAlive finds out within a minute that a host is gone.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 10 * time.Second, Count: 4}

// sshOptions do the same for SSH; nobody is there to answer questions.
var sshOptions = []string{"-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3", "-o", "ConnectTimeout=15"}

// address is where the engine is and how it is proven.
type address struct {
	host     string
	certPath string
	verify   bool
}

// find takes the settings' address, else that of the environment, else the default socket.
func find(o Options) address {
	if o.Config.Host != "" {
		return address{o.Config.Host, o.Config.TLSCertPath, o.Config.TLSVerify}
	}
	environment := func(key string) string {
		value := ""
		for _, kv := range o.Environ {
			if v, ok := strings.CutPrefix(kv, key+"="); ok {
				value = v
			}
		}
		return value
	}
	a := address{environment("DOCKER_HOST"), environment("DOCKER_CERT_PATH"), environment("DOCKER_TLS_VERIFY") != ""}
	if o.Config.TLSCertPath != "" {
		a.certPath, a.verify = o.Config.TLSCertPath, o.Config.TLSVerify
	}
	if a.verify && a.certPath == "" && o.Home != "" {
		a.certPath = filepath.Join(o.Home, ".docker")
	}
	if a.host == "" {
		a.host = client.DefaultDockerHost
	}
	return a
}

func connect(o Options) (*client.Client, error) {
	a := find(o)
	opts := []client.Opt{client.WithUserAgent("switchyard-agent/" + buildinfo.Version())}
	transport := &http.Transport{
		MaxIdleConns: maxIdle, MaxIdleConnsPerHost: maxIdle, IdleConnTimeout: idleTimeout,
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{}, // HTTP/1.1, as streams need it
	}
	dialer := &net.Dialer{Timeout: dialTimeout, KeepAliveConfig: keepAlive}
	web := func() client.Opt {
		return client.WithHTTPClient(&http.Client{Transport: transport, CheckRedirect: client.CheckRedirect})
	}
	switch u, err := client.ParseHostURL(a.host); {
	case strings.HasPrefix(a.host, "ssh://"):
		ssh, err := connhelper.GetConnectionHelperWithSSHOpts(a.host, slices.Concat(sshOptions, o.SSHOptions))
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", a.host, err)
		}
		opts = append(opts, web(), client.WithHost(ssh.Host),
			client.WithDialContext(func(ctx context.Context, network, addr string) (net.Conn, error) {
				// The connection outlives the question that it is made for; ssh would be killed with ctx.
				return ssh.Dialer(context.WithoutCancel(ctx), network, addr)
			}))
	case err != nil:
		return nil, fmt.Errorf("host %q: %w", a.host, err)
	case u.Scheme == "tcp" || u.Scheme == "http" || u.Scheme == "https":
		if a.certPath != "" {
			if transport.TLSClientConfig, err = certificates(a); err != nil {
				return nil, fmt.Errorf("host %q: %w", a.host, err)
			}
		}
		opts = append(opts, web(), client.WithHost(a.host),
			client.WithDialContext(func(ctx context.Context, _, _ string) (net.Conn, error) {
				c, err := dialer.DialContext(ctx, "tcp", u.Host)
				if err != nil {
					return nil, err
				}
				return &kept{c.(*net.TCPConn)}, nil
			}))
	default:
		opts = append(opts, web(), client.WithHost(a.host))
	}
	return client.New(opts...)
}

// kept is a connection whose keep-alive is not changed by the client.
type kept struct{ conn }

type conn interface {
	net.Conn
	CloseWrite() error
}

func certificates(a address) (*tls.Config, error) {
	c, err := tlsconfig.Client(tlsconfig.Options{
		CAFile:             filepath.Join(a.certPath, "ca.pem"),
		CertFile:           filepath.Join(a.certPath, "cert.pem"),
		KeyFile:            filepath.Join(a.certPath, "key.pem"),
		InsecureSkipVerify: !a.verify,
		ExclusiveRootPools: true,
		MinVersion:         tls.VersionTLS12,
	})
	if err != nil {
		return nil, fmt.Errorf("read the certificates in %s (tls_cert_path): %w", a.certPath, err)
	}
	return c, nil
}

// engine is what the engine said of itself.
type engine struct {
	version, api, os, arch string
}

// inquire asks the engine once who it is.
func (e *Executor) inquire(ctx context.Context) (*engine, error) {
	e.mu.Lock()
	known := e.engine
	e.mu.Unlock()
	if known != nil {
		return known, nil
	}
	v, err := e.client.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return nil, e.unreachable(err)
	}
	found := &engine{version: v.Version, api: v.APIVersion, os: v.Os, arch: v.Arch}
	if found.os != "linux" {
		return nil, fmt.Errorf("the engine at %s runs %s containers: only linux ones are supported", e.client.DaemonHost(), found.os)
	}
	if older(found.api, minAPIVersion) {
		return nil, fmt.Errorf("the engine at %s is Docker %s with API %s: API %s (Docker 19.03) or later is needed",
			e.client.DaemonHost(), found.version, found.api, minAPIVersion)
	}
	if err := e.settings.CheckEngine(found.api); err != nil {
		return nil, err
	}
	e.mu.Lock()
	e.engine = found
	e.mu.Unlock()
	e.log.Info("using a Docker engine", "host", e.client.DaemonHost(), "version", found.version, "api", found.api, "arch", found.arch)
	return found, nil
}

func (e *Executor) unreachable(err error) error {
	return fmt.Errorf("%w at %s: %w (is it running, and may this user use it? executors.docker.host and DOCKER_HOST say where it is)",
		errNoEngine, e.client.DaemonHost(), err)
}

func older(version, than string) bool {
	var a, b, c, d int
	if _, err := fmt.Sscanf(version, "%d.%d", &a, &b); err != nil {
		return false
	}
	_, _ = fmt.Sscanf(than, "%d.%d", &c, &d)
	return a < c || a == c && b < d
}

// lost says whether an error means that the engine was not reached or did not finish its answer.
func lost(err error) bool {
	if client.IsErrConnectionFailed(err) {
		return true
	}
	var network net.Error
	return errors.As(err, &network) && !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}
