// Package variables holds a job's variables: which there are, which wins, what they expand to. It is pure.
package variables

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// MaxExpanded limits the bytes of all values together once references are expanded.
const MaxExpanded = 64 << 20

// TempDir is the variable that holds the folder for file variables.
const TempDir = "RUNNER_TEMP_PROJECT_DIR"

// Set is an ordered set of variables; of two with one key the later wins. It is not for concurrent use.
type Set struct {
	list []runnerapi.Variable
	at   map[string]int // key to its last place in list
}

// New makes a set of the lists one after another, in ascending precedence, and expands references once: $NAME and ${NAME}
// stand for the value before expansion (for a file variable: the file's path), $$ for a dollar, and what does not exist for
// nothing. Raw variables are left as they are. The error names the variable that cannot be used.
func New(lists ...[]runnerapi.Variable) (*Set, error) {
	n := 0
	for _, l := range lists {
		n += len(l)
	}
	s := &Set{list: make([]runnerapi.Variable, 0, n), at: make(map[string]int, n)}
	for _, l := range lists {
		for _, v := range l {
			if err := check(v); err != nil {
				return nil, err
			}
			s.at[v.Key] = len(s.list)
			s.list = append(s.list, v)
		}
	}
	expanded := make([]runnerapi.Variable, len(s.list))
	total := 0
	for i, v := range s.list {
		if !v.Raw && strings.IndexByte(v.Value, '$') >= 0 {
			value, err := s.expand(v.Value, MaxExpanded-total)
			if err != nil {
				return nil, fmt.Errorf("variable %s: %w", v.Key, err)
			}
			v.Value = value
		}
		total += len(v.Value)
		expanded[i] = v
	}
	s.list = expanded
	return s, nil
}

var errTooLong = errors.New("the job's variables expand to more than " + strconv.Itoa(MaxExpanded>>20) + " MiB: remove references or mark variables as raw")

func check(v runnerapi.Variable) error {
	switch {
	case v.Key == "" || strings.ContainsAny(v.Key, "=\x00"):
		return fmt.Errorf("variable %q: the key must not be empty nor hold '=' or NUL", v.Key)
	case strings.IndexByte(v.Value, 0) >= 0:
		return fmt.Errorf("variable %s: the value holds a NUL byte, which no process can be given", v.Key)
	case v.File && !identifier(v.Key):
		return fmt.Errorf("variable %q: the key of a file variable names its file, so it must be made of letters, digits and '_'", v.Key)
	}
	return nil
}

// Expand replaces references in text by the variables' values, once.
func (s *Set) Expand(text string) (string, error) { return s.expand(text, MaxExpanded) }

func (s *Set) expand(text string, limit int) (string, error) {
	left := limit - len(text)
	value := os.Expand(text, func(name string) string {
		v := s.Get(name)
		if left -= len(v); left < 0 {
			return ""
		}
		return v
	})
	if left < 0 {
		return "", errTooLong
	}
	return value, nil
}

// Get is the value that a script sees: of a file variable the file's path.
func (s *Set) Get(key string) string {
	switch key {
	case "$":
		return key
	case "*", "#", "@", "!", "?", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9":
		return ""
	}
	i, ok := s.at[key]
	if !ok {
		return ""
	}
	if s.list[i].File {
		return s.File(key)
	}
	return s.list[i].Value
}

// Value is the variable's own value: of a file variable the file's content.
func (s *Set) Value(key string) string {
	if i, ok := s.at[key]; ok {
		return s.list[i].Value
	}
	return ""
}

// File is the path of a file variable's file.
func (s *Set) File(key string) string { return path.Join(s.Value(TempDir), key) }

// Set replaces the value that wins for key; it does nothing if there is no such variable.
func (s *Set) Set(key, value string) {
	if i, ok := s.at[key]; ok {
		s.list[i] = runnerapi.Variable{Key: key, Value: value, Public: true}
	}
}

// Masked are the values that must not be seen.
func (s *Set) Masked() []string {
	var masked []string
	for _, v := range s.list {
		if v.Masked {
			masked = append(masked, v.Value)
		}
	}
	return masked
}

// Files are the file variables that win, in order; Value is the content.
func (s *Set) Files() []runnerapi.Variable {
	var files []runnerapi.Variable
	for i, v := range s.list {
		if v.File && s.at[v.Key] == i {
			files = append(files, v)
		}
	}
	return files
}

// Winning calls f with each variable that wins, in order, with the value that a script sees.
func (s *Set) Winning(f func(key, value string)) {
	for i, v := range s.list {
		if s.at[v.Key] == i {
			f(v.Key, s.Get(v.Key))
		}
	}
}

// identifier says whether key can be a shell variable or part of a path without harm.
func identifier(key string) bool {
	for _, c := range []byte(key) {
		if c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			return false
		}
	}
	return key != ""
}
