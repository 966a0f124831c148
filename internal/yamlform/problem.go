package yamlform

import (
	"cmp"
	"fmt"
	"regexp"
	"strconv"
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

var yamlLine = regexp.MustCompile(`^yaml: line (\d+): `)

// syntaxProblem gives the parser's error its place.
func syntaxProblem(file string, err error) Problem {
	p := Problem{File: file, Message: strings.TrimPrefix(err.Error(), "yaml: "), Hint: "the file must be YAML"}
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		p.Line, _ = strconv.Atoi(m[1]) // digits
		p.Message = strings.TrimPrefix(err.Error(), m[0])
	}
	return p
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
