//go:build unix

// Package archive packs files into the formats of GitLab's artifacts and caches and unpacks them again. Both are done by
// several processors at once and in bounded memory, whatever the size. What is unpacked is not trusted: no entry leaves
// the folder, by name or by link, and sizes and counts are limited.
package archive

import (
	"context"
	"errors"
	"io"
	"os"
)

// Format is an archive's form.
type Format string

// The formats of GitLab's artifact_format and of CACHE_COMPRESSION_FORMAT.
const (
	Zip     Format = "zip"
	ZipZstd Format = "zipzstd" // zip with zstd entries (method 93)
	TarZstd Format = "tarzstd"
	Gzip    Format = "gzip" // each file a gzip member of its own, one after another; cannot be unpacked
	Raw     Format = "raw"  // one file as it is; cannot be unpacked
)

// Level is how hard to compress: CACHE_COMPRESSION_LEVEL and ARTIFACT_COMPRESSION_LEVEL.
type Level string

// The levels.
const (
	Fastest Level = "fastest"
	Fast    Level = "fast"
	Default Level = "default"
	Slow    Level = "slow"
	Slowest Level = "slowest"
)

// Limits bound what is unpacked. Zero values mean DefaultLimits.
type Limits struct {
	Entries int   // files, folders and links
	Bytes   int64 // of all files together, unpacked
}

// Packed says what was packed or unpacked.
type Packed struct {
	Files int   // regular files
	Bytes int64 // of their contents
}

// ErrHostile is what errors about an archive that must not be unpacked satisfy.
var ErrHostile = errors.New("refused archive")

var errNotBuilt = errors.New("archive: not built")

// Pack writes the named files to w. names are paths below root, slash-separated, without leading "./", as Select returns
// them; folders and links may be among them. A file that vanishes meanwhile is left out and told to warn; one that grows or
// shrinks meanwhile does not break the archive. Ending ctx ends it with context.Cause(ctx).
func Pack(ctx context.Context, w io.Writer, f Format, level Level, root *os.Root, names []string, warn func(string)) (Packed, error) {
	return Packed{}, errNotBuilt
}

// Unpack unpacks size bytes of r below root. The format is recognised by its first bytes (zip, zipzstd, tarzstd). Existing
// files are replaced, never written through links. An archive that breaks the rules is an error that satisfies
// errors.Is(err, ErrHostile) and names the entry; what was unpacked before it stays.
func Unpack(ctx context.Context, r io.ReaderAt, size int64, root *os.Root, limits Limits, warn func(string)) (Packed, error) {
	return Packed{}, errNotBuilt
}
