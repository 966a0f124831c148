package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"

	"github.com/lmittmann/tint"
	"golang.org/x/sync/errgroup"
	"golang.org/x/term"
	"google.golang.org/grpc"

	"github.com/switchyard-ci/switchyard/controlplane"
	"github.com/switchyard-ci/switchyard/controlplane/admin"
	"github.com/switchyard-ci/switchyard/controlplane/config"
	"github.com/switchyard-ci/switchyard/controlplane/datafolder"
	"github.com/switchyard-ci/switchyard/controlplane/metrics"
	"github.com/switchyard-ci/switchyard/internal/buildinfo"
)

// configFlag is the flag that every command of the control plane has.
type configFlag struct {
	Config string `short:"c" name:"config" default:"switchyard.yaml" type:"path" help:"The control plane's configuration." placeholder:"FILE"`
}

// load reads the configuration and tells its warnings.
func (f configFlag) load(stderr io.Writer) (*config.Config, error) {
	c, warnings, err := config.Load(f.Config)
	for _, w := range warnings {
		fmt.Fprintln(stderr, "warning:", w)
	}
	if err != nil {
		return nil, usageError(fmt.Errorf("the configuration cannot be used:\n%w", err))
	}
	return c, nil
}

type serveCmd struct {
	configFlag
	LogLevel  slog.Level `default:"info" help:"debug, info, warn or error."`
	LogFormat string     `enum:"auto,text,json" default:"auto" help:"text, json, or auto: coloured on a terminal, text elsewhere."`
}

// Help is shown by --help.
func (serveCmd) Help() string {
	return `The file says which runners of which GitLabs are served:

  listen: 127.0.0.1:7443        # agents dial this; TLS
  data: ./data                  # store, spool, CA; created 0700
  runners:
    - name: everything
      url: https://gitlab.example.com
      token_file: ./token       # or token: or token_env:
      executor: shell
      limit: 0                  # jobs at once, 0 = no limit
      output_limit: 4096        # KiB of trace per job
      agents: {os: linux}       # which agents may serve it

SIGTERM or Ctrl-C stops it: nothing more is claimed, jobs that run go on and are taken up by the next start.`
}

func (c *serveCmd) Run(ctx context.Context, std streams) error {
	cfg, err := c.load(std.err)
	if err != nil {
		return err
	}
	log := newLogger(std.err, c.LogLevel, c.LogFormat)
	folder, err := datafolder.Open(cfg.Data)
	if err != nil {
		return usageError(err)
	}
	err = serve(ctx, cfg, folder.Path(), log)
	return errors.Join(err, folder.Close())
}

func serve(ctx context.Context, cfg *config.Config, data string, log *slog.Logger) error {
	// While another control plane leads in the database, this waits: nobody is to find it at its address meanwhile.
	plane, err := controlplane.Open(ctx, controlplane.Config{
		Data: data, Database: cfg.Database, Runners: cfg.Runners, PingPeriod: cfg.PingPeriod, StopAfter: cfg.StopAfter, LostAfter: cfg.LostAfter,
		SpoolMaxSize: cfg.Spool.MaxSize, SpoolMinFree: cfg.Spool.MinFree, Logger: log,
	})
	if err != nil {
		return fmt.Errorf("start the control plane: %w", err)
	}
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.Listen)
	if err != nil {
		err = usageError(fmt.Errorf("listen: %w (another address can be set with the key listen)", err))
		return errors.Join(err, plane.Close())
	}
	defer listener.Close()
	socket, err := admin.Listen(ctx, data)
	if err != nil {
		return errors.Join(err, plane.Close())
	}
	defer socket.Close()
	administration, err := admin.NewServer(plane.Authority(), plane.Dispatcher(), plane, log)
	if err != nil {
		return errors.Join(err, plane.Close())
	}
	var figures net.Listener
	if cfg.Metrics != "" {
		if figures, err = new(net.ListenConfig).Listen(ctx, "tcp", cfg.Metrics); err != nil {
			err = usageError(fmt.Errorf("listen for metrics: %w (another address can be set with the key metrics.listen)", err))
			return errors.Join(err, plane.Close())
		}
		defer figures.Close()
	}
	log.Info("serving", "version", buildinfo.Version(), "listen", listener.Addr().String(), "data", data, "runners", len(cfg.Runners))
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return plane.Serve(ctx, listener) })
	group.Go(func() error {
		if err := administration.Serve(socket); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
			return fmt.Errorf("serve administration: %w", err)
		}
		return nil
	})
	if figures != nil {
		group.Go(func() error { return metrics.Serve(ctx, figures, metrics.New(plane.Dispatcher(), plane)) })
	}
	group.Go(func() error {
		<-ctx.Done()
		log.Info("stopping; running jobs go on without the control plane")
		administration.Stop()
		return nil
	})
	return group.Wait()
}

func newLogger(w io.Writer, level slog.Level, format string) *slog.Logger {
	f, ok := w.(*os.File)
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, &slog.HandlerOptions{Level: level}))
	}
	if format == "auto" && ok && term.IsTerminal(int(f.Fd())) {
		return slog.New(tint.NewTextHandler(w, &tint.Options{Level: level}))
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

type configCmd struct {
	Check configCheckCmd `cmd:"" help:"Say whether the configuration can be used."`
}

type configCheckCmd struct{ configFlag }

func (c *configCheckCmd) Run(std streams) error {
	cfg, err := c.load(std.err)
	if err != nil {
		return err
	}
	state := cfg.Data
	if cfg.Database != "" {
		state += ", state in " + cfg.Database.String()
	}
	fmt.Fprintf(std.out, "%s can be used: %d runners, listening on %s, data in %s\n", c.Config, len(cfg.Runners), cfg.Listen, state)
	return nil
}
