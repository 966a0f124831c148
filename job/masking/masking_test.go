package masking

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// reference says what is hidden, byte by byte and without any cleverness.
func reference(text string, phrases, prefixes []string) string {
	type interval struct{ from, to int }
	var runs []interval
	for start := range len(text) {
		longest := 0
		for _, p := range phrases {
			if p = strings.TrimSpace(p); p != "" && strings.HasPrefix(text[start:], p) {
				longest = max(longest, len(p))
			}
		}
		if longest > 0 {
			runs = append(runs, interval{start, start + longest})
		}
		for _, p := range prefixes {
			if strings.HasPrefix(text[start:], p) {
				end := start + len(p)
				for end < len(text) && strings.IndexByte("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ._=-", text[end]) >= 0 {
					end++
				}
				if end > start+len(p) {
					runs = append(runs, interval{start + len(p), end})
				}
			}
		}
		if text[start] == '?' || text[start] == '&' {
			for _, p := range sensitiveParameters {
				from := start + 1 + len(p) + 1
				if from <= len(text) && strings.EqualFold(text[start+1:from-1], p) && text[from-1] == '=' {
					end := from
					for end < len(text) && text[end] > ' ' && text[end] != 0x7f && text[end] != '?' && text[end] != '&' {
						end++
					}
					runs = append(runs, interval{from, end})
				}
			}
		}
	}
	var out strings.Builder
	at, covered := 0, 0
	for len(runs) > 0 {
		first := 0
		for i, r := range runs {
			if r.from < runs[first].from {
				first = i
			}
		}
		r := runs[first]
		runs = append(runs[:first], runs[first+1:]...)
		if r.from >= covered {
			out.WriteString(text[max(at, covered):r.from] + Mask)
			at = r.from
		}
		covered = max(covered, r.to)
	}
	out.WriteString(text[max(at, covered):])
	return out.String()
}

func mask(text string, phrases, prefixes []string, cuts func(left int) int) string {
	m := New(phrases, prefixes)
	var out bytes.Buffer
	emit := func(b []byte) { out.Write(b) }
	for left := text; left != ""; {
		n := cuts(len(left))
		copy(m.Space(n), left[:n])
		m.Advance(n, emit)
		left = left[n:]
	}
	m.Flush(emit)
	return out.String()
}

func whole(left int) int { return left }
func bytewise(int) int   { return 1 }

func TestWhatIsHidden(t *testing.T) {
	for _, c := range []struct{ name, phrases, text, want string }{
		{"nothing", "secret", "no such thing", "no such thing"},
		{"alone", "secret", "secret", "[MASKED]"},
		{"within", "secret", "a secret!", "a [MASKED]!"},
		{"adjacent", "secret", "secretsecret", "[MASKED][MASKED]"},
		{"partial at the end", "secret", "a secre", "a secre"},
		{"partial, then whole", "secret", "secsecret", "sec[MASKED]"},
		{"the longest of two", "secret,secretive", "secretive secret", "[MASKED] [MASKED]"},
		{"a short one that a long one would follow", "secret,secretive", "secretiv", "[MASKED]iv"},
		{"overlapping", "abcd,cdef", "abcdef abcd cdef", "[MASKED] [MASKED] [MASKED]"},
		{"overlapping itself", "aXa", "aXaXa", "[MASKED]"},
		{"one byte", "x", "axbxx", "a[MASKED]b[MASKED][MASKED]"},
		{"two bytes", "ab", "aab", "a[MASKED]"},
		{"trimmed", " secret \n", "a secret b", "a [MASKED] b"},
		{"empty", ",  ,", "a b", "a b"},
		{"multi-line", "one\ntwo", "one\ntwo\none two", "[MASKED]\none two"},
		{"not UTF-8", "\xff\xfe\x00", "a\xff\xfe\x00b", "a[MASKED]b"},
		{"the mask itself is not masked again", "ASKE", "ASKE [MASKED]", "[MASKED] [M[MASKED]D]"},
		{"token", "", "glpat-abc.DEF_0=- x", "glpat-[MASKED] x"},
		{"token at the end", "", "glpat-a", "glpat-[MASKED]"},
		{"token prefix alone", "", "glpat- glpat-", "glpat- glpat-"},
		{"token, long prefix", "", "_gitlab_session=abc;", "_gitlab_session=[MASKED];"},
		{"token that is a phrase too", "glpat-abc", "glpat-abcd e", "[MASKED] e"},
		{"token that ends in a phrase", "def ghi", "glpat-abcdef ghi!", "glpat-[MASKED]!"},
		{"parameter", "", "http://h/?private_token=abc&x=1", "http://h/?private_token=[MASKED]&x=1"},
		{"parameter in capitals", "", "?X-Amz-Signature=a%2f/b\n", "?X-Amz-Signature=[MASKED]\n"},
		{"parameter, second", "", "?x=1&RSS_token=abc d", "?x=1&RSS_token=[MASKED] d"},
		{"parameter, empty", "", "?rss_token=&x", "?rss_token=[MASKED]&x"},
		{"parameter, at the end", "", "?rss_token=", "?rss_token=[MASKED]"},
		{"parameter, not quite", "", "?xrss_token=a ?rss_token a", "?xrss_token=a ?rss_token a"},
		{"parameter that ends in a phrase", "c d", "?rss_token=abc d e", "?rss_token=[MASKED] e"},
	} {
		t.Run(c.name, func(t *testing.T) {
			phrases := strings.Split(c.phrases, ",")
			require.Equal(t, c.want, reference(c.text, phrases, DefaultTokenPrefixes()), "the reference itself")
			require.Equal(t, c.want, mask(c.text, phrases, DefaultTokenPrefixes(), whole))
			require.Equal(t, c.want, mask(c.text, phrases, DefaultTokenPrefixes(), bytewise))
		})
	}
}

func TestMoreThanFifteenTokenPrefixes(t *testing.T) {
	var prefixes []string
	for i := range 40 {
		prefixes = append(prefixes, fmt.Sprintf("prefix%02d-", i))
	}
	for _, p := range prefixes {
		require.Equal(t, "a "+p+Mask+" b", mask("a "+p+"value b", nil, prefixes, whole))
	}
}

func TestOnlyWhatMayBecomeSecretIsHeld(t *testing.T) {
	m := New([]string{"secret", "correct horse battery"}, DefaultTokenPrefixes())
	var out string
	emit := func(b []byte) { out += string(b) }
	for _, c := range []struct{ in, out string }{
		{"Password: ", "Password: "},
		{"progress 10%\r", "progress 10%\r"},
		{"x sec", "x "},
		{"ond", "second"},
		{" correct h", " "},
		{"at gl", "correct hat "},
		{"obal", "global"},
	} {
		out = ""
		m.Write([]byte(c.in), emit)
		require.Equal(t, c.out, out)
	}
}

// texts makes streams that are full of near misses.
func texts() *rapid.Generator[string] {
	piece := rapid.SampledFrom([]string{
		"a", "b", "ab", "aab", "abab", "secret", "secre", "t", "glpat-", "gl", "pat-", "-", "?", "&", "rss_token=", "?RSS_TOKEN=",
		"&x-amz-signature=", "private", "_token=", "_gitlab_session=", " ", "\n", "\x00", "\xff", "é", "0", "=",
	})
	return rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(piece, 0, 40).Draw(t, "pieces"), "")
	})
}

func TestAnyCutIsTheSameAsNone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := texts().Draw(t, "text")
		phrases := rapid.SliceOfN(texts(), 0, 6).Draw(t, "phrases")
		prefixes := append(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "ab-", "secret", "=b"}), 0, 3).Draw(t, "prefixes"), "glpat-")
		want := reference(text, phrases, prefixes)
		require.Equal(t, want, mask(text, phrases, prefixes, whole), "whole")
		require.Equal(t, want, mask(text, phrases, prefixes, bytewise), "byte by byte")
		require.Equal(t, want, mask(text, phrases, prefixes, func(left int) int { return rapid.IntRange(1, left).Draw(t, "cut") }), "cut")
	})
}

func FuzzMasking(f *testing.F) {
	f.Add("a secret b", "secret", "tok-", uint64(1))
	f.Add("?private_token=abc def", "c d", "a", uint64(2))
	f.Add("aaaaaaaa", "aaa\xffaa", "aa", uint64(3))
	f.Fuzz(func(t *testing.T, text, phrases, prefix string, seed uint64) {
		if len(text) > 1000 || len(phrases) > 200 {
			return
		}
		list, prefixes := strings.Split(phrases, "\xff"), []string{strings.TrimSpace(prefix)}
		if prefixes[0] == "" {
			prefixes = nil
		}
		r := rand.New(rand.NewPCG(seed, 0))
		got := mask(text, list, prefixes, func(left int) int { return 1 + r.IntN(min(left, 20)) })
		if want := reference(text, list, prefixes); got != want {
			t.Fatalf("text %q phrases %q prefix %q: %q, want %q", text, list, prefix, got, want)
		}
		for _, p := range list {
			p = strings.TrimSpace(p)
			for visible := range strings.SplitSeq(got, Mask) {
				// The text may have held the word [MASKED] itself; what is cut at it cannot be judged.
				if p != "" && !strings.Contains(text, Mask) && strings.Contains(visible, p) {
					t.Fatalf("text %q phrases %q: %q is visible in %q", text, list, p, got)
				}
			}
		}
	})
}

func TestManyAndHugePhrases(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	letters := func(n int) string {
		b := make([]byte, n)
		for i := range b {
			b[i] = "abcdefghijklmnopqrstuvwxyz0123456789"[r.IntN(36)]
		}
		return string(b)
	}
	var phrases []string
	var text, want strings.Builder
	for i := range 3000 {
		p := letters(8 + r.IntN(40))
		if i == 7 {
			p = letters(3 << 20)
		}
		phrases = append(phrases, p)
		text.WriteString(" < " + p + " > \n")
		want.WriteString(" < [MASKED] > \n")
	}
	require.Equal(t, want.String(), mask(text.String(), phrases, DefaultTokenPrefixes(), func(left int) int { return min(left, 1+r.IntN(300_000)) }))
}

// buildLog is text as builds write it.
func buildLog(size int) []byte {
	r := rand.New(rand.NewPCG(3, 4))
	words := regexp.MustCompile(`\s+`).Split(`Compiling serde_json v1.0.117 (/builds/group/project/vendor) warning: unused variable
		go: downloading github.com/stretchr/testify v1.9.0 --- PASS: TestGetSources (0.03s) [INFO] Building jar: target/app.jar
		Fetching https://registry.example.com/glob/-/glob-7.2.3.tgz?cache=1&x=2 npm WARN deprecated ERROR: Job failed: exit code 1 the of and with`, -1)
	var b bytes.Buffer
	for b.Len() < size {
		for range 4 + r.IntN(12) {
			b.WriteString(words[r.IntN(len(words))])
			b.WriteByte(' ')
		}
		b.WriteByte('\n')
	}
	return b.Bytes()[:size]
}

func BenchmarkMasking(b *testing.B) {
	phrases := []string{"glcbt-64_abcdefghijklmnopqrst", "eyJhbGciOiJSUzI1NiIsInR5cCI6IkpXVCJ9.abc.def", "s3cr3t-p4ssw0rd", "AKIAIOSFODNN7EXAMPLE"}
	for i := range 16 {
		phrases = append(phrases, fmt.Sprintf("variable%d-%x", i, i*7919))
	}
	zeros := make([]byte, 1<<20)
	for name, c := range map[string]struct {
		phrases []string
		text    []byte
	}{
		"log, 20 phrases":   {phrases, buildLog(1 << 20)},
		"log, 2-byte one":   {append([]string{"zq"}, phrases...), buildLog(1 << 20)},
		"zeros, 20 phrases": {phrases, zeros},
		"log, no phrases":   {nil, buildLog(1 << 20)},
		"all secrets":       {phrases, bytes.Repeat([]byte("s3cr3t-p4ssw0rd "), 1<<16)},
	} {
		b.Run(name, func(b *testing.B) {
			m := New(c.phrases, DefaultTokenPrefixes())
			b.SetBytes(int64(len(c.text)))
			for b.Loop() {
				for off := 0; off < len(c.text); off += 128 << 10 {
					n := copy(m.Space(128<<10), c.text[off:min(len(c.text), off+128<<10)])
					m.Advance(n, func([]byte) {})
				}
			}
		})
	}
	b.Run("new", func(b *testing.B) {
		for b.Loop() {
			New(phrases, DefaultTokenPrefixes())
		}
	})
}
