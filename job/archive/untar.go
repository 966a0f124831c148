//go:build unix

package archive

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/klauspost/compress/zstd"
)

// tar unpacks: one goroutine reads the entries while zstd decodes ahead, others write the files.
func (u *unpacker) tar(ctx context.Context, r *origin, size int64) error {
	z, err := zstd.NewReader(io.NewSectionReader(r, 0, size), zstd.WithDecoderConcurrency(workers()+1),
		zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
	if err != nil {
		return err
	}
	defer z.Close()
	// Headers of all kinds and padding are in what is read, too: without a bound a few bytes make hours of them.
	most := u.limits.Bytes + int64(u.limits.Entries)*tarOverhead
	if most < 0 {
		most = 1<<63 - 1
	}
	plain := &io.LimitedReader{R: reader{ctx, z}, N: most}
	t := tar.NewReader(bufio.NewReaderSize(plain, 64<<10))
	for {
		h, err := t.Next()
		if plain.N == 0 {
			return fmt.Errorf("%w: it is more than %d bytes unpacked", ErrHostile, most)
		}
		if errors.Is(err, io.EOF) {
			return u.tarEnd(plain)
		}
		if err != nil {
			return corrupt(err)
		}
		if err := u.tarEntry(ctx, t, h); err != nil {
			return err
		}
	}
}

const (
	maxWindow   = 128 << 20 // what zstd itself takes without being asked
	tarOverhead = 16 << 10  // of an entry: its header, those with its long name, padding
)

// tarEnd reads what follows the last entry, so that a damaged end is noticed: padding up to GNU tar's largest record.
func (u *unpacker) tarEnd(r io.Reader) error {
	n, err := io.Copy(io.Discard, io.LimitReader(r, 8<<20))
	if err != nil {
		return corrupt(err)
	}
	if n == 8<<20 {
		return fmt.Errorf("%w: there is more after the end of the tar", ErrHostile)
	}
	return nil
}

func (u *unpacker) tarEntry(ctx context.Context, t *tar.Reader, h *tar.Header) error {
	e := item{name: h.Name, mode: h.FileInfo().Mode().Perm(), modified: h.ModTime, uid: h.Uid, gid: h.Gid, owned: true}
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeDir:
		return u.folder(e)
	case tar.TypeSymlink:
		return u.link(e, h.Linkname)
	case tar.TypeLink:
		return u.hardLink(ctx, e, h.Linkname)
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeCont, '\x00':
	case tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return refused(h.Name, "is a device or a pipe")
	default:
		return refused(h.Name, fmt.Sprintf("is of the unknown kind %q", h.Typeflag))
	}
	if err := u.count(h.Name, h.Size); err != nil {
		return err
	}
	to, err := u.file(e)
	if err != nil {
		return err
	}
	if h.Size > blockSize {
		defer to.in.release()
		return u.write(to, func(f *os.File) (int64, error) { return copyExactly(ctx, f, t, h.Size, u.scratch.large()) })
	}
	content, cost, err := u.borrow(ctx, int(h.Size))
	if err != nil {
		to.in.release()
		return err
	}
	if _, err := io.ReadFull(t, content); err != nil {
		to.in.release()
		u.giveBack(content, cost)
		return named(h.Name, corrupt(err))
	}
	return u.later(ctx, task{in: to.in, size: h.Size, done: func() { u.giveBack(content, cost) }, run: func(*scratch) error {
		return u.writeWhole(to, content)
	}})
}
