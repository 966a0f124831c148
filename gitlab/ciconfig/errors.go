package ciconfig

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrNoJobs says that the configuration is valid but that its rules leave no job (or only jobs in .pre and .post) for
// this context. It is in the chain of what [Compile] returns.
var ErrNoJobs = errors.New("the rules of all jobs leave no job for this pipeline")

// ErrWorkflow says that `workflow:rules` decide against a pipeline in this context. It is in the chain of what [Compile]
// returns.
var ErrWorkflow = errors.New("workflow:rules do not create a pipeline")

// Error is one thing that is wrong with a configuration.
type Error struct {
	File   string // as given to [Compile], or the path of the included file
	Line   int    // 1-based; 0 if the error has no place in the file
	Column int    // 1-based, in characters; 0 if unknown
	// Path is the place in the configuration: keys and 0-based list positions joined by ":", "jobs:test:needs:0" or
	// "variables:KEY"; empty for errors of YAML itself.
	Path    string
	Message string // one line, without a full stop
	Hint    string // the way out; may be empty

	cause error
}

// Error returns `file:line:col: path: message (hint)`, without the parts that are not known.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
		if e.Column > 0 {
			fmt.Fprintf(&b, ":%d", e.Column)
		}
	}
	b.WriteString(": ")
	if e.Path != "" {
		b.WriteString(e.Path + ": ")
	}
	b.WriteString(e.Message)
	if e.Hint != "" {
		b.WriteString(" (" + e.Hint + ")")
	}
	return b.String()
}

// Unwrap returns [ErrNoJobs], [ErrWorkflow], the error of a callback of [Options], or nil.
func (e *Error) Unwrap() error { return e.cause }

// Errors is what [Compile] returns for a configuration that it refuses: at least one and at most fifty errors,
// sorted by file in the order of inclusion, line and column.
type Errors []*Error

// Error returns one line per error.
func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the single errors, for [errors.Is] and [errors.As].
func (es Errors) Unwrap() []error {
	out := make([]error, len(es))
	for i, e := range es {
		out[i] = e
	}
	return out
}

// maxErrors bounds a report: more does not help anyone.
const maxErrors = 50

// report collects what is wrong.
type report struct {
	errs  Errors
	seen  map[string]bool
	files []string // in the order of inclusion
}

// full tells whether further errors are dropped.
func (r *report) full() bool { return len(r.errs) >= maxErrors }

func (r *report) add(e *Error) {
	if r.full() {
		return
	}
	line := e.Error()
	if r.seen[line] {
		return
	}
	if r.seen == nil {
		r.seen = map[string]bool{}
	}
	r.seen[line] = true
	r.errs = append(r.errs, e)
}

// at adds an error at a place.
func (r *report) at(p pos, path, message, hint string) {
	r.add(&Error{File: p.file, Line: p.line, Column: p.col, Path: path, Message: message, Hint: hint})
}

// err returns what was collected, sorted, or nil.
func (r *report) err() error {
	if len(r.errs) == 0 {
		return nil
	}
	slices.SortStableFunc(r.errs, func(a, b *Error) int {
		return cmp.Or(
			cmp.Compare(slices.Index(r.files, a.File), slices.Index(r.files, b.File)),
			cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Column, b.Column),
		)
	})
	return r.errs
}
