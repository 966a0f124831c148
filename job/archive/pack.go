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
	"slices"
	"strings"
	"sync/atomic"
	"syscall"

	"golang.org/x/sync/semaphore"
)

const (
	// blockSize is how much of a file one worker compresses at a time.
	blockSize = 512 << 10
	// ahead is how many pieces there are between what is read and what is written.
	ahead = 128
)

// packer packs once.
type packer struct {
	root    *os.Root
	warn    func(string)
	packed  Packed
	buffers buffers
}

// entry is what is known of a name before it is read.
type entry struct {
	name string
	info fs.FileInfo
	link string // of a link: where to
}

// owner returns whose it is.
func (e *entry) owner() (uid, gid int) {
	if stat, ok := e.info.Sys().(*syscall.Stat_t); ok {
		return int(stat.Uid), int(stat.Gid)
	}
	return 0, 0
}

// walk calls each with the entries of names, in order. A file's folder is open as in while each runs, base is its name there.
func (p *packer) walk(ctx context.Context, names []string, each func(e *entry, in *folder, base string) error) error {
	var in *folder
	defer func() { in.release() }()
	last := ""
	for _, name := range names {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		dir, base := path.Split(strings.TrimSuffix(name, "/"))
		if in == nil || dir != last {
			in.release()
			in, last = nil, dir
			opened, err := openFolder(p.root, path.Clean("./"+dir))
			if err != nil && p.vanished(name, err) {
				continue
			} else if err != nil {
				return fmt.Errorf("open the folder of %q: %w", name, err)
			}
			in = opened
		}
		e := &entry{name: name}
		var err error
		if e.info, err = in.Lstat(base); err == nil && e.info.Mode()&fs.ModeSymlink != 0 {
			e.link, err = in.Readlink(base)
		}
		switch {
		case err != nil && p.vanished(name, err):
			continue
		case err != nil:
			return fmt.Errorf("look at %q: %w", name, err)
		case e.info.Mode()&(fs.ModeSocket|fs.ModeDevice|fs.ModeNamedPipe|fs.ModeIrregular) != 0:
			p.warn(fmt.Sprintf("%s: left out, it is no file, folder or link (%s)", name, e.info.Mode().Type()))
			continue
		}
		if err := each(e, in, base); err != nil {
			return err
		}
	}
	return nil
}

// openFolder opens a folder below root. What is no folder is ENOTDIR.
func openFolder(root *os.Root, name string) (*folder, error) {
	sub, err := root.OpenRoot(name)
	if err == nil {
		return newFolder(sub), nil
	}
	if info, statErr := root.Stat(name); statErr == nil && !info.IsDir() {
		return nil, syscall.ENOTDIR
	}
	return nil, err
}

// vanished tells whether err means that the file is not there any more, and warns of it.
func (p *packer) vanished(name string, err error) bool {
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return false
	}
	p.warn(fmt.Sprintf("%s: left out, it is not there any more", name))
	return true
}

// openFile opens a regular file. It does not wait for a pipe that has taken the file's place.
func openFile(in *folder, base string) (*os.File, fs.FileInfo, error) {
	f, err := in.OpenFile(base, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("it is no regular file any more")
	}
	if err != nil {
		_ = f.Close() // it was only read
		return nil, nil, err
	}
	return f, info, nil
}

// piece is an entry, or a block of a large file, on its way through the workers.
type piece struct {
	*entry
	first, last bool
	in          *folder // of a small file, until it is read
	base        string
	file        *shared // of a large file
	offset      int64
	size        int   // how much is to be read
	cost        int64 // what of the budget it holds
	plain       []byte
	packed      []byte // compressed; of a file that is stored: nil
	crc         uint32 // of a small file
	gone        bool   // a small file that is not there any more
}

// shared is a large file that is read by several workers.
type shared struct {
	*os.File
	left atomic.Int64 // blocks that are not read yet
}

// read says that n blocks less are to be read. A nil file is none.
func (s *shared) read(n int64) {
	if s != nil && n > 0 && s.left.Add(-n) == 0 {
		_ = s.Close() // it was only read
	}
}

// sink writes an archive's entries, called with pieces in their order.
type sink interface {
	// compress fills in packed (and crc, if it is a whole file) from plain. Several goroutines call it.
	compress(p *piece) error
	put(p *piece) error
}

// pieces runs names through s.
func (p *packer) pieces(ctx context.Context, s sink, names []string) error {
	budget := semaphore.NewWeighted(bufferBudget)
	drop := func(x *piece) {
		x.in.release()
		x.file.read(1)
		p.buffers.put(x.plain)
		p.buffers.put(x.packed)
		x.in, x.file, x.plain, x.packed = nil, nil, nil, nil
		budget.Release(x.cost)
	}
	return ordered[*piece]{
		workers: workers(), ahead: ahead, drop: drop,
		give: func(ctx context.Context, put func(*piece) error) error {
			return p.walk(ctx, names, func(e *entry, in *folder, base string) error {
				return p.split(ctx, budget, e, in, base, put)
			})
		},
		work: func(_ context.Context, x *piece) error {
			err := p.read(x)
			if err == nil && !x.gone && x.info.Mode().IsRegular() {
				err = s.compress(x)
			}
			if err != nil {
				return fmt.Errorf("%q: %w", x.name, err)
			}
			return nil
		},
		take: func(x *piece) error {
			defer drop(x)
			if x.gone {
				return nil
			}
			if x.info.Mode().IsRegular() {
				p.packed.Bytes += int64(len(x.plain))
				if x.first {
					p.packed.Files++
				}
			}
			return s.put(x)
		},
	}.run(ctx)
}

// split makes the pieces of an entry.
func (p *packer) split(ctx context.Context, budget *semaphore.Weighted, e *entry, in *folder, base string, put func(*piece) error) error {
	give := func(x *piece) error {
		if x.size > 0 {
			room, _ := p.buffers.room(x.size)
			x.cost = int64(2 * room)
			if err := budget.Acquire(ctx, x.cost); err != nil {
				x.in.release()
				x.file.read(1)
				return context.Cause(ctx)
			}
		}
		return put(x)
	}
	if !e.info.Mode().IsRegular() {
		return give(&piece{entry: e, first: true, last: true})
	}
	if e.info.Size() <= blockSize {
		return give(&piece{entry: e, first: true, last: true, in: in.hold(), base: base, size: int(e.info.Size())})
	}
	file, info, err := openFile(in, base)
	if err != nil && p.vanished(e.name, err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("open %q: %w", e.name, err)
	}
	e.info = info
	blocks := max((info.Size()+blockSize-1)/blockSize, 1)
	large := &shared{File: file}
	large.left.Store(blocks)
	for i := range blocks {
		offset := i * blockSize
		size := int(min(info.Size()-offset, blockSize))
		if err := give(&piece{entry: e, first: i == 0, last: i == blocks-1, file: large, offset: offset, size: size}); err != nil {
			large.read(blocks - i - 1) // nobody will
			return err
		}
	}
	return nil
}

// read reads what x is of.
func (p *packer) read(x *piece) error {
	if !x.info.Mode().IsRegular() {
		return nil
	}
	var n int
	var err error
	if x.file != nil {
		x.plain = p.buffers.get(x.size)
		n, err = x.file.ReadAt(x.plain, x.offset)
		x.file.read(1)
		x.file = nil
	} else {
		file, _, openErr := openFile(x.in, x.base)
		x.in.release()
		x.in = nil
		if openErr != nil {
			x.gone = p.vanished(x.name, openErr)
			if x.gone {
				return nil
			}
			return openErr
		}
		x.plain = p.buffers.get(x.size)
		n, err = io.ReadFull(file, x.plain)
		_ = file.Close() // it was only read
	}
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	x.plain = x.plain[:n] // less if it shrank meanwhile
	return nil
}

// warnOfGit warns as gitlab-runner does.
func warnOfGit(what string, names []string, warn func(string)) {
	if slices.ContainsFunc(names, inGit) {
		warn("Part of .git directory is on the list of files to " + what)
		warn("This may introduce unexpected problems")
	}
}

func inGit(name string) bool { return name == ".git" || strings.HasPrefix(name, ".git/") }
