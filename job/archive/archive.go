//go:build unix

// Package archive packs files into the formats of GitLab's artifacts and caches and unpacks them again. Both are done by
// several processors at once and in bounded memory, whatever the size. What is unpacked is not trusted: no entry leaves
// the folder, by name or by link, and sizes and counts are limited.
package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
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

// Level is how hard to compress: CACHE_COMPRESSION_LEVEL and ARTIFACT_COMPRESSION_LEVEL. An empty one is Default.
type Level string

// The levels. Fastest stores the entries of zip and zipzstd as they are.
const (
	Fastest Level = "fastest"
	Fast    Level = "fast"
	Default Level = "default"
	Slow    Level = "slow"
	Slowest Level = "slowest"
)

// Limits bound what is unpacked. Zero values mean those of DefaultLimits.
type Limits struct {
	Entries int   // files, folders and links
	Bytes   int64 // of all files together, unpacked
}

// DefaultLimits are far above what artifacts and caches have: GitLab's own limit for an artifact is 100 MB, a large
// node_modules has 300,000 files. An entry costs about half a KiB of memory while a zip is unpacked.
var DefaultLimits = Limits{Entries: 1_000_000, Bytes: 64 << 30}

// Packed says what was packed or unpacked.
type Packed struct {
	Files int   // regular files
	Bytes int64 // of their contents
}

var (
	// ErrHostile is what errors about an archive that must not be unpacked satisfy: an entry that would leave the folder,
	// a name twice, a device, more than the limits.
	ErrHostile = errors.New("refused archive")
	// ErrCorrupt is what errors about an archive that cannot be unpacked satisfy: truncated, damaged or of an unknown form.
	ErrCorrupt = errors.New("corrupt archive")
)

// Pack writes the named files to w. names are paths below root, slash-separated, without leading "./", as Select returns
// them; folders and links may be among them. Entries keep permission bits, owner, modification time (in seconds) and are
// in the order of names. A file that vanishes meanwhile is left out and told to warn, as is a socket, a pipe or a device;
// one that grows or shrinks meanwhile does not break the archive. Gzip takes regular files only, Raw exactly one; Raw with
// no name writes nothing. warn gets lines for people, one call at a time, from any goroutine; nil means nobody listens.
// Pack works with GOMAXPROCS processors, needs less than 64 MiB beyond a few hundred bytes for each name (with Slowest and
// zstd twice that), and does not close w. Ending ctx
// ends it with context.Cause(ctx), but a Write that blocks is for the caller to end.
func Pack(ctx context.Context, w io.Writer, f Format, level Level, root *os.Root, names []string, warn func(string)) (Packed, error) {
	warn = oneAtATime(warn)
	level = level.known(warn)
	warnOfGit("archive", names, warn)
	p := &packer{root: root, warn: warn}
	var err error
	switch f {
	case Zip, ZipZstd:
		err = p.zip(ctx, w, f == ZipZstd, level, names)
	case TarZstd:
		err = p.tar(ctx, w, level, names)
	case Gzip:
		err = p.gzip(ctx, w, level, names)
	case Raw:
		err = p.raw(ctx, w, names)
	default:
		return Packed{}, fmt.Errorf("archive format %q is not known; there are zip, zipzstd, tarzstd, gzip and raw", string(f))
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return p.packed, fmt.Errorf("pack %s: %w", f, err)
	}
	return p.packed, nil
}

// Unpack unpacks size bytes of r below root. The format is recognised by its first bytes (zip, zipzstd, tarzstd).
//
// Existing files and links are replaced, never written through, and so is a folder where the archive has a file, with a
// line to warn. Permission bits (never set-uid, set-gid and sticky) and modification times are those of the archive, and
// as root the owner too. Links are made with any target, as gitlab-runner does, but nothing is written, nor changed in any
// way, through one. Hard links (in tar) are made to files of the same archive only.
//
// An archive that breaks the rules is an error that satisfies errors.Is(err, ErrHostile) and names the entry, a damaged
// one satisfies ErrCorrupt; what was unpacked before stays. Of a damaged zip that is right what is there; in a tarzstd the
// sums come after what they are of, so the files last unpacked may be wrong. r is read by several goroutines. For warn,
// memory and ctx see Pack; nothing is being written any more when Unpack returns.
func Unpack(ctx context.Context, r io.ReaderAt, size int64, root *os.Root, limits Limits, warn func(string)) (Packed, error) {
	if limits.Entries <= 0 {
		limits.Entries = DefaultLimits.Entries
	}
	if limits.Bytes <= 0 {
		limits.Bytes = DefaultLimits.Bytes
	}
	from := &origin{r: r}
	u := newUnpacker(root, limits, oneAtATime(warn))
	var err error
	switch format, detectErr := detect(from, size); {
	case detectErr != nil:
		err = detectErr
	case format == TarZstd:
		err = u.run(ctx, func(ctx context.Context) error { return u.tar(ctx, from, size) })
	default:
		err = u.run(ctx, func(ctx context.Context) error { return u.zip(ctx, from, size) })
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	} else if broken := from.broken(); err != nil && broken != nil {
		err = fmt.Errorf("read the archive: %w", broken)
	}
	if err != nil {
		return u.packed(), fmt.Errorf("unpack: %w", err)
	}
	return u.packed(), nil
}

// detect tells zip and tarzstd apart.
func detect(r io.ReaderAt, size int64) (Format, error) {
	var b [4]byte
	n, err := r.ReadAt(b[:min(size, 4)], 0)
	if n < 4 {
		if err == nil || errors.Is(err, io.EOF) {
			return "", fmt.Errorf("%w: it has %d bytes", ErrCorrupt, size)
		}
		return "", err
	}
	switch {
	case string(b[:]) == "PK\x03\x04", string(b[:]) == "PK\x05\x06":
		return Zip, nil
	case string(b[:]) == "\x28\xb5\x2f\xfd", b[0]&0xf0 == 0x50 && string(b[1:]) == "\x2a\x4d\x18":
		return TarZstd, nil
	}
	return "", fmt.Errorf("%w: it is neither a zip nor a tar compressed with zstd (it begins with %q)", ErrCorrupt, b[:])
}

// origin remembers why r could not be read: that is not the archive's fault.
type origin struct {
	r  io.ReaderAt
	mu sync.Mutex
	e  error
}

func (o *origin) ReadAt(p []byte, off int64) (int, error) {
	n, err := o.r.ReadAt(p, off)
	if err != nil && !errors.Is(err, io.EOF) {
		o.mu.Lock()
		if o.e == nil {
			o.e = err
		}
		o.mu.Unlock()
	}
	return n, err
}

func (o *origin) broken() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.e
}

func oneAtATime(warn func(string)) func(string) {
	if warn == nil {
		return func(string) {}
	}
	var mu sync.Mutex
	return func(line string) {
		mu.Lock()
		defer mu.Unlock()
		warn(line)
	}
}
