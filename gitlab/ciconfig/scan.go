package ciconfig

import (
	"fmt"
	"regexp"
	"strings"
)

// lexemes in the order in which GitLab tries them (Expression::Lexer). A pattern has at least two characters between
// its slashes, as there.
var lexemes = []struct {
	kind    tokenKind
	pattern *regexp.Regexp
}{
	{tokenOpen, regexp.MustCompile(`^\(`)},
	{tokenClose, regexp.MustCompile(`^\)`)},
	{tokenVariable, regexp.MustCompile(`^\$(\w+)`)},
	{tokenString, regexp.MustCompile(`^(?:"(.*?)"|'(.*?)')`)},
	{tokenPattern, regexp.MustCompile(`^/(?:[^/]|\\/)+[^\\]/[ismU]*`)},
	{tokenNull, regexp.MustCompile(`^null`)},
	{tokenBool, regexp.MustCompile(`^(?:true|false)\b`)},
	{tokenEquals, regexp.MustCompile(`^==`)},
	{tokenMatches, regexp.MustCompile(`^=~`)},
	{tokenNotEquals, regexp.MustCompile(`^!=`)},
	{tokenNotMatches, regexp.MustCompile(`^!~`)},
	{tokenAnd, regexp.MustCompile(`^&&`)},
	{tokenOr, regexp.MustCompile(`^\|\|`)},
	{tokenNot, regexp.MustCompile(`^!`)},
}

const expressionSpace = " \t\n\v\f\r"

// scan splits an expression into tokens.
func scan(text string) (tokens []token, hint string, err error) {
	for rest := strings.TrimLeft(text, expressionSpace); rest != ""; rest = strings.TrimLeft(rest, expressionSpace) {
		if len(tokens) == maxTokens {
			return nil, "", fmt.Errorf("the expression has more than %d parts", maxTokens)
		}
		t, length, err := nextToken(rest)
		if err != nil {
			return nil, "", err
		}
		if length == 0 {
			return nil, scanHint(rest), fmt.Errorf("%s is not part of an expression", quoteStart(rest))
		}
		tokens = append(tokens, t)
		rest = rest[length:]
	}
	return tokens, "", nil
}

// nextToken returns the token that a text begins with; its length is 0 if there is none.
func nextToken(rest string) (t token, length int, err error) {
	for _, lexeme := range lexemes {
		m := lexeme.pattern.FindStringSubmatch(rest)
		if m == nil {
			continue
		}
		t = token{kind: lexeme.kind, text: m[0]}
		switch t.kind {
		case tokenVariable:
			t.text = m[1]
		case tokenString:
			t.text = m[1] + m[2]
		case tokenBool:
			t.truth = m[0] == "true"
		case tokenPattern:
			if t.re, err = compilePattern(m[0]); err != nil {
				return token{}, 0, fmt.Errorf("the regular expression %s is invalid: %s", m[0], reason(err))
			}
		}
		return t, len(m[0]), nil
	}
	return token{}, 0, nil
}

func reason(err error) string {
	return strings.TrimPrefix(err.Error(), "error parsing regexp: ")
}

// quoteStart quotes the first word of what is left of an expression.
func quoteStart(rest string) string {
	word := rest
	if i := strings.IndexAny(rest, expressionSpace); i > 0 {
		word = rest[:i]
	}
	if len(word) > 40 {
		word = strings.ToValidUTF8(word[:40], "") + "…"
	}
	return "`" + word + "`"
}

func scanHint(rest string) string {
	switch {
	case strings.HasPrefix(rest, "${"):
		return "write $VARIABLE: expressions know no braces"
	case strings.HasPrefix(rest, "$[["):
		return "inputs are not supported yet"
	case strings.HasPrefix(rest, "/"):
		return "a pattern is written /.../ with at least two characters, a slash in it as \\/"
	case strings.HasPrefix(rest, `"`), strings.HasPrefix(rest, "'"):
		return "the quote is not closed"
	case strings.HasPrefix(rest, "="):
		return "write =="
	case strings.HasPrefix(rest, "&"):
		return "write &&"
	case strings.HasPrefix(rest, "|"):
		return "write ||"
	}
	return `texts are written "..." and variables $NAME`
}
