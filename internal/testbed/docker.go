package testbed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

const (
	dockerHost    = "DOCKER_HOST"
	defaultEngine = "unix:///var/run/docker.sock"
	// dockerAnswers is how long an engine may take for the cheapest of questions.
	dockerAnswers = 5 * time.Second
)

// checkDocker asks the engine at DOCKER_HOST, or at the default socket, whether it is there. It takes no Docker client,
// so that every test may ask.
func checkDocker() error {
	host := os.Getenv(dockerHost)
	if host == "" {
		host = defaultEngine
	}
	if err := pingDocker(host); err != nil {
		return fmt.Errorf("no Docker Engine answers at %s (%w); `make testbed` starts one on Debian as root, elsewhere start "+
			"one or point %s to it", host, err, dockerHost)
	}
	return nil
}

func pingDocker(host string) error {
	ctx, cancel := context.WithTimeout(context.Background(), dockerAnswers)
	defer cancel()
	network, address, ok := strings.Cut(host, "://")
	if !ok || network != "unix" && network != "tcp" || address == "" {
		return errors.New("the tests talk to unix:///PATH or tcp://HOST:PORT")
	}
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://engine/_ping", nil)
	if err != nil {
		return err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<10))
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK || response.Header.Get("Api-Version") == "" {
		return fmt.Errorf("%s: %q is not an engine's answer", response.Status, body)
	}
	return nil
}
