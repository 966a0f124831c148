//go:build unix

package archive

import (
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"path"
	"strings"
)

const (
	longestName = 4096 // PATH_MAX
	deepest     = 255
)

// refused is an error about an entry that must not be unpacked.
func refused(name, why string) error {
	if len(name) > 200 {
		name = name[:200] + "..."
	}
	return fmt.Errorf("%w: %q %s", ErrHostile, name, why)
}

// corrupt marks an error of reading an archive as the archive's fault.
func corrupt(err error) error {
	switch {
	case err == nil, errors.Is(err, ErrHostile), errors.Is(err, ErrCorrupt):
		return err
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("%w: %w", ErrCorrupt, err)
}

// named says which entry err is about.
func named(name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%q: %w", name, err)
}

// safeName returns an entry's name as a clean path below the folder, or "." for the folder itself.
func safeName(name string) (string, error) {
	switch {
	case name == "":
		return "", refused(name, "is no name")
	case len(name) > longestName:
		return "", refused(name, "is too long")
	case strings.Contains(name, "\x00"):
		return "", refused(name, "has a NUL in its name")
	}
	// A backslash is a character like others, unless what reads it as a separator would leave the folder.
	slashed := name
	if strings.Contains(name, `\`) {
		slashed = strings.ReplaceAll(name, `\`, "/")
	}
	if slashed[0] == '/' {
		return "", refused(name, "is an absolute path")
	}
	depth := 0
	for element := range strings.SplitSeq(slashed, "/") {
		if element == ".." {
			return "", refused(name, "leads out of the folder")
		}
		depth++
	}
	if depth > deepest {
		return "", refused(name, "is in too many folders")
	}
	return path.Clean(name), nil
}

// safeTarget checks where a link leads. Anywhere is fine: nothing follows it.
func safeTarget(name, target string) error {
	if target == "" || len(target) > longestName || strings.Contains(target, "\x00") {
		return refused(name, fmt.Sprintf("is a link with an impossible target of %d bytes", len(target)))
	}
	return nil
}

// kind is what an archive says that a name is.
type kind uint8

const (
	unknown    kind = iota
	folderKind      // by an entry, or because something is in it
	fileKind
	linkKind
)

func (k kind) String() string {
	return [...]string{"nothing", "a folder", "a file", "a link"}[k]
}

// names remembers what an archive has named, by hashes that nobody can foresee.
type names struct {
	seed maphash.Seed
	seen map[uint64]kind
}

func newNames() names { return names{maphash.MakeSeed(), map[uint64]kind{}} }

func (n *names) kind(name string) kind { return n.seen[maphash.String(n.seed, name)] }

// add notes that name, which is clean, is a k. It is an error if that contradicts what has been named before.
func (n *names) add(name string, k kind) error {
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		hash := maphash.String(n.seed, dir)
		switch was := n.seen[hash]; was {
		case folderKind:
			dir = "." // so are those above it
		case unknown:
			n.seen[hash] = folderKind
		default:
			return refused(name, fmt.Sprintf("is below %q, which the archive has as %s", dir, was))
		}
	}
	hash := maphash.String(n.seed, name)
	if was := n.seen[hash]; was != unknown && (was != folderKind || k != folderKind) {
		return refused(name, fmt.Sprintf("is in the archive twice, as %s and as %s", was, k))
	}
	n.seen[hash] = k
	return nil
}
