package ciconfig

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode"
)

// maxTokens is GitLab's bound of an expression; the one more that it would take to end the scan is not there.
const maxTokens = 99

// expression is a parsed `if` of a rule, in reverse Polish order. GitLab parses with a shunting yard
// (lib/gitlab/ci/pipeline/expression), and what that accepts by the way, as `$A "b" ==`, is accepted here too.
type expression struct {
	output []token
}

type tokenKind uint8

const (
	tokenOpen tokenKind = iota
	tokenClose
	tokenVariable
	tokenString
	tokenPattern
	tokenNull
	tokenBool
	tokenEquals
	tokenMatches
	tokenNotEquals
	tokenNotMatches
	tokenAnd
	tokenOr
	tokenNot
)

// precedence of an operator; the lower one binds tighter.
func (k tokenKind) precedence() int {
	switch k {
	case tokenNot:
		return 1
	case tokenEquals, tokenMatches, tokenNotEquals, tokenNotMatches:
		return 10
	case tokenAnd:
		return 11
	case tokenOr:
		return 12
	}
	return 15 // a parenthesis
}

type token struct {
	kind  tokenKind
	text  string // of a string, name of a variable, source of a pattern
	truth bool
	re    *regexp.Regexp
}

// value is what a part of an expression evaluates to: null, a boolean, a string or a regular expression.
type value struct {
	kind  valueKind
	text  string
	truth bool
	re    *regexp.Regexp
}

type valueKind uint8

const (
	valueNull valueKind = iota
	valueBool
	valueString
	valuePattern
)

var errNoExpression = errors.New("the expression is empty")

// parseExpression parses an expression. The error says what is wrong, the hint how to write it.
func parseExpression(text string) (e *expression, hint string, err error) {
	tokens, hint, err := scan(text)
	if err != nil {
		return nil, hint, err
	}
	if len(tokens) == 0 {
		return nil, "", errNoExpression
	}
	e = &expression{}
	var operators []token
	pop := func() {
		e.output = append(e.output, operators[len(operators)-1])
		operators = operators[:len(operators)-1]
	}
	top := func() (tokenKind, bool) {
		if len(operators) == 0 {
			return 0, false
		}
		return operators[len(operators)-1].kind, true
	}
	for _, t := range tokens {
		switch t.kind {
		case tokenOpen, tokenNot:
			operators = append(operators, t)
		case tokenClose:
			for k, ok := top(); ok && k != tokenOpen; k, ok = top() {
				pop()
			}
			if len(operators) == 0 {
				return nil, "", errors.New("a closing parenthesis has no opening one")
			}
			operators = operators[:len(operators)-1]
		case tokenEquals, tokenMatches, tokenNotEquals, tokenNotMatches, tokenAnd, tokenOr:
			for k, ok := top(); ok && t.kind.precedence() >= k.precedence(); k, ok = top() {
				pop()
			}
			operators = append(operators, t)
		default:
			e.output = append(e.output, t)
		}
	}
	for len(operators) > 0 {
		if k, _ := top(); k == tokenOpen {
			return nil, "", errors.New("an opening parenthesis is not closed")
		}
		pop()
	}
	return e, "", e.check()
}

// check walks the output as evaluate does.
func (e *expression) check() error {
	depth := 0
	for _, t := range e.output {
		switch t.kind {
		case tokenNot:
			if depth < 1 {
				return errors.New("`!` has no operand")
			}
		case tokenEquals, tokenMatches, tokenNotEquals, tokenNotMatches, tokenAnd, tokenOr:
			if depth < 2 {
				return fmt.Errorf("`%s` has no operand on one side", t.text)
			}
			depth--
		default:
			depth++
		}
	}
	if depth < 1 {
		return errNoExpression
	}
	if depth > 1 {
		return errors.New("two values stand side by side without an operator between them")
	}
	return nil
}

// matches tells whether a rule with this expression matches: a result other than null, false or a blank string.
// lookup returns a variable's value.
func (e *expression) matches(lookup func(string) (string, bool)) bool {
	v := e.evaluate(lookup)
	switch v.kind {
	case valueBool:
		return v.truth
	case valueString:
		return !blank(v.text)
	}
	return v.kind == valuePattern
}

// blank is Ruby's String#blank?.
func blank(s string) bool {
	return strings.TrimFunc(s, unicode.IsSpace) == ""
}

func (e *expression) evaluate(lookup func(string) (string, bool)) value {
	var stack []value
	for _, t := range e.output {
		switch t.kind {
		case tokenVariable:
			v := value{}
			if s, ok := lookup(t.text); ok {
				v = value{kind: valueString, text: s}
			}
			stack = append(stack, v)
		case tokenString:
			stack = append(stack, value{kind: valueString, text: t.text})
		case tokenPattern:
			stack = append(stack, value{kind: valuePattern, text: t.text, re: t.re})
		case tokenNull:
			stack = append(stack, value{})
		case tokenBool:
			stack = append(stack, value{kind: valueBool, truth: t.truth})
		case tokenNot:
			v := stack[len(stack)-1]
			present := v.kind == valuePattern || v.kind == valueBool && v.truth || v.kind == valueString && !blank(v.text)
			stack[len(stack)-1] = value{kind: valueBool, truth: !present}
		default:
			a, b := stack[len(stack)-2], stack[len(stack)-1]
			stack = append(stack[:len(stack)-2], operate(t.kind, a, b))
		}
	}
	return stack[0]
}

func operate(op tokenKind, a, b value) value {
	result := func(truth bool) value { return value{kind: valueBool, truth: truth} }
	switch op {
	case tokenEquals:
		return result(equal(a, b))
	case tokenNotEquals:
		return result(!equal(a, b))
	case tokenMatches:
		return result(match(a, b))
	case tokenNotMatches:
		return result(!match(a, b))
	case tokenAnd: // the operands, as in Ruby, where an empty string is true
		if truthy(a) {
			return b
		}
		return a
	}
	if truthy(a) {
		return a
	}
	return b
}

func truthy(v value) bool { return v.kind != valueNull && (v.kind != valueBool || v.truth) }

func equal(a, b value) bool {
	return a.kind == b.kind && a.text == b.text && a.truth == b.truth
}

// match tells whether a matches the pattern b. A string that is not written as /pattern/ matches when it contains the
// left side: that is what GitLab's code comes to for `$A =~ "text"`.
func match(a, b value) bool {
	if a.kind == valueBool {
		a.text = strconv.FormatBool(a.truth)
	}
	switch b.kind {
	case valuePattern:
		return b.re.MatchString(a.text)
	case valueString:
		if re, err := compilePattern(b.text); err == nil {
			return re.MatchString(a.text)
		}
		return strings.Contains(b.text, a.text)
	}
	return false
}

// patternSource is /pattern/flags in one line of a text (Gitlab::UntrustedRegexp::RubySyntax).
var patternSource = regexp.MustCompile(`(?m)^/(.*)/([ismU]*)$`)

var errNotPattern = errors.New("it is not written as /pattern/")

// compilePattern compiles /pattern/flags, in which `\/` stands for a slash. GitLab uses RE2, whose syntax is Go's.
func compilePattern(source string) (*regexp.Regexp, error) {
	m := patternSource.FindStringSubmatch(strings.ReplaceAll(source, `\/`, "/"))
	if m == nil {
		return nil, errNotPattern
	}
	text := m[1]
	if m[2] != "" {
		text = "(?" + m[2] + ")" + text
	}
	return regexp.Compile(text)
}
