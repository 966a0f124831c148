package tracetext

import (
	"strconv"
	"strings"
)

// style is how text looks. The zero value is the terminal's own.
type style struct {
	foreground, background string // parameters of SGR; empty: the default
	flags                  uint16 // bit n: SGR n, 1 to 9
}

const reset = "\x1b[0m"

// allowed are the flags that are passed on: neither blinking (5, 6) nor concealed (8).
const allowed = 1<<1 | 1<<2 | 1<<3 | 1<<4 | 1<<7 | 1<<9

// sequence sets the style, whatever was before.
func (s style) sequence() string {
	var b strings.Builder
	b.WriteString("\x1b[0")
	for n := range 10 {
		if s.flags&(1<<n) != 0 {
			b.WriteString(";" + strconv.Itoa(n))
		}
	}
	for _, color := range []string{s.foreground, s.background} {
		if color != "" {
			b.WriteString(";" + color)
		}
	}
	b.WriteString("m")
	return b.String()
}

// apply changes the style by the parameters of one SGR sequence. It returns false if they are malformed.
func (s *style) apply(parameters string) bool {
	for _, c := range []byte(parameters) {
		if (c < '0' || c > '9') && c != ';' && c != ':' {
			return false
		}
	}
	list := strings.Split(parameters, ";")
	for len(list) > 0 {
		n := 1
		if strings.Contains(list[0], ":") {
			s.colon(list[0])
		} else {
			n = s.one(list)
		}
		list = list[n:]
	}
	return true
}

// one applies the first of the parameters and returns how many belong to it.
func (s *style) one(list []string) int {
	code, err := strconv.Atoi(list[0])
	if list[0] == "" {
		code, err = 0, nil
	}
	if err != nil {
		return 1
	}
	switch {
	case code == 0:
		*s = style{}
	case code < 10:
		s.flags |= 1 << code & allowed
	case code == 22:
		s.flags &^= 1<<1 | 1<<2
	case code >= 23 && code <= 29:
		s.flags &^= 1 << (code - 20)
	case code >= 30 && code <= 37, code >= 90 && code <= 97:
		s.foreground = list[0]
	case code >= 40 && code <= 47, code >= 100 && code <= 107:
		s.background = list[0]
	case code == 39:
		s.foreground = ""
	case code == 49:
		s.background = ""
	case code == 38 || code == 48:
		n := 1
		if len(list) > 1 {
			n = map[string]int{"5": 3, "2": 5}[list[1]]
		}
		if n < 2 || n > len(list) {
			return len(list)
		}
		s.set(code, strings.Join(list[:n], ";"))
		return n
	}
	return 1
}

// colon applies a colour in the form with colons.
func (s *style) colon(parameter string) {
	if kind, _, _ := strings.Cut(parameter, ":"); len(parameter) <= maxSequence {
		switch kind {
		case "38":
			s.set(38, parameter)
		case "48":
			s.set(48, parameter)
		}
	}
}

func (s *style) set(code int, color string) {
	if code == 38 {
		s.foreground = color
	} else {
		s.background = color
	}
}
