//go:build unix

package archive

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/bmatcuk/doublestar/v4"
)

// Wanted says which files of a project folder are meant, in the words of `artifacts:` and `cache:`.
type Wanted struct {
	// Paths and Exclude are GitLab's patterns (doublestar: `**`, `*`, `?`, `[]`, `{}`), below the project folder or absolute
	// paths within it. A folder means all that is in it. An excluded folder leaves out its entry only, not what is in it.
	Paths, Exclude []string
	// Untracked adds what git does not know, ignored files included: Git lists it (NUL-separated `git ls-files -o -z`
	// output, run in the project folder), nil if there is no git.
	Untracked bool
	Git       func(ctx context.Context) ([]byte, error)
}

// Selected is what was found.
type Selected struct {
	// Names are sorted, slash-separated, below the project folder; folders before what is in them. None is there twice, and
	// none is below a link that is there too.
	Names []string
	// Messages are lines for the trace as gitlab-runner has them, for example
	// "build/: found 12 matching artifact files and directories" or a WARNING that a pattern matched nothing. As there, what
	// a pattern matches in more than one way (`**` matches a folder and, again, what is in it) counts each time.
	Messages []Message
}

// Message is one line for people.
type Message struct {
	Warning bool
	Text    string
}

// Select finds the files of dir, an absolute path. Nothing outside dir is selected: a link is selected as a link. A pattern
// that names a link to a folder of dir and goes on below it (`current/*.log`, not `**`) means what is there. Problems with
// patterns, folders that cannot be read and a git that fails are warnings; an error means that dir cannot be read, or that
// ctx ended.
func Select(ctx context.Context, dir string, w Wanted) (Selected, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return Selected{}, fmt.Errorf("select files: %w", err)
	}
	defer func() { _ = root.Close() }() // nothing is written through it
	s := &selection{dir: filepath.Clean(dir), root: root}
	s.prepare(w)
	if err := s.walk(ctx); err != nil {
		return Selected{}, fmt.Errorf("select files: %w", err)
	}
	s.report()
	if w.Untracked {
		s.untracked(ctx, w.Git)
	}
	if ctx.Err() != nil {
		return Selected{}, fmt.Errorf("select files: %w", context.Cause(ctx))
	}
	for _, e := range s.excludes {
		if e.count > 0 {
			s.say("%s: excluded %d files", e.given, e.count)
		}
	}
	slices.Sort(s.names)
	return Selected{Names: slices.Compact(s.names), Messages: s.messages}, nil
}

// selection is a Select at work.
type selection struct {
	dir      string
	root     *os.Root
	patterns []*pattern
	lines    []func() // say what became of Paths, in their order
	excludes []*exclude
	names    []string
	messages []Message
	trouble  []Message         // of the walk
	looking  func(name string) // tests see where it looks; nil in use
}

type exclude struct {
	given, match string
	count        int
}

func (s *selection) say(format string, args ...any) {
	s.messages = append(s.messages, Message{Text: fmt.Sprintf(format, args...)})
}

func (s *selection) warn(format string, args ...any) {
	s.messages = append(s.messages, Message{Warning: true, Text: fmt.Sprintf(format, args...)})
}

// prepare makes sense of the patterns.
func (s *selection) prepare(w Wanted) {
	for _, given := range w.Paths {
		if given == "" {
			s.lines = append(s.lines, func() { s.warn("No matching files. Path is empty.") })
			continue
		}
		match, err := within(s.dir, given)
		switch {
		case err != nil:
			s.lines = append(s.lines, func() { s.warn("processPath: %v", err) })
			continue
		case !doublestar.ValidatePattern(match):
			s.lines = append(s.lines, func() { s.warn("%s: %v", given, doublestar.ErrBadPattern) })
			continue
		}
		p := newPattern(given, match)
		s.patterns = append(s.patterns, p)
		s.lines = append(s.lines, func() {
			if p.found == 0 {
				s.warn("%s: no matching files. Ensure that the artifact path is relative to the working directory (%s)", given, s.dir)
			} else {
				s.say("%s: found %d matching artifact files and directories", given, p.found)
			}
		})
	}
	for _, given := range w.Exclude {
		match, err := within(s.dir, given)
		if err != nil {
			s.trouble = append(s.trouble, Message{Warning: true, Text: fmt.Sprintf("isExcluded: %v", err)})
			continue
		}
		s.excludes = append(s.excludes, &exclude{given: given, match: match})
	}
}

func (s *selection) report() {
	s.messages = append(s.messages, s.trouble...)
	for _, line := range s.lines {
		line()
	}
}

// excluded tells whether name, which has been found so many times, is excluded, and counts it.
func (s *selection) excluded(name string, times int) bool {
	for _, e := range s.excludes {
		if matched, err := doublestar.Match(e.match, name); err == nil && matched {
			e.count += times
			return true
		}
	}
	return false
}

// untracked adds what git lists.
func (s *selection) untracked(ctx context.Context, git func(context.Context) ([]byte, error)) {
	if git == nil {
		s.warn("untracked: git is not installed")
		return
	}
	list, err := git(ctx)
	if err != nil {
		s.warn("untracked: %v", err)
		return
	}
	found := 0
	var in *folder
	defer func() { in.release() }()
	last := ""
	for line := range strings.SplitSeq(string(list), "\x00") {
		if ctx.Err() != nil {
			return
		}
		name := path.Clean(line)
		if line == "" || name == "." {
			continue
		}
		if leadsOut(name) || path.IsAbs(name) {
			s.warn("%s: not supported: outside build directory", name)
			continue
		}
		if s.excluded(name, 1) {
			continue
		}
		dir, base := path.Split(name)
		if in == nil || dir != last {
			in.release()
			in, last = nil, dir
			sub, err := s.root.OpenRoot(path.Clean("./" + dir))
			if err != nil {
				continue // gone, as is what is in it
			}
			in = newFolder(sub)
		}
		if _, err := in.Lstat(base); err == nil {
			found++
			s.names = append(s.names, name)
		}
	}
	if found == 0 {
		s.warn("untracked: no files")
	} else {
		s.say("untracked: found %d files", found)
	}
}
