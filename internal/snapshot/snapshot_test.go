package snapshot

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func run(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(Environ(os.Environ()), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=t", "GIT_AUTHOR_EMAIL=t@t", "GIT_COMMITTER_NAME=t", "GIT_COMMITTER_EMAIL=t@t")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	return strings.TrimSpace(string(out))
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
}

func newRepo(t *testing.T) string {
	dir := t.TempDir()
	run(t, dir, "init", "-q", "-b", "trunk")
	write(t, dir, "tracked", "one\n")
	write(t, dir, "removed", "x\n")
	write(t, dir, ".gitignore", "*.secret\n")
	run(t, dir, "add", ".")
	run(t, dir, "commit", "-qm", "first")
	return dir
}

// listing is the files of a commit that is partly in an object directory of its own.
func listing(t *testing.T, s Snapshot) []string {
	t.Helper()
	cmd := exec.Command("git", "ls-tree", "-r", "--name-only", s.SHA)
	cmd.Dir = s.RepoDir
	cmd.Env = append(Environ(os.Environ()), "GIT_ALTERNATE_OBJECT_DIRECTORIES="+s.Objects)
	out, err := cmd.Output()
	require.NoError(t, err)
	return strings.Fields(string(out))
}

// state is everything of a repository that a snapshot must not change.
func state(t *testing.T, dir string) string {
	t.Helper()
	index, err := os.ReadFile(filepath.Join(dir, ".git", "index"))
	require.NoError(t, err)
	return run(t, dir, "for-each-ref") + run(t, dir, "count-objects", "-v") + run(t, dir, "status", "--porcelain") + string(index)
}

func TestTheWorkingTreeIsTakenAsItIs(t *testing.T) {
	dir := newRepo(t)
	write(t, dir, "tracked", "two\n")
	write(t, dir, "sub/new", "new\n")
	write(t, dir, "staged", "s\n")
	run(t, dir, "add", "staged")
	write(t, dir, "token.secret", "s3cret\n")
	require.NoError(t, os.Remove(filepath.Join(dir, "removed")))
	before := state(t, dir)

	s, err := Take(t.Context(), filepath.Join(dir, "sub"), t.TempDir())
	require.NoError(t, err)
	require.True(t, s.Dirty)
	require.Equal(t, "trunk", s.Ref)
	require.Equal(t, []string{".gitignore", "staged", "sub/new", "tracked"}, listing(t, s))
	require.Equal(t, before, state(t, dir), "refs, objects, index and status of the repository stay as they were")
}

func TestACleanTreeIsItsCommit(t *testing.T) {
	dir := newRepo(t)
	s, err := Take(t.Context(), dir, t.TempDir())
	require.NoError(t, err)
	require.False(t, s.Dirty)
	require.Equal(t, run(t, dir, "rev-parse", "HEAD"), s.SHA)
}

func TestARepositoryWithoutCommits(t *testing.T) {
	dir := t.TempDir()
	run(t, dir, "init", "-q", "-b", "trunk")
	write(t, dir, "f", "x")
	s, err := Take(t.Context(), dir, t.TempDir())
	require.NoError(t, err)
	require.Equal(t, []string{"f"}, listing(t, s))
}

func TestAFolderWithoutARepository(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "f", "x")
	write(t, dir, "g/h", "y")
	s, err := Take(t.Context(), dir, t.TempDir())
	require.NoError(t, err)
	require.Equal(t, DefaultRef, s.Ref)
	require.Equal(t, []string{"f", "g/h"}, listing(t, s))
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 2, "nothing is left in the folder")

	_, err = Take(t.Context(), filepath.Join(dir, "missing"), t.TempDir())
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestADetachedHeadAndALinkedWorkingTree(t *testing.T) {
	dir := newRepo(t)
	linked := filepath.Join(t.TempDir(), "linked")
	run(t, dir, "worktree", "add", "-q", "--detach", linked)
	write(t, linked, "more", "x")
	s, err := Take(t.Context(), linked, t.TempDir())
	require.NoError(t, err)
	require.Equal(t, DefaultRef, s.Ref)
	require.Contains(t, listing(t, s), "more")
}

func TestResolve(t *testing.T) {
	dir := newRepo(t)
	run(t, dir, "tag", "v1")
	head := run(t, dir, "rev-parse", "HEAD")
	for ref, want := range map[string]Snapshot{
		"trunk": {Ref: "trunk"}, "v1": {Ref: "v1", Tag: true}, head: {Ref: DefaultRef}, "HEAD": {Ref: "trunk"},
	} {
		s, err := Resolve(t.Context(), dir, ref)
		require.NoError(t, err, ref)
		require.Equal(t, head, s.SHA, ref)
		require.Equal(t, want.Ref, s.Ref, ref)
		require.Equal(t, want.Tag, s.Tag, ref)
	}
	_, err := Resolve(t.Context(), dir, "nothing")
	require.ErrorContains(t, err, `"nothing" is no commit, branch or tag`)
	_, err = Resolve(t.Context(), dir, "--all")
	require.Error(t, err)
	_, err = Resolve(t.Context(), t.TempDir(), "main")
	require.ErrorContains(t, err, "leave out --ref")
}

func TestAFolderOfARepositoryAsAProjectOfItsOwn(t *testing.T) {
	dir := newRepo(t)
	write(t, dir, "part/.gitlab-ci.yml", "a: {script: [x]}\n")
	write(t, dir, "part/committed", "x")
	run(t, dir, "add", ".")
	run(t, dir, "commit", "-qm", "second")
	write(t, dir, "part/sub/new", "y")
	write(t, dir, "part/token.secret", "s3cret")
	before := state(t, dir)

	s, err := TakeFolder(t.Context(), filepath.Join(dir, "part"), t.TempDir())
	require.NoError(t, err)
	require.Equal(t, DefaultRef, s.Ref)
	require.Equal(t, DefaultRef, s.DefaultBranch)
	require.Equal(t, filepath.Join(dir, "part"), s.Top)
	require.Equal(t, []string{".gitlab-ci.yml", "committed", "sub/new"}, listing(t, s))
	require.Equal(t, s.SHA, run(t, s.RepoDir, "rev-parse", DefaultRef))
	require.Equal(t, "1", run(t, s.RepoDir, "rev-list", "--count", DefaultRef))
	require.True(t, s.Dirty)

	s, err = ResolveFolder(t.Context(), filepath.Join(dir, "part"), "trunk", t.TempDir())
	require.NoError(t, err)
	require.Equal(t, []string{".gitlab-ci.yml", "committed"}, listing(t, s))
	require.False(t, s.Dirty)
	whole, err := TakeFolder(t.Context(), dir, t.TempDir())
	require.NoError(t, err)
	require.Equal(t, "trunk", whole.Ref, "the root is the repository itself")
	_, err = ResolveFolder(t.Context(), filepath.Join(dir, "part"), "trunk~1", t.TempDir())
	require.EqualError(t, err, "trunk~1 has no folder part")
	require.Equal(t, before, state(t, dir))
}

func TestAFolderThatItsRepositoryIgnores(t *testing.T) {
	dir := newRepo(t)
	write(t, dir, ".gitignore", "/out/\n")
	write(t, dir, "out/f", "x")
	s, err := TakeFolder(t.Context(), filepath.Join(dir, "out"), t.TempDir())
	require.NoError(t, err)
	require.Equal(t, []string{"f"}, listing(t, s))
}

// Same size, same second: git trusts an index entry only if the index is younger than the file.
func TestAChangeRightAfterTheCommitIsSeen(t *testing.T) {
	dir := newRepo(t)
	write(t, dir, "tracked", "two\n")
	s, err := Take(t.Context(), dir, t.TempDir())
	require.NoError(t, err)
	cmd := exec.Command("git", "cat-file", "-p", s.SHA+":tracked")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_ALTERNATE_OBJECT_DIRECTORIES="+s.Objects)
	out, err := cmd.Output()
	require.NoError(t, err)
	require.Equal(t, "two\n", string(out))
}

func TestWhatIsKnownOfTheProject(t *testing.T) {
	dir := newRepo(t)
	run(t, dir, "config", "user.name", "Ada")
	run(t, dir, "config", "user.email", "ada@example.com")
	s, err := Take(t.Context(), dir, t.TempDir())
	require.NoError(t, err)
	require.Equal(t, []string{"trunk", "", "Ada", "ada@example.com"}, []string{s.DefaultBranch, s.Origin, s.UserName, s.UserEmail})

	run(t, dir, "branch", "main")
	run(t, dir, "remote", "add", "origin", "git@git.example.com:group/sub/name.git")
	s, err = Take(t.Context(), dir, t.TempDir())
	require.NoError(t, err)
	require.Equal(t, []string{"trunk", "main", "group/sub/name"}, []string{s.Ref, s.DefaultBranch, s.Origin})

	run(t, dir, "update-ref", "refs/remotes/origin/develop", "HEAD")
	run(t, dir, "symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/develop")
	run(t, dir, "tag", "v1")
	s, err = Resolve(t.Context(), dir, "v1")
	require.NoError(t, err)
	require.Equal(t, "develop", s.DefaultBranch)
}

func TestRemotePath(t *testing.T) {
	for address, want := range map[string]string{
		"https://git.example.com/group/name.git": "group/name", "https://u:p@host:8443/a/b/c/": "a/b/c",
		"ssh://git@host:22/group/name": "group/name", "host:group/name.git": "group/name",
		"/srv/git/name.git": "", "../name": "", "file:///srv/git/name.git": "", "": "",
	} {
		require.Equal(t, want, remotePath(address), address)
	}
}

// In a hook git has told its children where the repository is.
func TestInAHook(t *testing.T) {
	dir, other := newRepo(t), newRepo(t)
	t.Setenv("GIT_DIR", filepath.Join(other, ".git"))
	t.Setenv("GIT_INDEX_FILE", filepath.Join(other, ".git", "index"))
	s, err := Take(t.Context(), dir, t.TempDir())
	require.NoError(t, err)
	require.Equal(t, dir, s.Top)
}

func TestABrokenRepositoryIsNoFolder(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, ".git", "gitdir: /nowhere/at/all\n")
	_, err := Take(t.Context(), dir, t.TempDir())
	require.ErrorContains(t, err, "read the repository of "+dir)
}
