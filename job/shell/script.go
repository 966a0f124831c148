// Package shell writes the scripts that users' commands run in: the frame around them that GitLab's users know.
//
// A script is fed to the shell on its standard input, as gitlab-runner does it, and it is text for any POSIX shell. The
// variables are exported by the script and not given as the process's environment: a login profile must neither see nor
// override them (an /etc/profile that sets PATH, a HOME or LD_LIBRARY_PATH that would change the shell's own start), and no
// limit of the kernel applies to them. The commands are one argument of eval, so that the shell parses each when its turn
// comes, and their standard input is /dev/null.
package shell

import (
	"bytes"
	"strconv"
	"strings"
)

// Script is what one shell process runs.
type Script struct {
	// Exports are the environment; keys that no shell can assign are left out and returned by Text.
	Exports []Export
	// Assignments are KEY=value lines from the job's GITLAB_ENV file. The shell judges them.
	Assignments []string
	// Dir is where the commands run.
	Dir string
	// Notice is printed first, unless it is empty.
	Notice string
	// Commands are run in order until one fails; each is echoed before it runs. Before and After are the runner's own: one
	// command each, unless empty, around them.
	Commands      []string
	Before, After string
	// Trace makes the shell print every command as it expands it.
	Trace bool
	// CheckExitCodes ends the script on a command that fails even if it switched errexit off.
	CheckExitCodes bool
	// Section, if set, is the prefix of the names of collapsed sections that multi-line commands are shown in.
	Section string
}

// Export is one environment variable.
type Export struct{ Key, Value string }

const (
	green = "\x1b[32;1m"
	reset = "\x1b[0;m"
)

// Text returns the script, and the keys of the exports that it leaves out because shells cannot assign them.
func (s *Script) Text() (script []byte, leftOut []string) {
	size := 1024
	for _, e := range s.Exports {
		size += len(e.Key) + len(e.Value) + 16
	}
	b := make([]byte, 0, size)
	// Shells that are stopped must not print what they were running.
	b = append(b, "trap 'exit 1' TERM\n"...)
	if s.Trace {
		b = append(b, "set -o xtrace\n"...)
	}
	// `command` keeps a shell that does not know pipefail from ending.
	b = append(b, "command set -o pipefail 2>/dev/null || :\nset -o errexit\nset +o noclobber\n"...)
	for _, e := range s.Exports {
		if !assignable(e.Key) {
			leftOut = append(leftOut, e.Key)
			continue
		}
		b = append(append(append(b, "export "...), e.Key...), '=')
		b = append(appendQuoted(b, e.Value), '\n')
	}
	for _, a := range s.Assignments {
		b = append(appendQuoted(append(b, "export "...), a), '\n')
	}
	b = append(appendQuoted(append(b, "cd "...), s.Dir), '\n')
	b = append(appendQuoted(append(b, "{ eval "...), s.body()), "\n} </dev/null\n"...)
	// Without errexit, so that a ~/.bash_logout cannot fail a job that succeeded.
	b = append(b, "set -- $?; set +o errexit; exit $1\n"...)
	return b, leftOut
}

func (s *Script) body() string {
	var b []byte
	echo := func(text string) {
		b = append(appendQuoted(append(b, `printf '%s\n' `...), green+text+reset), '\n')
	}
	if s.Notice != "" {
		echo(s.Notice)
	}
	write := func(command, section string) {
		command = strings.TrimSpace(command)
		first, _, more := strings.Cut(command, "\n")
		switch {
		case command == "":
			b = append(b, "echo\n"...)
		case !more:
			echo("$ " + command)
		case s.Section != "":
			name := "section_" + section
			b = append(b, `set -- "$(date +%s)" "$@"`+"\n"...)
			b = append(b, `printf '`+"section_start:%s:"+name+`[hide_duration=true,collapsed=true]\r\033[0K' "$1"`+"\n"...)
			echo("$ " + command)
			b = append(b, `printf '`+"section_end:%s:"+name+`\r\033[0K\n' "$1"; shift`+"\n"...)
		default:
			echo("$ " + first + " # collapsed multi-line command")
		}
		b = append(append(b, command...), '\n')
		if s.CheckExitCodes {
			b = append(b, "_runner_exit_code=$?; if [ $_runner_exit_code -ne 0 ]; then exit $_runner_exit_code; fi\n"...)
		}
	}
	if s.Before != "" {
		write(s.Before, "pre_build_script_0")
	}
	for i, command := range s.Commands {
		write(command, s.Section+"_"+strconv.Itoa(i))
	}
	if s.After != "" {
		write(s.After, "post_build_script_0")
	}
	return string(b)
}

// appendQuoted appends text as one word of a POSIX shell, byte for byte.
func appendQuoted(b []byte, text string) []byte {
	b = append(b, '\'')
	for {
		i := strings.IndexByte(text, '\'')
		if i < 0 {
			return append(append(b, text...), '\'')
		}
		b = append(append(b, text[:i]...), `'\''`...)
		text = text[i+1:]
	}
}

// assignable says whether shells can export a variable of that name. Those that bash keeps for itself cannot be set.
func assignable(key string) bool {
	for i, c := range []byte(key) {
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	switch key {
	case "", "UID", "EUID", "PPID", "BASHOPTS", "SHELLOPTS", "BASH_VERSINFO":
		return false
	}
	return true
}

// Assignments reads the lines of a GITLAB_ENV file: KEY=value each, white space around a line trimmed, empty lines left
// out. A last line needs no end.
func Assignments(file []byte) []string {
	var lines []string
	for line := range bytes.Lines(file) {
		if line = bytes.Trim(line, " \t\n"); len(line) > 0 {
			lines = append(lines, string(line))
		}
	}
	return lines
}
