//go:build unix

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	jobserve "github.com/switchyard-ci/switchyard/job/serve"
)

// binaryName is the file that install makes.
const binaryName = "switchyard-job"

// hold keeps a container alive for what is started in it from outside, and makes its volumes ready for a job.
func hold(args []string) int {
	_, named, err := parse(args, 0, "open", "socket", "token-file")
	if err != nil {
		return misused("hold: " + err.Error())
	}
	if (named["socket"] == "") != (named["token-file"] == "") {
		return misused("hold: --socket and --token-file go together")
	}
	ends := make(chan os.Signal, 4)
	signal.Notify(ends, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	if err := openFolders(named["open"]); err != nil {
		return failed(err)
	}
	met := make(chan error, 1)
	// Without an end: the container of the script may start late, and whoever wants it no more removes this one.
	go func() { met <- meet(context.Background(), named["socket"], named["token-file"]) }()
	for {
		select {
		case err := <-met:
			if err != nil {
				return failed(err)
			}
			announce("ready")
		case <-children:
			reapAll()
		case <-ends:
			return exitOK
		}
	}
}

// openFolders makes volumes writable for everyone: the user's script may run as anyone.
func openFolders(list string) error {
	for _, dir := range filepath.SplitList(list) {
		d, err := os.OpenFile(dir, os.O_RDONLY|syscall.O_DIRECTORY|syscall.O_NOFOLLOW, 0)
		if err != nil {
			return fmt.Errorf("open a volume to everyone: %w", err)
		}
		info, err := d.Stat()
		if err == nil && info.Mode().Perm() != 0o777 {
			err = d.Chmod(0o777)
		}
		_ = d.Close()
		if err != nil {
			return fmt.Errorf("open a volume to everyone: %w", err)
		}
	}
	return nil
}

// meet passes the token, the first line of standard input, on to the server of the user's script by a file, and waits
// until that server answers to it. The file is gone then.
func meet(ctx context.Context, socket, tokenFile string) error {
	if socket == "" {
		return nil
	}
	token, err := readToken(ctx, "")
	if err != nil {
		return err
	}
	temporary := tokenFile + ".new"
	// For everyone in the container of the script: who the script runs as is not known here.
	err = os.WriteFile(temporary, []byte(token+"\n"), 0o444) // #nosec G306 -- see above
	if err == nil {
		err = os.Rename(temporary, tokenFile)
	}
	if err != nil {
		return fmt.Errorf("pass on the token: %w", err)
	}
	conn, err := jobserve.Dial(ctx, socket, token)
	if err != nil {
		return err
	}
	_ = conn.Close()
	if err := os.Remove(tokenFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("take the token back: %w", err)
	}
	return nil
}

// reapAll takes the exit codes of all children that have ended.
func reapAll() {
	for {
		pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil)
		if err != nil && !errors.Is(err, syscall.EINTR) || err == nil && pid == 0 {
			return
		}
	}
}

// install puts this program into a folder that other containers get.
func install(args []string) int {
	operand, _, err := parse(args, 1)
	if err != nil {
		return misused("install: " + err.Error())
	}
	if err := installTo(operand[0]); err != nil {
		return failed(fmt.Errorf("install this program: %w", err))
	}
	return exitOK
}

func installTo(dir string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	in, err := os.Open(self)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	// A name of its own for each: two may install at once, and what is left of one that was killed must not matter.
	out, err := os.CreateTemp(dir, "."+binaryName+".*")
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	if err == nil {
		err = out.Chmod(0o755)
	}
	if err == nil {
		err = out.Sync()
	}
	if err = errors.Join(err, out.Close()); err == nil {
		err = os.Rename(out.Name(), filepath.Join(dir, binaryName))
	}
	if err != nil {
		return errors.Join(err, os.Remove(out.Name()))
	}
	return sweepTemporary(dir)
}

// sweepTemporary removes what installations that were killed have left.
func sweepTemporary(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "."+binaryName+".") {
			continue
		}
		if info, err := e.Info(); err != nil || time.Since(info.ModTime()) < time.Hour {
			continue
		}
		if err := os.Remove(filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
