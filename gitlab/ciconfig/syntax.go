package ciconfig

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// syntaxError finds where the YAML goes wrong. The parser tells a line that is often the one of the surrounding block
// and no column, so the place is the line after the longest beginning of the file that is valid.
func syntaxError(file string, src []byte, err error) (p pos, message, hint string) {
	message = strings.TrimPrefix(err.Error(), "yaml: ")
	if rest, ok := strings.CutPrefix(message, "line "); ok {
		if num, tail, ok := strings.Cut(rest, ": "); ok && strings.Trim(num, "0123456789") == "" {
			message = tail
		}
	}
	line := firstBadLine(src)
	text := lineOf(src, line)
	column := len(text) - len(bytes.TrimLeft(text, " \t"))
	if name, ok := strings.CutPrefix(message, "unknown anchor '"); ok {
		name, _, _ = strings.Cut(name, "'")
		message = fmt.Sprintf("the anchor %q is not defined", name)
		hint = "anchors are defined with &" + name + " before they are used, in the same file"
		if i := bytes.Index(text, []byte("*"+name)); i > 0 {
			column = utf8.RuneCount(text[:i])
		}
	} else {
		hint = syntaxHint(message, text)
		message = "invalid YAML: " + message
	}
	return pos{file: file, line: line, col: column + 1}, message, hint
}

func syntaxHint(message string, line []byte) string {
	switch {
	case bytes.HasPrefix(bytes.TrimLeft(line, " "), []byte("\t")):
		return "YAML does not allow tabs for indentation"
	case strings.HasPrefix(message, "mapping values are not allowed"):
		return `quote the text: YAML reads ": " in it as a key and its value`
	case strings.Contains(message, "end of stream"):
		return "a quote or a bracket that is opened here is not closed"
	case strings.HasPrefix(message, "did not find expected key"), strings.HasPrefix(message, "did not find expected '-'"):
		return "check the indentation"
	case strings.Contains(message, "cannot start any token"):
		return "quote the text"
	}
	return ""
}

func lineOf(src []byte, line int) []byte {
	for ; line > 1; line-- {
		i := bytes.IndexByte(src, '\n')
		if i < 0 {
			return nil
		}
		src = src[i+1:]
	}
	text, _, _ := bytes.Cut(src, []byte("\n"))
	return text
}

// firstBadLine returns the 1-based line in which a file that does not parse stops being YAML. It parses at most some
// megabytes; what it returns is exact below that.
func firstBadLine(src []byte) int {
	ends := []int{0} // ends[k] is where line k ends
	for i, c := range src {
		if c == '\n' {
			ends = append(ends, i+1)
		}
	}
	if last := ends[len(ends)-1]; last < len(src) {
		ends = append(ends, len(src))
	}
	budget := 8 << 20
	valid := func(k int) bool {
		budget -= ends[k] + 100
		dec := yaml.NewDecoder(bytes.NewReader(src[:ends[k]]))
		for {
			var doc yaml.Node
			if err := dec.Decode(&doc); err != nil {
				return errors.Is(err, io.EOF)
			}
		}
	}
	good, bad := 0, len(ends)-1
	for good+1 < bad {
		if mid := (good + bad) / 2; valid(mid) {
			good = mid
		} else {
			bad = mid
		}
	}
	// A beginning that ends inside a quoted or bracketed value is invalid although the file goes on well.
	for k := good + 2; k < len(ends)-1 && k < good+400 && budget > 0; k++ {
		if valid(k) {
			good = k
		}
	}
	return min(good+1, max(1, len(ends)-1))
}
