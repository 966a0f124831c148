package artifacts

import (
	"archive/zip"
	"fmt"
	"io"
	"io/fs"
	"time"
)

// Entry is a file, folder or link in an archive.
type Entry struct {
	Name     string // with slashes; that of a folder ends with one
	Mode     fs.FileMode
	Size     int64 // bytes, unpacked
	Packed   int64 // bytes, as it is in the archive
	CRC32    uint32
	Modified time.Time
}

// maxEntries is how many are listed.
const maxEntries = 1 << 20

// Entries lists what is in a zip archive of size bytes, in its order, without reading the files.
func Entries(r io.ReaderAt, size int64) ([]Entry, error) {
	z, err := zip.NewReader(r, size)
	if err != nil {
		return nil, fmt.Errorf("list the archive: %w", err)
	}
	if len(z.File) > maxEntries {
		return nil, fmt.Errorf("list the archive: it has %d entries, more than %d", len(z.File), maxEntries)
	}
	entries := make([]Entry, len(z.File))
	for i, f := range z.File {
		entries[i] = Entry{
			Name: f.Name, Mode: f.Mode(), Size: int64(f.UncompressedSize64), Packed: int64(f.CompressedSize64), CRC32: f.CRC32,
			Modified: f.Modified,
		}
	}
	return entries, nil
}
