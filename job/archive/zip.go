//go:build unix

package archive

import (
	"bufio"
	"context"
	"encoding/binary"
	"hash/crc32"
	"io"
	"math"
	"time"
	"unicode/utf8"

	"github.com/klauspost/compress/zip"
	"github.com/klauspost/compress/zstd"
)

// The fields of an entry of a zip (APPNOTE.TXT 4.4 and the extra fields of Info-ZIP).
const (
	zipCreator        = 3<<8 | 20 // made on a unix, version 2.0
	zipVersion        = 20
	zipVersionZstd    = 63
	zipFlagDescriptor = 0x8 // sizes follow the content
	zipFlagUTF8       = 0x800
	zipExtraTime      = 0x5455
	zipExtraOwner     = 0x7875
)

func (p *packer) zip(ctx context.Context, w io.Writer, zstandard bool, level Level, names []string) error {
	buffered := bufio.NewWriterSize(w, 128<<10)
	s := &zipSink{compressor: compressor{buffers: &p.buffers, level: level.flate()}, w: zip.NewWriter(buffered), method: zip.Deflate}
	if zstandard && level != Fastest {
		_, most := level.zstd()
		encoder, err := level.encoder(min(workers(), most), blockSize, false)
		if err != nil {
			return err
		}
		defer func() { _ = encoder.Close() }() // it wrote to nothing
		s.zstd, s.method = encoder, zstd.ZipMethodWinZip
	}
	s.store = level == Fastest
	err := p.pieces(ctx, s, names)
	if err == nil {
		err = s.w.Close()
	}
	if err == nil {
		err = buffered.Flush()
	}
	return err
}

// zipSink writes a zip.
type zipSink struct {
	compressor
	w      *zip.Writer
	method uint16
	store  bool

	// Of the large file that is being written:
	header *zip.FileHeader
	to     io.Writer
	crc    uint32
}

func (s *zipSink) compress(p *piece) error {
	switch {
	case p.first && p.last:
		return s.whole(p)
	case s.store:
		return nil
	default:
		return s.block(p)
	}
}

func (s *zipSink) put(p *piece) error {
	if !p.first || !p.last {
		return s.putBlock(p)
	}
	h := zipHeader(p.entry)
	content := p.plain
	switch {
	case p.info.IsDir():
		h.Name += "/"
	case p.link != "":
		content = []byte(p.link)
		h.CRC32 = crc32.ChecksumIEEE(content)
	default:
		h.CRC32 = p.crc
	}
	h.UncompressedSize64 = uint64(len(content))
	if p.packed != nil {
		content = p.packed
		s.compressed(h)
	}
	h.CompressedSize64 = uint64(len(content))
	w, err := s.w.CreateRaw(h)
	if err == nil && len(content) > 0 {
		_, err = w.Write(content)
	}
	return err
}

func (s *zipSink) compressed(h *zip.FileHeader) {
	h.Method = s.method
	if s.method == zstd.ZipMethodWinZip {
		h.ReaderVersion = zipVersionZstd
	}
}

func (s *zipSink) putBlock(p *piece) error {
	if p.first {
		s.header, s.crc = zipHeader(p.entry), 0
		s.header.Flags |= zipFlagDescriptor
		if !s.store {
			s.compressed(s.header)
		}
		var err error
		if s.to, err = s.w.CreateRaw(s.header); err != nil {
			return err
		}
	}
	content := p.packed
	if s.store {
		content = p.plain
	}
	h := s.header
	s.crc = crc32.Update(s.crc, crc32.IEEETable, p.plain)
	h.UncompressedSize64 += uint64(len(p.plain))
	h.CompressedSize64 += uint64(len(content))
	if p.last { // the writer takes these when the next entry begins
		h.CRC32 = s.crc
		h.UncompressedSize = uint32(min(h.UncompressedSize64, math.MaxUint32)) //nolint:staticcheck // written as it is
		h.CompressedSize = uint32(min(h.CompressedSize64, math.MaxUint32))     //nolint:staticcheck // written as it is
	}
	_, err := s.to.Write(content)
	return err
}

// zipHeader has all but sizes. Time and owner are in extra fields, as Info-ZIP has them.
func zipHeader(e *entry) *zip.FileHeader {
	h := &zip.FileHeader{Name: e.name, CreatorVersion: zipCreator, ReaderVersion: zipVersion}
	h.SetMode(e.info.Mode())
	if !ascii(e.name) && utf8.ValidString(e.name) {
		h.Flags |= zipFlagUTF8
	}
	modified := e.info.ModTime()
	h.ModifiedDate, h.ModifiedTime = dosTime(modified) //nolint:staticcheck // CreateRaw does not look at Modified
	uid, gid := e.owner()
	x := make([]byte, 0, 24)
	x = binary.LittleEndian.AppendUint16(x, zipExtraTime)
	x = append(x, 5, 0, 1)
	x = binary.LittleEndian.AppendUint32(x, uint32(modified.Unix()))
	x = binary.LittleEndian.AppendUint16(x, zipExtraOwner)
	x = append(x, 11, 0, 1, 4)
	x = binary.LittleEndian.AppendUint32(x, uint32(uid))
	x = append(x, 4)
	h.Extra = binary.LittleEndian.AppendUint32(x, uint32(gid))
	return h
}

func ascii(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}

// dosTime is what readers see that do not know the extra field: from 1980 on, in steps of two seconds.
func dosTime(t time.Time) (date, clock uint16) {
	year := min(max(t.Year(), 1980), 2107)
	return uint16(t.Day() | int(t.Month())<<5 | (year-1980)<<9), uint16(t.Second()/2 | t.Minute()<<5 | t.Hour()<<11)
}
