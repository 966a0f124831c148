package gitrepo

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// ErrNotFound says that a commit, a tag or a file does not exist.
var ErrNotFound = errors.New("not found")

// MaxFile is the size in bytes of the largest file that [Reader.File] returns.
const MaxFile = 16 << 20

// Reader reads objects through one git process. It is not safe for concurrent use; Close ends it.
type Reader struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

// Commit is what a pipeline must know of a commit.
type Commit struct {
	SHA       string
	Author    string // Name <email>
	Timestamp time.Time
	Message   string
}

// Reader starts a reader of objects; the context ends it too.
func (r *Repo) Reader(ctx context.Context) (*Reader, error) {
	cmd := exec.CommandContext(ctx, "git", "cat-file", "--batch")
	cmd.Dir, cmd.Env, cmd.WaitDelay = r.dir, cleanEnv(), waitDelay
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start git cat-file: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start git cat-file: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start git cat-file: %w", err)
	}
	return &Reader{cmd: cmd, in: in, out: bufio.NewReader(out)}, nil
}

// Close ends the git process.
func (r *Reader) Close() error {
	err := r.in.Close()
	if waitErr := r.cmd.Wait(); waitErr != nil {
		err = errors.Join(err, fmt.Errorf("git cat-file: %w", waitErr))
	}
	return err
}

// object returns an object by a name as gitrevisions(7) has it.
func (r *Reader) object(name string) (id, kind string, data []byte, err error) {
	if strings.ContainsAny(name, "\n\r\x00") {
		return "", "", nil, fmt.Errorf("%q: %w", name, ErrNotFound)
	}
	if _, err := io.WriteString(r.in, name+"\n"); err != nil {
		return "", "", nil, fmt.Errorf("ask git cat-file: %w", err)
	}
	head, err := r.out.ReadString('\n')
	if err != nil {
		return "", "", nil, fmt.Errorf("read from git cat-file: %w", err)
	}
	head = strings.TrimSuffix(head, "\n")
	fields := strings.Fields(strings.TrimPrefix(head, name))
	if len(fields) == 1 { // "<name> missing", "<name> ambiguous", "<name> submodule"
		return "", "", nil, fmt.Errorf("%s: %w", name, ErrNotFound)
	}
	fields = strings.Fields(head)
	if len(fields) != 3 {
		return "", "", nil, fmt.Errorf("git cat-file %s: unexpected answer %q", name, head)
	}
	size, err := strconv.ParseInt(fields[2], 10, 64)
	if err != nil {
		return "", "", nil, fmt.Errorf("git cat-file %s: unexpected answer %q", name, head)
	}
	if size > MaxFile {
		if _, err := r.out.Discard(int(size) + 1); err != nil {
			return "", "", nil, fmt.Errorf("read from git cat-file: %w", err)
		}
		return "", "", nil, fmt.Errorf("%s has %d bytes, more than %d are not read", name, size, MaxFile)
	}
	data = make([]byte, size+1)
	if _, err := io.ReadFull(r.out, data); err != nil {
		return "", "", nil, fmt.Errorf("read from git cat-file: %w", err)
	}
	return fields[0], fields[1], data[:size], nil
}

// Commit returns the commit that a revision names; ErrNotFound is in the chain if there is none.
func (r *Reader) Commit(rev string) (Commit, error) {
	id, _, data, err := r.object(rev + "^{commit}")
	if err != nil {
		return Commit{}, err
	}
	c := Commit{SHA: id}
	head, message, _ := bytes.Cut(data, []byte("\n\n"))
	c.Message = string(message)
	for line := range strings.Lines(string(head)) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		switch key {
		case "author":
			c.Author, _ = splitPerson(value)
		case "committer":
			_, c.Timestamp = splitPerson(value)
		}
	}
	return c, nil
}

// TagMessage returns the message of an annotated tag; it is empty for a lightweight one.
func (r *Reader) TagMessage(name string) (string, error) {
	_, kind, data, err := r.object("refs/tags/" + name)
	if err != nil || kind != "tag" {
		return "", err
	}
	_, message, _ := bytes.Cut(data, []byte("\n\n"))
	if i := bytes.Index(message, []byte("-----BEGIN ")); i >= 0 && bytes.Contains(message[i:], []byte(" SIGNATURE-----")) {
		message = message[:i]
	}
	return strings.TrimSuffix(string(message), "\n"), nil
}

// File returns the content of a file of a commit; ErrNotFound is in the chain if it is not there or is a folder.
func (r *Reader) File(commit, path string) ([]byte, error) {
	if !fs.ValidPath(path) { // git would take ./a and ../a as relative to its own folder
		return nil, fmt.Errorf("%q: %w", path, ErrNotFound)
	}
	_, kind, data, err := r.object(commit + ":" + path)
	if err != nil {
		return nil, err
	}
	if kind != "blob" {
		return nil, fmt.Errorf("%s is a folder: %w", path, ErrNotFound)
	}
	return data, nil
}

// splitPerson takes "Name <email> 1700000000 +0100" apart.
func splitPerson(s string) (person string, at time.Time) {
	i := strings.LastIndexByte(s, '>')
	if i < 0 {
		return s, time.Time{}
	}
	fields := strings.Fields(s[i+1:])
	if len(fields) < 2 {
		return s[:i+1], time.Time{}
	}
	sec, err := strconv.ParseInt(fields[0], 10, 64)
	zone, err2 := time.Parse("-0700", fields[1])
	if err != nil || err2 != nil {
		return s[:i+1], time.Time{}
	}
	return s[:i+1], time.Unix(sec, 0).In(zone.Location())
}
