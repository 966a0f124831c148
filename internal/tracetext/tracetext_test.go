package tracetext

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func lines(color bool, pieces ...string) []string {
	var out []string
	l := New(color, 0)
	emit := func(s string) { out = append(out, s) }
	for _, p := range pieces {
		l.Write([]byte(p), emit)
	}
	l.Flush(emit)
	return out
}

func TestLines(t *testing.T) {
	for _, c := range []struct {
		name, in string
		want     []string
	}{
		{"plain", "one\ntwo\n", []string{"one", "two"}},
		{"no line break at the end", "one\ntwo", []string{"one", "two"}},
		{"empty lines", "\n\na\n", []string{"", "", "a"}},
		{"CRLF", "one\r\ntwo\r\n", []string{"one", "two"}},
		{"progress", "10%\r50%\r100%\ndone\n", []string{"100%", "done"}},
		{"progress that ends with a carriage return", "10%\r50%\r", []string{}},
		{"backspace", "a|\b/\b-\n\b\bx\n", []string{"a-", "x"}},
		{"tab stays", "a\tb\n", []string{"a\tb"}},
		{"controls", "a\x00b\x07c\x0bd\x7fe\x0ef\n", []string{"abcdef"}},
		{"colours", "\x1b[31mred\x1b[0m\n", []string{"red"}},
		{"cursor and screen", "a\x1b[2J\x1b[10;10Hb\x1b[1A\x1b[?1049hc\x1b[6nd\n", []string{"abcd"}},
		{"title and clipboard", "a\x1b]0;owned\x07b\x1b]52;c;ZXZpbA==\x1b\\c\n", []string{"abc"}},
		{"device control", "a\x1bP1$r0m\x1b\\b\x1b_apc\x1b\\c\x1b^pm\x1b\\d\n", []string{"abcd"}},
		{"a string that never ends", "a\x1b]0;title\nb\n", []string{"a", "b"}},
		{"8-bit controls", "a\u009b2Jb\u009d0;t\u009cc\u0085d\n", []string{"abcd"}},
		{"reset and charsets", "a\x1bcb\x1b(0c\x1b#8d\x1b=e\n", []string{"abcde"}},
		{"escape at the end", "a\x1b", []string{"a"}},
		{"invalid UTF-8", "a\xff\xfeb\n\xc3(\n", []string{"a\ufffd\ufffdb", "\ufffd("}},
		{"half a character at the end", "a\xe2\x82", []string{"a\ufffd\ufffd"}},
		{"reordering and hiding", "a\u202eb\u2066c\u200bd\ufeffe\u2028f\U000e0041g\n", []string{"abcde fg"}},
		{"emoji and combining", "\U0001f468\u200d\U0001f469 e\u0301\n", []string{"\U0001f468\u200d\U0001f469 e\u0301"}},
		{
			"sections", "section_start:1700000000:step_script[collapsed=true]\r\x1b[0KExecuting\n$ make\nout" +
				"section_end:1700000001:step_script\r\x1b[0Ksection_start:1700000001:x-y.z\r\x1b[0K\nnext\nsection_end:1:a\r\x1b[0K",
			[]string{"Executing", "$ make", "out", "", "next"},
		},
		{"a marker and a line break", "asection_end:1:a\r\nb\nsection_end:1:a\r\nc\n", []string{"a", "b", "c"}},
		{"erased", "old\r\x1b[K\nold\r\x1b[2Knew\n", []string{"", "new"}},
		{"no section", "section_start:x:y\rz\nsection_end:1:\rb\nsection_begin:1:a\rc\n", []string{"z", "b", "c"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := lines(false, c.in)
			require.Equal(t, c.want, append([]string{}, got...))
			pieces := make([]string, len(c.in))
			for i := range len(c.in) {
				pieces[i] = c.in[i : i+1]
			}
			require.Equal(t, got, lines(false, pieces...), "byte by byte")
		})
	}
}

func TestColours(t *testing.T) {
	for in, want := range map[string][]string{
		"\x1b[32;1m$ make\x1b[0;m\nplain\n":                 {"\x1b[0;1;32m$ make\x1b[0m\x1b[0m", "plain"},
		"a \x1b[31mred\nstill\x1b[39m not\nplain\n":         {"a \x1b[0;31mred\x1b[0m", "\x1b[0;31mstill\x1b[0m not\x1b[0m", "plain"},
		"\x1b[8;5mhidden and blinking\n":                    {"hidden and blinking"},
		"\x1b[38;5;196;48;2;1;2;3mx\n":                      {"\x1b[0;38;5;196;48;2;1;2;3mx\x1b[0m"},
		"\x1b[38:2::1:2:3mx\x1b[m\n":                        {"\x1b[0;38:2::1:2:3mx\x1b[0m\x1b[0m"},
		"\x1b[1;3;4m\x1b[22;23mx\n":                         {"\x1b[0;4mx\x1b[0m"},
		"\x1b[38;5mx\x1b[38mx\x1b[99999999999999999999mx\n": {"xxx"},
		"\x1b[?31mx\x1b[31 mx\x1b[31$mx\n":                  {"xxx"},
		"\x1b[31mx\b\b\by\n":                                {"\x1b[0;31my\x1b[0m"},
		"a\x1b[31m\bb\n":                                    {"a\x1b[0;31mb\x1b[0m"},
		"\x1b[31mgone\rhere\n":                              {"\x1b[0;31mhere\x1b[0m"},
		strings.Repeat("\x1b[32mok\x1b[39m ", 100) + "\nnext": {
			strings.Repeat("\x1b[0;32mok\x1b[0m ", 100)[len("\x1b[0;32m"):], "next",
		},
	} {
		got := lines(true, in)
		if strings.HasPrefix(in, "\x1b[32mok") {
			require.Equal(t, "next", got[1])
			require.Equal(t, strings.Repeat("ok ", 100), Bare(got[0]))
			continue
		}
		require.Equal(t, want, got, "%q", in)
	}
}

func TestLongLinesAreBroken(t *testing.T) {
	var got []string
	l := New(true, 10)
	emit := func(s string) { got = append(got, s) }
	l.Write([]byte("0123456789ABCDEF\n\x1b[31m0123456789äöü\n"+strings.Repeat("\x1b[32m\x1b[31m", 10_000)), emit)
	require.Equal(t, []string{"0123456789", "ABCDEF", "\x1b[0;31m0123456789\x1b[0m", "\x1b[0;31mäöü\x1b[0m"}, got)
	require.LessOrEqual(t, cap(l.line), 64)
}

// Whatever a job writes, and however it is cut, a terminal shows it as lines.
func TestNothingGetsThrough(t *testing.T) {
	alphabet := []string{
		"\x1b", "[", "]", "P", "0;", "m", "31", "H", "J", "\x07", "\\", "\r", "\n", "\b", "\t", "a", "ä", "漢", "\xff", "\xe2", "\x82",
		"\u009b", "\u009d", "\u202e", "section_start:1:x", "section_end:2:y[z]", "\x00", "(", "?", "38;5;1",
	}
	rapid.Check(t, func(t *rapid.T) {
		in := strings.Join(rapid.SliceOfN(rapid.SampledFrom(alphabet), 0, 60).Draw(t, "in"), "")
		cut := rapid.IntRange(0, len(in)).Draw(t, "cut")
		color := rapid.Bool().Draw(t, "color")
		got := lines(color, in[:cut], in[cut:])
		if whole := lines(color, in); !equal(whole, got) {
			t.Fatalf("cut at %d: %q, whole: %q", cut, got, whole)
		}
		for _, line := range got {
			if strings.Contains(line, "\x1b") && (!color || !strings.HasSuffix(line, reset)) {
				t.Fatalf("an escape in %q", line)
			}
			bare := Bare(line)
			if !utf8.ValidString(bare) {
				t.Fatalf("no UTF-8: %q", bare)
			}
			for _, r := range bare {
				if r != '\t' && unicode.Is(unicode.Cc, r) || r == '\u202e' {
					t.Fatalf("%U in %q", r, line)
				}
			}
		}
	})
}

func equal(a, b []string) bool {
	return strings.Join(a, "\n") == strings.Join(b, "\n") && len(a) == len(b)
}

func TestPartial(t *testing.T) {
	l := New(true, 0)
	for _, c := range []struct{ write, want string }{
		{"", ""},
		{"name? ", "name? "},
		{"x\n", ""},
		{"\x1b[32m 5%", "\x1b[0;32m 5%\x1b[0m"},
		{"\r", "\x1b[0;32m 5%\x1b[0m"},
		{"10%", "\x1b[0;32m10%\x1b[0m"},
		{"\x1b[m\n", ""},
		{"section_end:1:a\r", ""},
		{"\x1b[0K", ""},
	} {
		l.Write([]byte(c.write), func(string) {})
		require.Equal(t, c.want, l.Partial(), "%q", c.write)
	}
}

func TestClean(t *testing.T) {
	require.Equal(t, "build: [linux, amd64] x y", Clean("build: \x1b[31m[linux,\tamd64]\nx y\x1b[2J"))
}

func BenchmarkLines(b *testing.B) {
	piece := []byte(strings.Repeat("2025-01-01 some line of a build, with a path/to/a/file.go:12 and \x1b[32mgreen\x1b[0m text\n", 700))
	b.SetBytes(int64(len(piece)))
	l := New(true, 0)
	for b.Loop() {
		l.Write(piece, func(string) {})
	}
}
