//go:build unix

package archive

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math"
	"os"
	"slices"
	"strings"

	"github.com/klauspost/compress/zip"
	"github.com/klauspost/compress/zstd"
)

const (
	methodStored  = zip.Store
	methodDeflate = zip.Deflate
	methodZstd    = zstd.ZipMethodWinZip
	methodZstdOld = zstd.ZipMethodPKWare
	// directoryText bounds names, comments and extra fields, which are all in memory.
	directoryText = 256 << 20
)

// span is where an entry's content is.
type span struct{ from, to int64 }

// zip unpacks: workers read the entries where the directory says they are.
func (u *unpacker) zip(ctx context.Context, r *origin, size int64) error {
	entries, text := 0, 0
	z, err := zip.NewReaderWithOptions(r, size, zip.ReaderOptions{NameDecoder: func(h *zip.FileHeader) error {
		entries++
		text += len(h.Name) + len(h.Comment) + len(h.Extra)
		if entries > u.limits.Entries {
			return refused(h.Name, fmt.Sprintf("is one more than %d entries, which is the limit", u.limits.Entries))
		}
		if text > directoryText {
			return refused(h.Name, "makes the directory of the zip too large")
		}
		return ctx.Err()
	}})
	if err != nil {
		return corrupt(err)
	}
	spans, err := zipSpans(z, size)
	if err != nil {
		return err
	}
	for i, f := range z.File {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := u.zipEntry(ctx, r, f, spans[i]); err != nil {
			return err
		}
		z.File[i] = nil
	}
	return nil
}

// zipSpans finds the contents and makes sure that no two entries share any, which is how small zips become huge files.
func zipSpans(z *zip.Reader, size int64) ([]span, error) {
	spans := make([]span, len(z.File))
	for i, f := range z.File {
		from, err := f.DataOffset()
		if err != nil {
			return nil, named(f.Name, corrupt(err))
		}
		if from < 0 || from > size || f.CompressedSize64 > uint64(size-from) {
			return nil, named(f.Name, corrupt(io.ErrUnexpectedEOF))
		}
		spans[i] = span{from, from + int64(f.CompressedSize64)}
	}
	order := make([]int, 0, len(spans))
	for i, s := range spans {
		if s.from < s.to {
			order = append(order, i)
		}
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(spans[a].from, spans[b].from) })
	for i := 1; i < len(order); i++ {
		if spans[order[i]].from < spans[order[i-1]].to {
			return nil, refused(z.File[order[i]].Name, fmt.Sprintf("shares its content with %q", z.File[order[i-1]].Name))
		}
	}
	return spans, nil
}

func (u *unpacker) zipEntry(ctx context.Context, r *origin, f *zip.File, at span) error {
	mode := zipMode(f)
	e := item{name: f.Name, mode: mode.Perm(), modified: f.Modified}
	e.uid, e.gid, e.owned = zipOwner(f.Extra)
	switch {
	case mode.IsDir():
		if f.UncompressedSize64 != 0 {
			return fmt.Errorf("%w: %q is a folder with content", ErrCorrupt, f.Name)
		}
		return u.folder(e)
	case mode.Type() != 0 && mode.Type() != fs.ModeSymlink:
		return refused(f.Name, "is a device or a pipe")
	case f.Flags&1 != 0:
		return fmt.Errorf("%w: %q is encrypted, which is not supported", ErrCorrupt, f.Name)
	case f.Method != methodStored && f.Method != methodDeflate && f.Method != methodZstd && f.Method != methodZstdOld:
		return fmt.Errorf("%w: %q is compressed with method %d; only 0, 8 (deflate) and 93 (zstd) are supported",
			ErrCorrupt, f.Name, f.Method)
	case f.Method == methodStored && f.CompressedSize64 != f.UncompressedSize64:
		return fmt.Errorf("%w: %q has two sizes, %d and %d", ErrCorrupt, f.Name, f.CompressedSize64, f.UncompressedSize64)
	}
	if mode.Type() == fs.ModeSymlink {
		if f.UncompressedSize64 > longestName || f.CompressedSize64 > 2*longestName {
			return refused(f.Name, "is a link with an impossible target")
		}
		target, err := wholeEntry(r, f, at, u.scratch)
		if err != nil {
			return named(f.Name, err)
		}
		return u.link(e, string(target))
	}
	if err := u.count(f.Name, int64(min(f.UncompressedSize64, math.MaxInt64))); err != nil {
		return err
	}
	to, err := u.file(e)
	if err != nil {
		return err
	}
	return u.later(ctx, task{in: to.in, size: int64(f.UncompressedSize64), run: func(s *scratch) error {
		if f.UncompressedSize64 > blockSize || f.CompressedSize64 > 2*blockSize {
			return u.write(to, func(file *os.File) (int64, error) { return streamEntry(ctx, r, f, at, s, file) })
		}
		content, err := wholeEntry(r, f, at, s)
		if err != nil {
			return named(f.Name, err)
		}
		return u.writeWhole(to, content)
	}})
}

// wholeEntry reads a small file. What it returns is s's.
func wholeEntry(r io.ReaderAt, f *zip.File, at span, s *scratch) ([]byte, error) {
	b := s.compressedBuffer(int(at.to - at.from))
	if len(b) > 0 {
		if n, err := r.ReadAt(b, at.from); n < len(b) {
			return nil, corrupt(err)
		}
	}
	out, err := s.exactly(f.Method, b, int(f.UncompressedSize64))
	if err == nil && crc32.ChecksumIEEE(out) != f.CRC32 {
		err = corrupt(zip.ErrChecksum)
	}
	return out, err
}

// streamEntry copies a large file.
func streamEntry(ctx context.Context, r io.ReaderAt, f *zip.File, at span, s *scratch, to io.Writer) (int64, error) {
	var from io.Reader = io.NewSectionReader(r, at.from, at.to-at.from)
	var err error
	switch f.Method {
	case methodStored:
	case methodDeflate:
		from, err = s.inflate(s.stored(from))
	default:
		from, err = s.unzstd(s.stored(from))
	}
	if err != nil {
		return 0, corrupt(err)
	}
	sum := crc32.NewIEEE()
	n, err := copyExactly(ctx, io.MultiWriter(to, sum), from, int64(f.UncompressedSize64), s.large())
	if err == nil && sum.Sum32() != f.CRC32 {
		err = corrupt(zip.ErrChecksum)
	}
	return n, err
}

// zipMode is an entry's mode. What was made on Windows, or by something that says nothing of modes, has the usual ones.
func zipMode(f *zip.File) fs.FileMode {
	const unixCreator, macCreator = 3, 19
	mode := f.Mode()
	creator := f.CreatorVersion >> 8
	if creator != unixCreator && creator != macCreator || f.ExternalAttrs>>16 == 0 {
		mode = 0o644
		if strings.HasSuffix(f.Name, "/") {
			mode = fs.ModeDir | 0o755
		}
	}
	return mode
}

// zipOwner reads Info-ZIP's field with the owner.
func zipOwner(extra []byte) (uid, gid int, ok bool) {
	for len(extra) >= 4 {
		id, n := binary.LittleEndian.Uint16(extra), int(binary.LittleEndian.Uint16(extra[2:]))
		extra = extra[4:]
		if n > len(extra) {
			return 0, 0, false
		}
		field := extra[:n]
		extra = extra[n:]
		if id != zipExtraOwner {
			continue
		}
		if n != 11 || field[0] != 1 || field[1] != 4 || field[6] != 4 {
			return 0, 0, false
		}
		return int(binary.LittleEndian.Uint32(field[2:])), int(binary.LittleEndian.Uint32(field[7:])), true
	}
	return 0, 0, false
}
