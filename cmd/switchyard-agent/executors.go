package main

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"

	"github.com/switchyard-ci/switchyard/executors"
	"github.com/switchyard-ci/switchyard/executors/docker"
	"github.com/switchyard-ci/switchyard/executors/shell"
)

// places are the executors that have a section in the file; without any it is shell.
func (s *settings) places(data string, log *slog.Logger) (places []executors.Executor, err error) {
	sh := s.Executors.Shell
	if sh == nil && s.Executors.Docker == nil {
		sh = &shellFile{}
	}
	if sh != nil {
		_, supervised := os.LookupEnv("INVOCATION_ID")
		limits, err := sh.limits()
		if err != nil {
			return nil, err
		}
		if n := len(sh.RunAs); n > 1 && n < s.Slots {
			return nil, fmt.Errorf("executors.shell.run_as names %d users for %d slots: name one for all jobs, or one for each slot", n, s.Slots)
		}
		x, err := shell.New(shell.Config{
			Jobs: filepath.Join(data, "jobs"), BuildsDir: or(sh.BuildsDir, filepath.Join(data, "builds")),
			CacheDir: or(sh.CacheDir, filepath.Join(data, "cache")), Shell: sh.Shell, Environ: os.Environ(), Supervised: supervised, Log: log,
			RunAs: sh.RunAs, Limits: limits, CustomBuildDir: sh.CustomBuildDir,
		})
		if err != nil {
			return nil, err
		}
		places = append(places, x)
	}
	if d := s.Executors.Docker; d != nil {
		programs, err := programFolder()
		if err != nil {
			return nil, err
		}
		x, err := docker.New(docker.Options{
			Config: d, Data: data, BuildsDir: d.BuildsDir, Programs: programs, Home: home(), Environ: os.Environ(), Log: log,
		})
		if err != nil {
			return nil, err
		}
		places = append(places, x)
	}
	return places, nil
}

// leavePlaces ends connections of executors that have some.
func leavePlaces(places []executors.Executor, log *slog.Logger) {
	for _, x := range places {
		if c, ok := x.(io.Closer); ok {
			if err := c.Close(); err != nil {
				log.Warn("an executor did not close", "executor", x.Name(), "err", err)
			}
		}
	}
}

// programFolder is where this program is, links followed: its companions are beside it.
func programFolder() (string, error) {
	self, err := os.Executable()
	if err == nil {
		self, err = filepath.EvalSymlinks(self)
	}
	if err != nil {
		return "", fmt.Errorf("find the agent's own program: %w", err)
	}
	return filepath.Dir(self), nil
}

// home is the user's folder, "" if there is none. A service has no HOME.
func home() string {
	if dir, err := os.UserHomeDir(); err == nil {
		return dir
	}
	if u, err := user.Current(); err == nil {
		return u.HomeDir
	}
	return ""
}
