//go:build unix

package archive

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"path"
	"strings"

	"github.com/klauspost/compress/flate"
)

// gzip writes each file as a member of its own with its name, its path as the comment and its time, as gitlab-runner does
// for reports: GitLab reads the members one after another.
func (p *packer) gzip(ctx context.Context, w io.Writer, level Level, names []string) error {
	buffered := bufio.NewWriterSize(w, 128<<10)
	s := &gzipSink{compressor: compressor{buffers: &p.buffers, level: max(level.flate(), flate.BestSpeed)}, w: buffered}
	if err := p.pieces(ctx, s, names); err != nil {
		return err
	}
	return buffered.Flush()
}

type gzipSink struct {
	compressor
	w    *bufio.Writer
	crc  uint32 // of the member that is being written
	size uint32
}

func (s *gzipSink) compress(p *piece) error { return s.block(p) }

func (s *gzipSink) put(p *piece) error {
	if !p.info.Mode().IsRegular() {
		return fmt.Errorf("the %q is not a regular file; artifact_format gzip takes regular files only", p.name)
	}
	if p.first {
		s.crc, s.size = 0, 0
		if _, err := s.w.Write(gzipHeader(p.entry)); err != nil {
			return err
		}
	}
	s.crc = crc32.Update(s.crc, crc32.IEEETable, p.plain)
	s.size += uint32(len(p.plain))
	b := p.packed
	if p.last {
		b = binary.LittleEndian.AppendUint32(b, s.crc)
		b = binary.LittleEndian.AppendUint32(b, s.size)
	}
	_, err := s.w.Write(b)
	return err
}

// gzipHeader is a member's beginning (RFC 1952, 2.3). Names are as they are on disk, as gzip(1) has them.
func gzipHeader(e *entry) []byte {
	const nameAndComment, unknownSystem = 0x08 | 0x10, 255
	b := []byte{0x1f, 0x8b, 8, nameAndComment}
	modified := e.info.ModTime().Unix()
	if modified < 0 || modified > 1<<32-1 {
		modified = 0
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(modified))
	b = append(b, 0, unknownSystem)
	b = append(append(b, path.Base(e.name)...), 0)
	return append(append(b, strings.ReplaceAll(e.name, "\x00", "")...), 0)
}

// raw writes the one file that names has.
func (p *packer) raw(ctx context.Context, w io.Writer, names []string) error {
	if len(names) > 1 {
		return fmt.Errorf("only one file can be sent as raw, here are %d (%q, %q, ...); name one file or choose another artifact_format",
			len(names), names[0], names[1])
	}
	return p.walk(ctx, names, func(e *entry, in *folder, base string) error {
		if !e.info.Mode().IsRegular() {
			return fmt.Errorf("%q is not a regular file; only one file can be sent as raw", e.name)
		}
		file, _, err := openFile(in, base)
		if err != nil && p.vanished(e.name, err) {
			return nil
		} else if err != nil {
			return fmt.Errorf("open %q: %w", e.name, err)
		}
		defer func() { _ = file.Close() }() // it was only read
		p.packed.Files++
		p.packed.Bytes, err = io.Copy(w, reader{ctx, file})
		return err
	})
}

// reader ends with ctx.
type reader struct {
	ctx context.Context
	r   io.Reader
}

func (r reader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}
