//go:build unix

package shell

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// fallback is where shells are looked for beside PATH; containers may have none, and busybox's in its own place.
const fallback = "/usr/local/bin:/usr/bin:/bin:/busybox"

// Shell is a shell that was found: its file and its arguments, the zeroth included.
type Shell struct {
	Path string
	Argv []string
}

// Find returns the first of the wanted shells (names, looked for in searchPath and the usual places, or absolute paths)
// that can be executed here. login makes bash a login shell. The error says what was looked for and where.
func Find(wanted []string, login bool, searchPath string) (Shell, error) {
	for _, name := range wanted {
		file := Look(name, searchPath+":"+fallback)
		if file == "" {
			continue
		}
		argv := []string{filepath.Base(name)}
		if login && argv[0] == "bash" {
			argv = append(argv, "-l")
		}
		return Shell{Path: file, Argv: argv}, nil
	}
	return Shell{}, fmt.Errorf("no shell found: looked for %s in %s and %s: install one of them where the job runs",
		strings.Join(wanted, ", "), searchPath, fallback)
}

// Look returns the file that the command name stands for in a search path, or nothing. Relative parts of the path are
// passed over.
func Look(name, searchPath string) string {
	if strings.Contains(name, "/") {
		if executable(name) {
			return name
		}
		return ""
	}
	for _, dir := range filepath.SplitList(searchPath) {
		if file := filepath.Join(dir, name); filepath.IsAbs(dir) && executable(file) {
			return file
		}
	}
	return ""
}

func executable(file string) bool {
	info, err := os.Stat(file)
	const executeOK = 1
	return err == nil && info.Mode().IsRegular() && syscall.Access(file, executeOK) == nil
}
