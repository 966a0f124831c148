//go:build unix

package archive

import "context"

// Wanted says which files of a project folder are meant, in the words of `artifacts:` and `cache:`.
type Wanted struct {
	// Paths and Exclude are GitLab's patterns (doublestar: `**`, `*`, `?`, `[]`, `{}`), below the project folder or absolute
	// paths within it. A folder means all that is in it.
	Paths, Exclude []string
	// Untracked adds what git does not know and does not ignore: Git lists it (NUL-separated `git ls-files -o -z`
	// output), nil if there is no git.
	Untracked bool
	Git       func(ctx context.Context) ([]byte, error)
}

// Selected is what was found.
type Selected struct {
	// Names are sorted, slash-separated, below the project folder; folders before what is in them.
	Names []string
	// Messages are lines for the trace as gitlab-runner has them, for example
	// "build/: found 12 matching artifact files and directories" or a WARNING that a pattern matched nothing.
	Messages []Message
}

// Message is one line for people.
type Message struct {
	Warning bool
	Text    string
}

// Select finds the files of dir. Nothing outside dir is selected, and links are not followed out of it.
func Select(ctx context.Context, dir string, w Wanted) (Selected, error) {
	return Selected{}, errNotBuilt
}
