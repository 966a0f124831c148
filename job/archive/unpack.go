//go:build unix

package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
)

// item is what an archive says of an entry.
type item struct {
	name     string
	mode     fs.FileMode // permission bits
	modified time.Time
	uid, gid int
	owned    bool // uid and gid are known
}

// place is where a file goes.
type place struct {
	item
	in   *folder // held
	base string
}

// unpacker unpacks once. One goroutine, which reads the archive, calls its methods, unless they say otherwise.
type unpacker struct {
	limits  Limits
	warn    func(string)
	names   names
	entries int
	named   int64 // bytes of files so far, by what the archive says
	gitTold bool
	tree    tree
	late    map[string]item // folders: what they are to be like when all is in them
	root    bool            // may give files away
	uid     int
	gid     int

	buffers buffers
	budget  *semaphore.Weighted
	scratch *scratch
	tasks   chan []task
	batch   []task // not given to a worker yet
	batched int64
	pending sync.WaitGroup // tasks that are not done
	files   atomic.Int64
	bytes   atomic.Int64
}

func newUnpacker(root *os.Root, limits Limits, warn func(string)) *unpacker {
	u := &unpacker{
		limits: limits, warn: warn, names: newNames(), late: map[string]item{},
		root: os.Geteuid() == 0, uid: os.Geteuid(), gid: os.Getegid(),
		budget: semaphore.NewWeighted(bufferBudget), scratch: &scratch{}, tasks: make(chan []task, batchesAhead),
	}
	u.tree = tree{root: newFolder(root), warn: warn, widened: u.widened}
	return u
}

func (u *unpacker) packed() Packed { return Packed{Files: int(u.files.Load()), Bytes: u.bytes.Load()} }

// borrow returns a buffer of n bytes from the budget.
func (u *unpacker) borrow(ctx context.Context, n int) (b []byte, cost int64, err error) {
	if n == 0 {
		return nil, 0, nil
	}
	size, _ := u.buffers.room(n)
	if err := u.budget.Acquire(ctx, int64(size)); err != nil {
		return nil, 0, context.Cause(ctx)
	}
	return u.buffers.get(n), int64(size), nil
}

// giveBack is for any goroutine.
func (u *unpacker) giveBack(b []byte, cost int64) {
	u.buffers.put(b)
	u.budget.Release(cost)
}

// count counts a file's size against the limit.
func (u *unpacker) count(name string, size int64) error {
	if size < 0 || size > u.limits.Bytes-u.named {
		return refused(name, fmt.Sprintf("makes it more than %d bytes unpacked, which is the limit", u.limits.Bytes))
	}
	u.named += size
	return nil
}

// enter checks and notes an entry's name and opens its folder. An entry for the folder itself has the name ".".
func (u *unpacker) enter(e *item, k kind) (in *folder, base string, err error) {
	if u.entries++; u.entries > u.limits.Entries {
		return nil, "", refused(e.name, fmt.Sprintf("is one more than %d entries, which is the limit", u.limits.Entries))
	}
	clean, err := safeName(e.name)
	if err != nil {
		return nil, "", err
	}
	if clean == "." {
		if k != folderKind {
			return nil, "", refused(e.name, "is the folder itself, and not as a folder")
		}
		return u.tree.root, ".", nil
	}
	if err := u.names.add(clean, k); err != nil {
		return nil, "", err
	}
	if !u.gitTold && inGit(clean) {
		u.gitTold = true
		warnOfGit("extract", []string{clean}, u.warn)
	}
	e.name = clean
	in, err = u.tree.enter(path.Dir(clean), 0o777)
	return in, path.Base(clean), err
}

func (u *unpacker) givesAway(e item) bool {
	return u.root && e.owned && (e.uid != u.uid || e.gid != u.gid)
}

// link makes a link, with any target.
func (u *unpacker) link(e item, target string) error {
	if err := safeTarget(e.name, target); err != nil {
		return err
	}
	in, base, err := u.enter(&e, linkKind)
	if err != nil {
		return err
	}
	err = u.inPlaceOf(in, base, e.name, func() error { return in.Symlink(target, base) })
	if err != nil {
		return named(e.name, err)
	}
	if u.givesAway(e) {
		_ = in.Lchown(base, e.uid, e.gid) // as gitlab-runner: as far as it may
	}
	return named(e.name, setLinkTime(in, base, e.modified))
}

// setLinkTime sets a link's own time, which os.Root cannot.
func setLinkTime(in *folder, base string, modified time.Time) error {
	if modified.IsZero() {
		return nil
	}
	at, err := in.Open(".")
	if err != nil {
		return err
	}
	defer func() { _ = at.Close() }() // nothing is written through it
	stamp := unix.NsecToTimespec(modified.UnixNano())
	return unix.UtimesNanoAt(int(at.Fd()), base, []unix.Timespec{stamp, stamp}, unix.AT_SYMLINK_NOFOLLOW)
}

// hardLink makes one more name of a file that the archive had before.
func (u *unpacker) hardLink(ctx context.Context, e item, target string) error {
	to, err := safeName(target)
	if err != nil {
		return err
	}
	if u.names.kind(to) != fileKind {
		return refused(e.name, fmt.Sprintf("is a hard link to %q, which is no file of the archive", target))
	}
	in, base, err := u.enter(&e, fileKind)
	if err != nil {
		return err
	}
	if err := u.flush(ctx); err != nil {
		return err
	}
	u.pending.Wait() // until the file is there
	return named(e.name, u.inPlaceOf(in, base, e.name, func() error {
		return u.tree.root.Link(to, e.name)
	}))
}

// inPlaceOf makes something new, if need be instead of what is there.
func (u *unpacker) inPlaceOf(in *folder, base, name string, create func() error) error {
	err := create()
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	info, err := in.Lstat(base)
	if err != nil {
		return err
	}
	if info.IsDir() {
		u.warn(fmt.Sprintf("%s: was a folder, replaced", name))
		err = in.RemoveAll(base)
	} else {
		err = in.Remove(base)
	}
	if err != nil {
		return err
	}
	return create()
}

// file notes a file and opens its folder.
func (u *unpacker) file(e item) (place, error) {
	in, base, err := u.enter(&e, fileKind)
	if err != nil {
		return place{}, err
	}
	return place{e, in.hold(), base}, nil
}

// write makes a file with what fill writes into it. If that fails there is no file. Any goroutine may call it.
func (u *unpacker) write(to place, fill func(*os.File) (int64, error)) error {
	var f *os.File
	err := u.inPlaceOf(to.in, to.base, to.name, func() (err error) {
		f, err = to.in.OpenFile(to.base, os.O_WRONLY|os.O_CREATE|os.O_EXCL, to.mode)
		return err
	})
	if err != nil {
		return named(to.name, err)
	}
	n, err := fill(f)
	if err == nil && u.givesAway(to.item) {
		_ = f.Chown(to.uid, to.gid) // as gitlab-runner: as far as it may
	}
	if err == nil {
		err = setMode(f, to.mode)
	}
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err == nil && !to.modified.IsZero() {
		err = to.in.Chtimes(to.base, time.Time{}, to.modified)
	}
	if err != nil {
		return named(to.name, errors.Join(err, to.in.Remove(to.base)))
	}
	u.files.Add(1)
	u.bytes.Add(n)
	return nil
}

// setMode looks first: the usual modes are there already, and a look is no change for the file system to write down.
func setMode(f *os.File, mode fs.FileMode) error {
	info, err := f.Stat()
	if err != nil || info.Mode().Perm() == mode {
		return err
	}
	return f.Chmod(mode)
}

// writeWhole makes a file of content. Any goroutine may call it.
func (u *unpacker) writeWhole(to place, content []byte) error {
	return u.write(to, func(f *os.File) (int64, error) {
		if len(content) == 0 {
			return 0, nil
		}
		n, err := f.Write(content)
		return int64(n), err
	})
}

// copyExactly copies size bytes and an end, or fails.
func copyExactly(ctx context.Context, w io.Writer, r io.Reader, size int64, buffer []byte) (int64, error) {
	var n int64
	for {
		if ctx.Err() != nil {
			return n, context.Cause(ctx)
		}
		got, err := r.Read(buffer)
		if n+int64(got) > size {
			return n, fmt.Errorf("%w: it is longer than the archive says (%d bytes)", ErrCorrupt, size)
		}
		if got > 0 {
			if _, err := w.Write(buffer[:got]); err != nil {
				return n, err
			}
			n += int64(got)
		}
		switch {
		case errors.Is(err, io.EOF) && n == size:
			return n, nil
		case err != nil:
			return n, corrupt(err)
		}
	}
}
