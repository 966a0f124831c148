// Package dotenv reads what jobs upload as artifacts:reports:dotenv, by GitLab's rules (Ci::ParseDotenvArtifactService):
// one KEY=VALUE per line, without comments, empty lines, quotes or expansion.
package dotenv

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// GitLab's limits of a project (plan_limits: dotenv_size, dotenv_variables) and of a variable.
const (
	// MaxSize is one more than the bytes that an upload, as it is compressed, may have.
	MaxSize      = 5120
	MaxVariables = 20
	maxKey       = 255
	// maxUnpacked is far above what MaxSize can unpack to.
	maxUnpacked = 16 << 20
)

// Variable is one variable. Its value may name others, which are filled in where it is used.
type Variable struct{ Key, Value string }

// refusal is an error in GitLab's words, which runners show to people.
type refusal string

func (r refusal) Error() string { return string(r) }

const (
	errFormat = refusal("Invalid Format")
	errKey    = refusal("Validation failed: Key can contain only letters, digits and '_'.")
	errNoKey  = refusal("Validation failed: Key can't be blank, Key can contain only letters, digits and '_'.")
)

// Parse reads an upload of size bytes: gzip members, each a file. Errors are GitLab's words. Of two lines with one key
// the later counts.
func Parse(r io.Reader, size int64) ([]Variable, error) {
	if size >= MaxSize {
		return nil, refusal(fmt.Sprintf("Dotenv Artifact Too Big. Maximum Allowable Size: %d", MaxSize))
	}
	var p parser
	buffered := bufio.NewReader(r)
	var member gzip.Reader
	for {
		if _, err := buffered.Peek(1); err != nil {
			break
		}
		if err := member.Reset(buffered); err != nil {
			return nil, errFormat
		}
		member.Multistream(false)
		text, err := io.ReadAll(io.LimitReader(&member, maxUnpacked+1))
		if err != nil || len(text) > maxUnpacked {
			return nil, errFormat
		}
		if err := p.file(toUTF8(text)); err != nil {
			return nil, err
		}
	}
	if len(p.variables) > MaxVariables {
		return nil, refusal(fmt.Sprintf("Dotenv files cannot have more than %d variables", MaxVariables))
	}
	for _, v := range p.variables {
		if err := checkKey(v.Key); err != nil {
			return nil, err
		}
	}
	return p.variables, nil
}

type parser struct {
	variables []Variable
	at        map[string]int // into variables
}

func (p *parser) file(text string) error {
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if !ok {
			return errFormat
		}
		v := Variable{Key: strip(key), Value: strip(value)}
		if i, known := p.at[v.Key]; known {
			p.variables[i] = v
			continue
		}
		if p.at == nil {
			p.at = map[string]int{}
		}
		p.at[v.Key] = len(p.variables)
		p.variables = append(p.variables, v)
	}
	return nil
}

// strip is Ruby's String#strip.
func strip(s string) string { return strings.Trim(s, "\x00\t\n\v\f\r ") }

func checkKey(key string) error {
	switch {
	case key == "":
		return errNoKey
	case utf8.RuneCountInString(key) > maxKey:
		return refusal(fmt.Sprintf("Validation failed: Key is too long (maximum is %d characters)", maxKey))
	}
	for i := range len(key) {
		c := key[i]
		if c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return errKey
		}
	}
	return nil
}

// toUTF8 turns what PowerShell writes into UTF-8, replaces what cannot be read and removes a byte order mark.
func toUTF8(text []byte) string {
	switch {
	case utf8.Valid(text):
		return string(bytes.TrimPrefix(text, []byte("\xef\xbb\xbf")))
	case bytes.HasPrefix(text, []byte{0xff, 0xfe}):
		return fromUTF16(text[2:], binary.LittleEndian)
	case bytes.HasPrefix(text, []byte{0xfe, 0xff}):
		return fromUTF16(text[2:], binary.BigEndian)
	default:
		return strings.TrimPrefix(strings.ToValidUTF8(string(text), "\ufffd"), "\ufeff")
	}
}

func fromUTF16(text []byte, order binary.ByteOrder) string {
	units := make([]uint16, len(text)/2)
	for i := range units {
		units[i] = order.Uint16(text[2*i:])
	}
	return string(utf16.Decode(units))
}
