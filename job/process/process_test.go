//go:build linux

package process_test

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/switchyard-ci/switchyard/job/process"
)

// A group owns all children of its process, and the test's own process must not be one: each test runs a copy of itself.
func TestMain(m *testing.M) {
	if name := os.Getenv("PROCESS_TEST_SCENE"); name != "" {
		if err := scenes[name](); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func play(t *testing.T, scene string) {
	t.Helper()
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), "PROCESS_TEST_SCENE="+scene)
	out, err := c.CombinedOutput()
	require.NoError(t, err, string(out))
}

func TestExitCodes(t *testing.T)        { play(t, "exit codes") }
func TestOrphansAreReaped(t *testing.T) { play(t, "orphans") }
func TestStopAll(t *testing.T)          { play(t, "stop all") }
func TestForkBomb(t *testing.T)         { play(t, "fork bomb") }
func TestMany(t *testing.T)             { play(t, "many") }

var scenes = map[string]func() error{
	"exit codes": func() error {
		return with(func(g *process.Group) error {
			for script, want := range map[string]process.Exit{
				"exit 0": {}, "exit 3": {Code: 3}, "exit 255": {Code: 255},
				"kill -9 $$": {Code: 137, Signal: syscall.SIGKILL}, "kill -TERM $$": {Code: 143, Signal: syscall.SIGTERM},
			} {
				p, err := g.Start(sh(script, nil))
				if err != nil {
					return err
				}
				<-p.Done()
				if p.Exit() != want {
					return fmt.Errorf("%s: %+v, want %+v", script, p.Exit(), want)
				}
				if err := g.Signal(p, syscall.SIGKILL); err != nil {
					return fmt.Errorf("signal to an ended process: %w", err)
				}
			}
			_, err := g.Start(process.Command{Path: "/no/such/file", Argv: []string{"x"}, Dir: "/"})
			if err == nil || !strings.Contains(err.Error(), "start /no/such/file: no such file") {
				return fmt.Errorf("a missing program: %w", err)
			}
			<-g.Empty()
			return nil
		})
	},
	"orphans": func() error {
		return with(func(g *process.Group) error {
			// A hundred processes whose parents are gone must not stay as zombies while the script goes on.
			r, w, err := os.Pipe()
			if err != nil {
				return err
			}
			defer r.Close()
			p, err := g.Start(sh(`for i in 1 2 3 4 5 6 7 8 9 10; do (sleep 0.01 & sleep 0.01 & exec true); done; sleep 0.3; echo; sleep 60`, w))
			w.Close()
			if err != nil {
				return err
			}
			if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
				return err
			}
			zombies, err := zombieChildren()
			if err != nil || zombies > 0 {
				return fmt.Errorf("%d zombies, %w", zombies, err)
			}
			if !g.StopAll(time.Second, time.Second) {
				return fmt.Errorf("something is left")
			}
			<-p.Done()
			return nil
		})
	},
	"stop all": func() error {
		return with(func(g *process.Group) error {
			r, w, err := os.Pipe()
			if err != nil {
				return err
			}
			defer r.Close()
			// A daemon in a session of its own, one that ignores SIGTERM, a stopped one, and a polite one that says so.
			p, err := g.Start(sh(`
				setsid sh -c 'trap "" TERM; echo ready; sleep 61 & wait; sleep 62' &
				sleep 63 & kill -STOP $!
				sh -c 'trap "echo polite; exit 0" TERM; echo ready; sleep 64 & wait' &
				exit 0`, w))
			w.Close()
			if err != nil {
				return err
			}
			<-p.Done()
			lines := bufio.NewScanner(r)
			for range 2 {
				lines.Scan()
			}
			began := time.Now()
			if !g.StopAll(200*time.Millisecond, 5*time.Second) {
				return fmt.Errorf("something is left")
			}
			if d := time.Since(began); d < 200*time.Millisecond || d > 4*time.Second {
				return fmt.Errorf("it took %v", d)
			}
			<-g.Empty()
			if !lines.Scan() || lines.Text() != "polite" || lines.Scan() {
				return fmt.Errorf("said %q", lines.Text())
			}
			return nil
		})
	},
	"fork bomb": func() error {
		return with(func(g *process.Group) error {
			r, w, err := os.Pipe()
			if err != nil {
				return err
			}
			defer r.Close()
			// It goes on forking, into sessions of their own, while it is killed.
			p, err := g.Start(sh(`trap '' TERM; echo; while :; do setsid sh -c 'trap "" TERM; sleep 65 & sleep 66' & done`, w))
			w.Close()
			if err != nil {
				return err
			}
			if _, err := bufio.NewReader(r).ReadString('\n'); err != nil {
				return err
			}
			if !g.KillAll(20 * time.Second) {
				return fmt.Errorf("something is left")
			}
			<-p.Done()
			return nil
		})
	},
	"many": func() error {
		return with(func(g *process.Group) error {
			errs := make(chan error)
			for i := range 8 {
				go func() {
					for j := range 20 {
						p, err := g.Start(sh(fmt.Sprintf("exit %d", (i*20+j)%256), nil))
						if err != nil {
							errs <- err
							return
						}
						<-p.Done()
						if p.Exit().Code != (i*20+j)%256 {
							errs <- fmt.Errorf("code %d", p.Exit().Code)
							return
						}
					}
					errs <- nil
				}()
			}
			for range 8 {
				if err := <-errs; err != nil {
					return err
				}
			}
			return nil
		})
	},
}

func with(f func(*process.Group) error) error {
	g, err := process.NewGroup()
	if err != nil {
		return err
	}
	err = f(g)
	if !g.KillAll(10 * time.Second) {
		return fmt.Errorf("processes are left: %w", err)
	}
	g.Close()
	return err
}

func sh(script string, out *os.File) process.Command {
	return process.Command{Path: "/bin/sh", Argv: []string{"sh", "-c", script}, Env: os.Environ(), Dir: "/", Stdout: out, Stderr: os.Stderr}
}

func zombieChildren() (int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	n := 0
	for _, name := range stats {
		b, _ := os.ReadFile(name)
		text := string(b)
		fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
		if len(fields) > 1 && fields[0] == "Z" && fields[1] == strconv.Itoa(os.Getpid()) {
			n++
		}
	}
	return n, err
}
