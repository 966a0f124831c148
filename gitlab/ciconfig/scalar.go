package ciconfig

import (
	"fmt"
	"math/big"
	"regexp"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// How a plain scalar becomes a value in Ruby's Psych (YAML 1.1), which decides what a job sees: `0644` is the number
// 420, `1.10` is 1.1, `yes` is true and `12:30` is 45000.
var (
	scalarInt   = regexp.MustCompile(`^[-+]?(?:0b[01_,]+|0o?[0-7_,]+|(?:0|[1-9](?:[0-9]|,[0-9]|_[0-9])*)|0x[0-9a-fA-F_,]+)$`)
	scalarFloat = regexp.MustCompile(`^[-+]?(?:[0-9][0-9_,]*)?\.[0-9]*(?:[eE][-+][0-9]+)?$`)
	scalarBase  = regexp.MustCompile(`^[-+]?[0-9][0-9_]*(?::[0-5]?[0-9]){1,2}$`)
	scalarDate  = regexp.MustCompile(`^-?\d{4}-(?:1[012]|0\d|\d)-(?:[12]\d|3[01]|0\d|\d)$`)
	scalarTime  = regexp.MustCompile(`^-?\d{4}-\d{1,2}-\d{1,2}(?:[Tt]|\s+)\d{1,2}:\d\d:\d\d(?:\.\d*)?(?:\s*(?:Z|[-+]\d{1,2}:?(?:\d\d)?))?$`)
)

func (l *loader) scalar(y *yaml.Node) *node {
	n := &node{kind: kindString, at: l.pos(y), text: y.Value, raw: y.Value, size: 1, depth: 1}
	if y.Style&yaml.TaggedStyle != 0 {
		switch tag := y.ShortTag(); tag {
		case "!!str":
			return n
		case "!!null", "!!bool", "!!int", "!!float":
		case "!reference":
			l.fail(y, "!reference takes a list of strings, this is a string", "write !reference [job, keyword]")
			return nil
		default:
			l.unknownTag(y, tag)
			return nil
		}
	} else if y.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) != 0 {
		return n
	}
	if len(y.Value) > 7 && y.Value[0] < 'A' && (scalarDate.MatchString(y.Value) || scalarTime.MatchString(y.Value)) {
		l.fail(y, "this is a date, which a configuration may not contain", fmt.Sprintf("quote it: \"%s\"", y.Value))
		return nil
	}
	resolve(n)
	return n
}

// resolve gives a plain scalar its type.
func resolve(n *node) {
	s := n.text
	if s != "" && !strings.ContainsRune("0123456789+-.:~yYtToOnNfF", rune(s[0])) {
		return
	}
	switch strings.ToLower(s) {
	case "", "~", "null":
		n.kind, n.text = kindNull, ""
		return
	case "yes", "true", "on":
		n.kind, n.truth, n.text = kindBool, true, "true"
		return
	case "no", "false", "off":
		n.kind, n.text = kindBool, "false"
		return
	case ".inf", "+.inf":
		n.kind, n.text = kindFloat, "Infinity"
		return
	case "-.inf":
		n.kind, n.text = kindFloat, "-Infinity"
		return
	case ".nan":
		n.kind, n.text = kindFloat, "NaN"
		return
	}
	switch {
	case len(s) > 1 && s[0] == ':': // a Ruby symbol
		n.text = s[1:]
	case scalarBase.MatchString(s):
		if v, ok := sexagesimal(s); ok {
			n.kind, n.text = kindInt, v
		}
	case scalarFloat.MatchString(s):
		digits := strings.NewReplacer(",", "", "_", "").Replace(s)
		if f, err := strconv.ParseFloat(digits, 64); err == nil {
			n.kind, n.text = kindFloat, rubyFloat(f)
		}
	case scalarInt.MatchString(s):
		digits := strings.NewReplacer(",", "", "_", "").Replace(s)
		if v, ok := new(big.Int).SetString(digits, 0); ok && len(digits) <= 64 {
			n.kind, n.text = kindInt, v.String()
		}
	}
}

// sexagesimal reads "12:30" as Psych does: the first part counts 3600, the last 1, whatever their number.
func sexagesimal(s string) (string, bool) {
	weights := []int64{3600, 60, 1}
	if strings.Count(s, ":") == 1 {
		weights = []int64{3600, 60}
	}
	var sum int64
	for i, part := range strings.Split(strings.ReplaceAll(s, "_", ""), ":") {
		v, err := strconv.ParseInt(part, 10, 32)
		if err != nil {
			return "", false
		}
		sum += v * weights[i]
	}
	return strconv.FormatInt(sum, 10), true
}

// rubyFloat writes a number as Ruby's Float#to_s does: 1.0, 0.0001, 1.0e-05, 1.0e+16.
func rubyFloat(f float64) string {
	mantissa, exponent, _ := strings.Cut(strconv.FormatFloat(f, 'e', -1, 64), "e")
	if exp, _ := strconv.Atoi(exponent); f != 0 && (exp < -4 || exp >= 16) {
		if !strings.Contains(mantissa, ".") {
			mantissa += ".0"
		}
		return mantissa + "e" + exponent
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}
