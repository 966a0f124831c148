package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
)

// event is one line of `go test -json` (go doc test2json).
type event struct {
	Action     string
	Package    string
	ImportPath string // of build-output
	Test       string
	Output     string
}

// counts are the tests of a run. A test with subtests counts by them alone, unless it failed and none of them did. A
// package that failed outside its tests (it does not compile, TestMain or a leak check said no) counts as one failure.
type counts struct {
	passed, failed, skipped int
}

// String is the closing line.
func (c counts) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", c.passed, c.failed, c.skipped)
}

// report reads what `go test -json` prints from in until its end and writes to out, package by package as they end: all output of
// tests that failed, the reason of those that were skipped, and go's own line about the package. What is not JSON is
// passed on. The error is about reading and writing, or says that no package reported anything.
func report(in io.Reader, out io.Writer) (counts, error) {
	r := &run{packages: map[string]*pkg{}, out: bufio.NewWriter(out)}
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			r.line(line)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return r.total, fmt.Errorf("read the test events: %w", err)
		}
	}
	for name, p := range r.packages {
		// The go command itself was killed: nobody said how these ended.
		r.end(name, p, true)
	}
	if err := r.out.Flush(); err != nil {
		return r.total, fmt.Errorf("write the report: %w", err)
	}
	if !r.ended {
		return r.total, errors.New("no package reported a result")
	}
	return r.total, nil
}

type run struct {
	packages map[string]*pkg
	out      *bufio.Writer
	total    counts
	ended    bool
}

// pkg is a package whose tests run.
type pkg struct {
	tests  map[string]*test
	order  []*test
	output []string // the package's own lines
}

type test struct {
	name   string
	action string // pass, fail, skip or running
	output []string
}

// The actions that end a test or a package, and what a test has before one of them.
const (
	pass    = "pass"
	fail    = "fail"
	skip    = "skip"
	running = ""
)

func (t *test) outcome() string {
	if t.action == running {
		return "did not finish"
	}
	return "failed"
}

func (r *run) line(line []byte) {
	var e event
	if !bytes.HasPrefix(line, []byte("{")) || json.Unmarshal(line, &e) != nil {
		_, _ = r.out.Write(line) // a failed write comes back from Flush
		return
	}
	switch e.Action {
	case "build-output":
		_, _ = r.out.WriteString(e.Output)
	case "output":
		if e.Test == "" {
			p := r.pkg(e.Package)
			p.output = append(p.output, e.Output)
		} else {
			t := r.pkg(e.Package).test(e.Test)
			t.output = append(t.output, e.Output)
		}
	case "run":
		r.pkg(e.Package).test(e.Test)
	case pass, fail, skip:
		p := r.pkg(e.Package)
		if e.Test != "" {
			t := p.test(e.Test)
			t.action = e.Action
			if e.Action == pass {
				t.output = nil
			}
			return
		}
		r.end(e.Package, p, e.Action == fail)
	}
}

func (r *run) pkg(name string) *pkg {
	p := r.packages[name]
	if p == nil {
		p = &pkg{tests: map[string]*test{}}
		r.packages[name] = p
	}
	return p
}

func (p *pkg) test(name string) *test {
	t := p.tests[name]
	if t == nil {
		t = &test{name: name}
		p.tests[name] = t
		p.order = append(p.order, t)
	}
	return t
}

// parents returns the names of the tests that have subtests and, of these, those below which something did not pass.
func (p *pkg) parents() (all, failedBelow map[string]bool) {
	all, failedBelow = map[string]bool{}, map[string]bool{}
	for _, t := range p.order {
		for i, c := range t.name {
			if c != '/' {
				continue
			}
			all[t.name[:i]] = true
			if t.action == fail || t.action == running {
				failedBelow[t.name[:i]] = true
			}
		}
	}
	return all, failedBelow
}

// end counts and prints a package.
func (r *run) end(name string, p *pkg, failed bool) {
	delete(r.packages, name)
	r.ended = true
	parents, failedBelow := p.parents()
	failures := 0
	for _, t := range p.order {
		switch t.action {
		case pass:
			if !parents[t.name] {
				r.total.passed++
			}
		case skip:
			if !parents[t.name] {
				r.total.skipped++
			}
			r.print(name, t, "skipped")
		default:
			if !failedBelow[t.name] {
				failures++
			}
			r.print(name, t, t.outcome())
		}
	}
	if failed && failures == 0 {
		failures = 1
	}
	r.total.failed += failures
	for _, line := range p.output {
		if failed && line != "FAIL\n" || strings.HasPrefix(line, "ok") || strings.HasPrefix(line, "?") {
			_, _ = r.out.WriteString(line)
		}
	}
	// Somebody may be watching; an error comes back from the last Flush.
	_ = r.out.Flush()
}

// print writes what a test said, without the framework's own progress lines.
func (r *run) print(name string, t *test, what string) {
	_, _ = fmt.Fprintf(r.out, "%s: %s %s\n", name, t.name, what)
	for line := range strings.Lines(strings.Join(t.output, "")) {
		if !strings.HasPrefix(line, "=== ") {
			_, _ = fmt.Fprintf(r.out, "    %s\n", strings.TrimSuffix(line, "\n"))
		}
	}
}
