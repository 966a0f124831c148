//go:build unix

package archive

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/bmatcuk/doublestar/v4"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"github.com/switchyard-ci/switchyard/internal/testbed"
)

// touch makes empty files; a name that ends in a slash is a folder, "a -> b" a link.
func touch(t require.TestingT, dir string, names ...string) {
	nodes := map[string]node{}
	for _, name := range names {
		link, target, isLink := strings.Cut(name, " -> ")
		switch {
		case isLink:
			nodes[link] = node{mode: fs.ModeSymlink, content: target}
		case strings.HasSuffix(name, "/"):
			nodes[strings.TrimSuffix(name, "/")] = node{mode: fs.ModeDir | 0o755}
		default:
			nodes[name] = node{mode: 0o644}
		}
	}
	makeTree(t, dir, nodes)
}

func TestSelect(t *testing.T) {
	project := []string{
		"file.thing", "foo/file.bin", "foo/file.txt", "foo/xfile.txt", "foo/file.txt.md", "foo/bar/file.bin", "foo/bar/file.txt",
		"foo/bar/baz/file.txt", "foo/bar/baz2/", "other/foo/test.txt", "build/out/app", "build/out/app.log", "[odd]/x",
		"current -> build/out", "away -> /etc", "dangling -> nowhere", "foo/self -> .",
	}
	dir := tempDir(t)
	touch(t, dir, project...)
	base := filepath.Base(dir)
	info := func(s string) Message { return Message{Text: s} }
	warning := func(s string) Message { return Message{Warning: true, Text: s} }
	nothing := func(s string) Message {
		return warning(s + ": no matching files. Ensure that the artifact path is relative to the working directory (" + dir + ")")
	}
	outside := "artifact path is not a subpath of project directory: "
	for _, tt := range []struct {
		name           string
		paths, exclude []string
		names          []string
		messages       []Message
	}{
		{
			"a folder",
			[]string{"foo/bar/"},
			nil,
			[]string{"foo/bar", "foo/bar/baz", "foo/bar/baz/file.txt", "foo/bar/baz2", "foo/bar/file.bin", "foo/bar/file.txt"},
			[]Message{info("foo/bar/: found 6 matching artifact files and directories")},
		},
		{
			"files at several depths",
			[]string{"foo/**/*.txt"},
			nil,
			[]string{"foo/bar/baz/file.txt", "foo/bar/file.txt", "foo/file.txt", "foo/xfile.txt"},
			[]Message{info("foo/**/*.txt: found 4 matching artifact files and directories")},
		},
		{
			"excluded",
			[]string{"foo/**/*.txt"},
			[]string{"foo/**/xfile.txt", "foo/bar/*.txt"},
			[]string{"foo/bar/baz/file.txt", "foo/file.txt"},
			[]Message{
				info("foo/**/*.txt: found 2 matching artifact files and directories"),
				info("foo/**/xfile.txt: excluded 1 files"), info("foo/bar/*.txt: excluded 1 files"),
			},
		},
		{
			"an excluded folder keeps what is in it",
			[]string{"build"},
			[]string{"build/out/"},
			[]string{"build", "build/out/app", "build/out/app.log"},
			[]Message{info("build: found 3 matching artifact files and directories"), info("build/out/: excluded 1 files")},
		},
		{
			"double slashes",
			[]string{"foo//*.txt"},
			[]string{"foo//x*.txt"},
			[]string{"foo/file.txt"},
			[]Message{info("foo//*.txt: found 1 matching artifact files and directories"), info("foo//x*.txt: excluded 1 files")},
		},
		{
			"two deep at least",
			[]string{"./foo/**//*/*.*"},
			nil,
			[]string{"foo/bar/baz/file.txt", "foo/bar/file.bin", "foo/bar/file.txt"},
			[]Message{info("./foo/**//*/*.*: found 3 matching artifact files and directories")},
		},
		{
			"an absolute path",
			[]string{dir + "/*.thing", dir + "/build/out"},
			[]string{dir + "/build/**/*.log"},
			[]string{"build/out", "build/out/app", "file.thing"},
			[]Message{
				info(dir + "/*.thing: found 1 matching artifact files and directories"),
				info(dir + "/build/out: found 2 matching artifact files and directories"), info(dir + "/build/**/*.log: excluded 1 files"),
			},
		},
		{
			"out and back",
			[]string{"../" + base + "/foo/x*.txt"},
			nil,
			[]string{"foo/xfile.txt"},
			[]Message{info("../" + base + "/foo/x*.txt: found 1 matching artifact files and directories")},
		},
		{
			"out",
			[]string{"../x", "/etc/passwd", "/**/passwd", "*/../../x", "..", "file.thing"},
			[]string{"/etc/*"},
			[]string{"file.thing"},
			[]Message{
				warning("isExcluded: " + outside + "/etc/*"), warning("processPath: " + outside + "../x"),
				warning("processPath: " + outside + "/etc/passwd"), warning("processPath: " + outside + "/**/passwd"),
				warning("processPath: " + outside + "*/../../x"), warning("processPath: " + outside + ".."),
				info("file.thing: found 1 matching artifact files and directories"),
			},
		},
		{
			"nothing",
			[]string{"none", "none/*.x", ">/**", ""},
			nil, nil,
			[]Message{nothing("none"), nothing("none/*.x"), nothing(">/**"), warning("No matching files. Path is empty.")},
		},
		{
			"no pattern",
			[]string{"foo/[", "foo/{a"},
			nil, nil,
			[]Message{warning("foo/[: syntax error in pattern"), warning("foo/{a: syntax error in pattern")},
		},
		{"everything excluded", []string{"**"}, []string{"**"}, nil, nil},
		{
			"braces",
			[]string{"{foo/bar,build}/*/{app,file.txt}"},
			nil,
			[]string{"build/out/app", "foo/bar/baz/file.txt"},
			[]Message{info("{foo/bar,build}/*/{app,file.txt}: found 2 matching artifact files and directories")},
		},
		{
			"an escaped name",
			[]string{`\[odd\]/x`, "foo/file.tx[t]"},
			nil,
			[]string{"[odd]/x", "foo/file.txt"},
			[]Message{
				info(`\[odd\]/x: found 1 matching artifact files and directories`),
				info("foo/file.tx[t]: found 1 matching artifact files and directories"),
			},
		},
		{
			"what is found twice is there once",
			[]string{"foo/file.*", "foo/*.txt"},
			nil,
			[]string{"foo/file.bin", "foo/file.txt", "foo/file.txt.md", "foo/xfile.txt"},
			[]Message{info("foo/file.*: found 3 matching artifact files and directories"), info("foo/*.txt: found 2 matching artifact files and directories")},
		},
		{
			"links are links",
			[]string{"current", "away", "dangling", "foo/self"},
			nil,
			[]string{"away", "current", "dangling", "foo/self"},
			[]Message{
				info("current: found 1 matching artifact files and directories"), info("away: found 1 matching artifact files and directories"),
				info("dangling: found 1 matching artifact files and directories"), info("foo/self: found 1 matching artifact files and directories"),
			},
		},
		{
			"below a link within",
			[]string{"current/*.log"},
			nil,
			[]string{"current/app.log"},
			[]Message{info("current/*.log: found 1 matching artifact files and directories")},
		},
		{
			"all below a link within",
			[]string{"curren?/**"},
			nil,
			[]string{"current/app", "current/app.log"},
			[]Message{info("curren?/**: found 2 matching artifact files and directories")},
		},
		{
			"below a link out",
			[]string{"away/passwd", "away/**"},
			nil, nil,
			[]Message{nothing("away/passwd"), nothing("away/**")},
		},
		{
			"a link and what is below it",
			[]string{"current", "current/app"},
			nil,
			[]string{"current"},
			[]Message{
				warning("current: archived as a link, without what is below it"),
				info("current: found 1 matching artifact files and directories"), nothing("current/app"),
			},
		},
		{
			"stars do not follow links",
			[]string{"foo/**/self/**"},
			nil, nil,
			[]Message{nothing("foo/**/self/**")},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, err := Select(t.Context(), dir, Wanted{Paths: tt.paths, Exclude: tt.exclude})
			require.NoError(t, err)
			require.Equal(t, tt.names, s.Names)
			if tt.name == "everything excluded" {
				require.Len(t, s.Messages, 2)
				require.Equal(t, nothing("**"), s.Messages[0])
				require.Contains(t, s.Messages[1].Text, "**: excluded ")
				return
			}
			require.Equal(t, tt.messages, s.Messages)
		})
	}
}

func TestSelectUntracked(t *testing.T) {
	testbed.Need(t, testbed.Git)
	dir := tempDir(t)
	touch(t, dir, "tracked", "neu/größe.txt", "neu/x.o", "ignored.log", "link -> /etc")
	git := func(ctx context.Context, args ...string) ([]byte, error) {
		return gitIn(ctx, dir, args...)
	}
	for _, args := range [][]string{{"init", "-q"}, {"add", "tracked"}} {
		_, err := git(t.Context(), args...)
		require.NoError(t, err)
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, ".git/info/exclude"), []byte("*.log\n"), 0o600))
	list := func(ctx context.Context) ([]byte, error) { return git(ctx, "ls-files", "-o", "-z") }
	s, err := Select(t.Context(), dir, Wanted{Untracked: true, Git: list, Paths: []string{"neu"}, Exclude: []string{"**/*.o"}})
	require.NoError(t, err)
	require.Equal(t, []string{"ignored.log", "link", "neu", "neu/größe.txt"}, s.Names)
	require.Equal(t, []Message{
		{false, "neu: found 2 matching artifact files and directories"}, {false, "untracked: found 3 files"}, {false, "**/*.o: excluded 2 files"},
	}, s.Messages)

	for _, tt := range []struct {
		git  func(context.Context) ([]byte, error)
		says Message
	}{
		{nil, Message{true, "untracked: git is not installed"}},
		{func(context.Context) ([]byte, error) { return nil, errors.New("exit status 128") }, Message{true, "untracked: exit status 128"}},
		{func(context.Context) ([]byte, error) { return []byte("gone\x00away/x\x00"), nil }, Message{true, "untracked: no files"}},
	} {
		s, err := Select(t.Context(), dir, Wanted{Untracked: true, Git: tt.git})
		require.NoError(t, err)
		require.Empty(t, s.Names)
		require.Equal(t, []Message{tt.says}, s.Messages)
	}
	s, err = Select(t.Context(), dir, Wanted{Untracked: true, Git: func(context.Context) ([]byte, error) {
		return []byte("../x\x00/etc/passwd\x00neu/\x00"), nil
	}})
	require.NoError(t, err)
	require.Equal(t, []string{"neu"}, s.Names)
	require.Equal(t, []Message{
		{true, "../x: not supported: outside build directory"},
		{true, "/etc/passwd: not supported: outside build directory"},
		{false, "untracked: found 1 files"},
	}, s.Messages)
}

// A project folder whose name is a pattern.
func TestSelectInAnOddFolder(t *testing.T) {
	dir := filepath.Join(tempDir(t), "group[1]*")
	touch(t, dir, "a/x", "b")
	s, err := Select(t.Context(), dir, Wanted{Paths: []string{dir + "/*/x", dir + "/b"}, Exclude: []string{dir + "/b"}})
	require.NoError(t, err)
	require.Equal(t, []string{"a/x"}, s.Names)
	s, err = Select(t.Context(), dir, Wanted{Paths: []string{dir}})
	require.NoError(t, err)
	require.Equal(t, []string{"a", "a/x", "b"}, s.Names)
}

func TestSelectErrors(t *testing.T) {
	_, err := Select(t.Context(), filepath.Join(tempDir(t), "none"), Wanted{Paths: []string{"*"}})
	require.ErrorIs(t, err, fs.ErrNotExist)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	_, err = Select(ctx, tempDir(t), Wanted{Paths: []string{"**"}})
	require.ErrorIs(t, err, why)
	_, err = Select(ctx, tempDir(t), Wanted{Untracked: true, Git: func(context.Context) ([]byte, error) { return []byte("a\x00"), nil }})
	require.ErrorIs(t, err, why)
}

// Folders that nothing can match in are not looked into: a folder that cannot be opened would be told.
func TestSelectLooksOnlyWhereItMust(t *testing.T) {
	dir := tempDir(t)
	touch(t, dir, "a/b/x", "node_modules/p/index.js", "src/lib/deep/x.go", "src/x.go")
	s := &selection{dir: dir, root: openRoot(t, dir)}
	s.prepare(Wanted{Paths: []string{"a/*/x", "src/*.go"}})
	looked := []string{}
	s.looking = func(name string) { looked = append(looked, name) }
	require.NoError(t, s.walk(t.Context()))
	require.Equal(t, []string{"", "a", "a/b", "src"}, looked)
}

// What Select finds, and how often, is what gitlab-runner finds with doublestar.Glob and a walk through each match.
func TestSelectIsLikeGlobbing(t *testing.T) {
	dir := tempDir(t)
	touch(t, dir, "a/a/a", "a/a/b", "a/b/a/b", "a/ab", "b/a/a.b", "b/b/", "ab/a", "ab/b/ab/a", "a.b")
	part := rapid.SampledFrom([]string{"a", "b", "ab", "*", "**", "?", "a*", "*b", "{a,b}", "[ab]", "{a/b,ab}", "*.b", "."})
	rapid.Check(t, func(t *rapid.T) {
		patterns := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
			return strings.Join(rapid.SliceOfN(part, 1, 4).Draw(t, "parts"), "/")
		}), 1, 3).Draw(t, "patterns")
		excludes := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
			return strings.Join(rapid.SliceOfN(part, 1, 3).Draw(t, "parts"), "/")
		}), 0, 2).Draw(t, "excludes")
		want := map[string]bool{}
		var counts []int
		for _, pattern := range patterns {
			found := 0
			matches, err := doublestar.FilepathGlob(filepath.Join(dir, "x", "..", pattern))
			require.NoError(t, err)
			slices.Sort(matches)
			for _, match := range slices.Compact(matches) { // `**/**` has some twice
				require.NoError(t, filepath.WalkDir(match, func(name string, _ fs.DirEntry, err error) error {
					require.NoError(t, err)
					rel, err := filepath.Rel(dir, name)
					require.NoError(t, err)
					for _, exclude := range excludes {
						if matched, _ := doublestar.Match(path.Clean(exclude), rel); matched {
							return nil
						}
					}
					found++
					if rel != "." {
						want[rel] = true
					}
					return nil
				}))
			}
			counts = append(counts, found)
		}
		names := make([]string, 0, len(want))
		for name := range want {
			names = append(names, name)
		}
		slices.Sort(names)
		s := &selection{dir: dir, root: openRapid(t, dir)}
		defer func() { _ = s.root.Close() }()
		s.prepare(Wanted{Paths: patterns, Exclude: excludes})
		require.NoError(t, s.walk(context.Background()))
		slices.Sort(s.names)
		require.Equal(t, names, append([]string{}, slices.Compact(s.names)...))
		var got []int
		for _, p := range s.patterns {
			got = append(got, p.found)
		}
		require.Equal(t, counts, got)
	})
}

func openRapid(t *rapid.T, dir string) *os.Root {
	root, err := os.OpenRoot(dir)
	require.NoError(t, err)
	return root
}

func gitIn(ctx context.Context, dir string, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, "git", args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_CONFIG_NOSYSTEM=1")
	return c.Output()
}
