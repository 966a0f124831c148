package yamlform

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

// MaxProblems bounds a report: more does not help anyone.
const MaxProblems = 50

// Problem is one thing that is wrong with a file, or worth a warning.
type Problem struct {
	File         string // as given to Parse
	Line, Column int    // 1-based; 0 if the whole file is meant
	Field        string // for example runners[0].url; empty for the file's syntax
	Message      string // what is wrong
	Hint         string // the way out; may be empty
}

// String is `file:line:column: field: message; hint`.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
		if p.Column > 0 {
			fmt.Fprintf(&b, ":%d", p.Column)
		}
	}
	b.WriteString(": ")
	if p.Field != "" {
		b.WriteString(p.Field + ": ")
	}
	b.WriteString(p.Message)
	if p.Hint != "" {
		b.WriteString("; " + p.Hint)
	}
	return b.String()
}

// Problems is the error for a file that cannot be used: at least one problem, in the file's order.
type Problems []Problem

// Error has one line for each problem.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

func inOrder(a, b Problem) int {
	return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
}

// secondDocument is a document after the one that a file may have.
type secondDocument struct{ line int }

func (*secondDocument) Error() string { return "a second document begins here, but there must be one" }

var yamlLine = regexp.MustCompile(`^yaml: (?:line \d+: )?`)

// syntaxProblem gives the parser's error its place.
func syntaxProblem(file string, data []byte, err error) Problem {
	p := Problem{File: file, Message: yamlLine.ReplaceAllString(err.Error(), ""), Hint: "the file must be YAML"}
	if second, ok := errors.AsType[*secondDocument](err); ok {
		p.Line = second.line
		return p
	}
	p.Line = syntaxLine(data)
	return p
}

// syntaxLine is the line with which a file can no longer be read, whatever follows. The parser's own line is that of the
// construct around it, for some errors counted from 0, and missing for others.
func syntaxLine(data []byte) int {
	in := &lines{rest: data}
	_, _ = parse(in)
	ends := []int{0}
	for line := range bytes.Lines(data[:len(data)-len(in.rest)]) { // the parser takes no more than it needs
		ends = append(ends, ends[len(ends)-1]+len(line))
	}
	taken := len(ends) - 1
	bad, good := taken, max(taken-1, 0)
	for good > 0 && !readable(data[:ends[good]]) { // line by line at first: a list that goes on is unreadable for a while, too
		bad, good = good, max(good-1-(taken-good)/16, 0)
	}
	for bad-good > 1 {
		if half := (good + bad) / 2; readable(data[:ends[half]]) {
			good = half
		} else {
			bad = half
		}
	}
	return bad
}

// readable says whether a part of a file could be a file.
func readable(data []byte) bool {
	_, err := parse(bytes.NewReader(data))
	return err == nil || errors.Is(err, ErrEmpty)
}

// lines is a reader that gives one line at a time.
type lines struct{ rest []byte }

func (l *lines) Read(p []byte) (int, error) {
	if len(l.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(p, l.rest)
	if end := bytes.IndexByte(p[:n], '\n'); end >= 0 {
		n = end + 1
	}
	l.rest = l.rest[n:]
	return n, nil
}

// Nearest returns the known name that an unknown one was most likely meant to be, or "".
func Nearest(name string, known []string) string {
	best, bestDistance := "", max(2, len(name)/3)+1
	for _, k := range known {
		if d := distance(strings.ToLower(name), k); d < bestDistance {
			best, bestDistance = k, d
		}
	}
	return best
}

// distance is the number of letters to insert, delete or replace.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			replaced := diagonal
			if a[i] != b[j] {
				replaced++
			}
			diagonal = row[j+1]
			row[j+1] = min(replaced, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
