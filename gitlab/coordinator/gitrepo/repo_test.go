package gitrepo

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_NOSYSTEM=1", "GIT_CONFIG_GLOBAL="+os.DevNull,
		"GIT_AUTHOR_NAME=Ada", "GIT_AUTHOR_EMAIL=ada@example.com", "GIT_COMMITTER_NAME=Bob", "GIT_COMMITTER_EMAIL=bob@example.com",
		"GIT_AUTHOR_DATE=2026-01-02T03:04:05+0100", "GIT_COMMITTER_DATE=2026-02-03T04:05:06-0730")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "git %v: %s", args, out)
	return strings.TrimSuffix(string(out), "\n")
}

// source makes a repository with files in one commit.
func source(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	git(t, dir, "init", "-q", "-b", "main")
	add(t, dir, "first", files)
	return dir
}

func add(t testing.TB, dir, message string, files map[string]string) string {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-q", "--allow-empty", "-m", message)
	return git(t, dir, "rev-parse", "HEAD")
}

func open(t testing.TB, o Options) *Repo {
	t.Helper()
	if o.Dir == "" {
		o.Dir = filepath.Join(t.TempDir(), "served.git")
	}
	r, err := Open(t.Context(), o)
	require.NoError(t, err)
	return r
}

func refs(t testing.TB, r *Repo) map[string]string {
	t.Helper()
	all := map[string]string{}
	for line := range strings.Lines(git(t, r.Dir(), "for-each-ref", "--format=%(refname) %(objectname)")) {
		ref, id, _ := strings.Cut(strings.TrimSpace(line), " ")
		all[ref] = id
	}
	return all
}

func TestSyncFollowsTheSource(t *testing.T) {
	dir := source(t, map[string]string{"a": "1"})
	one := git(t, dir, "rev-parse", "HEAD")
	r := open(t, Options{Source: dir})
	require.Equal(t, "main", r.DefaultBranch())
	require.Empty(t, refs(t, r))
	require.NoError(t, r.Sync(t.Context()))
	require.Equal(t, map[string]string{"refs/heads/main": one}, refs(t, r))
	require.Equal(t, one, r.Head("refs/heads/main"))
	require.Empty(t, r.Head("refs/heads/none"))

	require.NoError(t, r.Set(t.Context(), "refs/pipelines/1", one))
	git(t, dir, "branch", "topic")
	git(t, dir, "tag", "-a", "-m", "x", "v1")
	two := add(t, dir, "second", nil)
	require.NoError(t, r.Sync(t.Context()))
	require.Equal(t, map[string]string{
		"refs/heads/main": two, "refs/heads/topic": one, "refs/tags/v1": git(t, dir, "rev-parse", "v1"), "refs/pipelines/1": one,
	}, refs(t, r))

	git(t, dir, "branch", "-D", "topic")
	git(t, dir, "branch", "topic/one")
	git(t, dir, "update-ref", "refs/other/x", one) // no branch and no tag
	require.NoError(t, r.Sync(t.Context()), "a branch in the place of a folder")
	git(t, dir, "branch", "-D", "topic/one")
	git(t, dir, "branch", "topic")
	git(t, dir, "tag", "-d", "v1")
	require.NoError(t, r.Sync(t.Context()), "and back")
	require.Equal(t, map[string]string{"refs/heads/main": two, "refs/heads/topic": two, "refs/pipelines/1": one}, refs(t, r))
	require.NoError(t, r.Sync(t.Context()))
}

func TestSetMissingGivesWayToTheUser(t *testing.T) {
	dir := source(t, nil)
	one := git(t, dir, "rev-parse", "HEAD")
	two := add(t, dir, "second", nil)
	r := open(t, Options{Source: dir})
	require.NoError(t, r.Sync(t.Context()))
	ctx := t.Context()
	require.NoError(t, r.SetMissing(ctx, "refs/heads/main", one))
	require.Equal(t, two, refs(t, r)["refs/heads/main"], "the user's branch stays")
	require.NoError(t, r.SetMissing(ctx, "refs/heads/new", one))
	require.NoError(t, r.SetMissing(ctx, "refs/heads/new", two))
	require.NoError(t, r.SetMissing(ctx, "refs/heads/new", two))
	require.Equal(t, two, refs(t, r)["refs/heads/new"])
	require.NoError(t, r.SetMissing(ctx, "refs/heads/x/y", one))
	require.NoError(t, r.Sync(ctx))
	require.Contains(t, refs(t, r), "refs/heads/new", "it stays")
	git(t, dir, "branch", "new/deep", one)
	git(t, dir, "branch", "x", one)
	require.NoError(t, r.Sync(ctx))
	require.Equal(t, map[string]string{"refs/heads/main": two, "refs/heads/new/deep": one, "refs/heads/x": one}, refs(t, r))
	require.ErrorContains(t, r.SetMissing(ctx, "refs/heads/new", one), "update the served refs: git update-ref")
}

func TestManyRefs(t *testing.T) {
	dir := source(t, nil)
	id := git(t, dir, "rev-parse", "HEAD")
	var in bytes.Buffer
	for i := range 500 {
		fmt.Fprintf(&in, "create refs/heads/b%d %s\n", i, id)
	}
	_, err := run(t.Context(), userEnv(), dir, &in, "update-ref", "--stdin")
	require.NoError(t, err)
	git(t, dir, "tag", "-a", "-m", "x", "v1")
	r := open(t, Options{Source: dir})
	require.NoError(t, r.Sync(t.Context()))
	require.Len(t, refs(t, r), 502)
	require.Equal(t, id, git(t, r.Dir(), "rev-parse", "v1^{commit}"))
	git(t, dir, "branch", "-D", "b7", "b8", "b9")
	git(t, dir, "branch", "b8/x")
	require.NoError(t, r.Sync(t.Context()))
	require.Len(t, refs(t, r), 500)
	require.Equal(t, id, refs(t, r)["refs/heads/b8/x"])
}

func TestShallowSources(t *testing.T) {
	deep := source(t, nil)
	add(t, deep, "second", nil)
	dir := t.TempDir()
	git(t, dir, "clone", "-q", "--depth=1", "file://"+deep, ".")
	r := open(t, Options{Source: dir})
	require.NoError(t, r.Sync(t.Context()))
	require.Equal(t, "1", git(t, r.Dir(), "rev-list", "--count", "main"))
	git(t, dir, "fetch", "-q", "--unshallow")
	require.NoError(t, r.Sync(t.Context()))
	require.Equal(t, "2", git(t, r.Dir(), "rev-list", "--count", "main"))
	require.NoFileExists(t, filepath.Join(r.Dir(), "shallow"))
}

func TestTheUsersConfigurationDoesNotReachTheServedRepository(t *testing.T) {
	home := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(home, ".gitconfig"), []byte("[core]\n\tabbrev = broken value\n"), 0o600))
	t.Setenv("HOME", home)
	t.Setenv("GIT_DIR", "/nonexistent")
	t.Setenv("GIT_OBJECT_DIRECTORY", "/nonexistent")
	out, err := run(t.Context(), cleanEnv(), t.TempDir(), nil, "version")
	require.NoError(t, err)
	require.Contains(t, string(out), "git version")
	for _, e := range userEnv() {
		require.NotContains(t, e, "nonexistent")
	}
	for _, e := range cleanEnv() {
		require.NotContains(t, e, home)
		require.NotContains(t, e, "nonexistent")
	}
}

func TestReader(t *testing.T) {
	dir := source(t, map[string]string{"a": "text\n", "dir/with space": "x", "empty": "", "big": strings.Repeat("x", MaxFile+1)})
	one := git(t, dir, "rev-parse", "HEAD")
	git(t, dir, "tag", "light")
	git(t, dir, "tag", "-a", "-m", "Title\n\nBody", "v1")
	r := open(t, Options{Source: dir})
	require.NoError(t, r.Sync(t.Context()))
	reader, err := r.Reader(t.Context())
	require.NoError(t, err)

	for _, rev := range []string{"main", "HEAD", "v1", one, one[:10], "refs/heads/main"} {
		c, err := reader.Commit(rev)
		require.NoError(t, err, rev)
		require.Equal(t, one, c.SHA)
		require.Equal(t, "Ada <ada@example.com>", c.Author)
		require.Equal(t, "2026-02-03T04:05:06-07:30", c.Timestamp.Format(time.RFC3339))
		require.Equal(t, "first\n", c.Message)
	}
	for _, rev := range []string{"none", "", one + "x", "main:a", "a b", "x\ny", "main\x00"} {
		_, err := reader.Commit(rev)
		require.ErrorIs(t, err, ErrNotFound, "%q", rev)
	}
	for path, want := range map[string]string{"a": "text\n", "dir/with space": "x", "empty": ""} {
		text, err := reader.File(one, path)
		require.NoError(t, err, path)
		require.Equal(t, want, string(text))
	}
	for _, path := range []string{"none", "dir", "dir/none", "../a", "./a", "/a", "", "a\nb", "with missing"} {
		_, err := reader.File(one, path)
		require.ErrorIs(t, err, ErrNotFound, path)
	}
	_, err = reader.File(one, "big")
	require.ErrorContains(t, err, "has 16777217 bytes, more than 16777216 are not read")
	text, err := reader.File(one, "a")
	require.NoError(t, err, "what was too big is out of the way")
	require.Equal(t, "text\n", string(text))

	message, err := reader.TagMessage("v1")
	require.NoError(t, err)
	require.Equal(t, "Title\n\nBody", message)
	message, err = reader.TagMessage("light")
	require.NoError(t, err)
	require.Empty(t, message)
	_, err = reader.TagMessage("none")
	require.ErrorIs(t, err, ErrNotFound)
	require.NoError(t, reader.Close())
	_, err = reader.Commit("main")
	require.Error(t, err)
	require.NotErrorIs(t, err, ErrNotFound)

	ctx, cancel := context.WithCancel(t.Context())
	reader, err = r.Reader(ctx)
	require.NoError(t, err)
	cancel()
	require.Eventually(t, func() bool { // git is killed soon, but not at once
		_, err := reader.Commit("main")
		return err != nil
	}, time.Minute, time.Millisecond)
	require.Error(t, reader.Close())
}

func TestASignedTagsMessage(t *testing.T) {
	dir := source(t, nil)
	tag := fmt.Sprintf("object %s\ntype commit\ntag signed\ntagger A <a@b> 1700000000 +0000\n\nThe text\n-----BEGIN PGP SIGNATURE-----\n\nxyz\n-----END PGP SIGNATURE-----\n", git(t, dir, "rev-parse", "HEAD"))
	file := filepath.Join(t.TempDir(), "tag")
	require.NoError(t, os.WriteFile(file, []byte(tag), 0o600))
	git(t, dir, "update-ref", "refs/tags/signed", git(t, dir, "hash-object", "-t", "tag", "-w", file))
	r := open(t, Options{Source: dir})
	require.NoError(t, r.Sync(t.Context()))
	reader, err := r.Reader(t.Context())
	require.NoError(t, err)
	defer reader.Close()
	message, err := reader.TagMessage("signed")
	require.NoError(t, err)
	require.Equal(t, "The text", message)
}

func TestFilesAndChanged(t *testing.T) {
	dir := source(t, map[string]string{"a": "1", "b/c": "1", "ü\n": "1", "moved": "some text that is long enough to be found again"})
	one := git(t, dir, "rev-parse", "HEAD")
	git(t, dir, "mv", "moved", "to")
	require.NoError(t, os.Remove(filepath.Join(dir, "a")))
	two := add(t, dir, "second", map[string]string{"b/c": "2", "new": "1"})
	r := open(t, Options{Source: dir})
	require.NoError(t, r.Sync(t.Context()))
	files, err := r.Files(t.Context(), one)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b/c", "moved", "ü\n"}, files)
	changed, err := r.Changed(t.Context(), one, two)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b/c", "moved", "new", "to"}, changed)
	_, err = r.Files(t.Context(), "none")
	require.ErrorContains(t, err, "list the files of none: git ls-tree")
	_, err = r.Changed(t.Context(), one, "none")
	require.ErrorContains(t, err, "compare "+one+" and none")
}

func TestPersons(t *testing.T) {
	for in, want := range map[string]string{
		"A B <a@b> 1700000000 +0130": "A B <a@b> 2023-11-14T23:43:20+01:30",
		"<> 0 +0000":                 "<> 1970-01-01T00:00:00Z",
		"A <a@b>":                    "A <a@b> 0001-01-01T00:00:00Z",
		"A <a@b> x y":                "A <a@b> 0001-01-01T00:00:00Z",
		"nothing":                    "nothing 0001-01-01T00:00:00Z",
	} {
		person, at := splitPerson(in)
		require.Equal(t, want, person+" "+at.Format(time.RFC3339), in)
	}
}

// TestValidNames asks git itself.
func TestValidNames(t *testing.T) {
	for _, name := range []string{
		"main", "a/b", "a.b", "ünï", "v1.0-rc_1", "@x", "x@", "a@b", "1", "a{b}", "a'b", "a\"b", "a$b", "feature/#12",
		"", "-a", ".a", "a/.b", "a.lock", "a.lock/b", "a..b", "a//b", "/a", "a/", "a.", "a b", "a~b", "a^b", "a:b", "a?b", "a*b", "a[b", `a\b`, "a@{b", "a\nb", "a\tb", "a\x7fb",
	} {
		err := exec.CommandContext(t.Context(), "git", "check-ref-format", "--branch", name).Run()
		require.Equal(t, err == nil, ValidName(name), "%q", name)
	}
	require.False(t, ValidName("@"), "git reads it as HEAD")
}

func TestOpenRefuses(t *testing.T) {
	dir := source(t, nil)
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Source: t.TempDir()}, "is no usable git repository"},
		{Options{Source: dir, Objects: []string{"a\nb"}}, "line breaks and quotes are not possible"},
		{Options{Source: dir, Dir: "/dev/null/x"}, "make the served repository: git init"},
	} {
		if c.o.Dir == "" {
			c.o.Dir = filepath.Join(t.TempDir(), "x.git")
		}
		_, err := Open(t.Context(), c.o)
		require.ErrorContains(t, err, c.want)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Open(ctx, Options{Source: dir, Dir: filepath.Join(t.TempDir(), "x.git")})
	require.ErrorIs(t, err, context.Canceled)
	r := open(t, Options{Source: dir, DefaultBranch: "trunk"})
	require.Equal(t, "trunk", r.DefaultBranch())
	require.NoError(t, os.RemoveAll(dir))
	require.ErrorContains(t, r.Sync(t.Context()), "read the refs of "+dir)
}
