package helperimage

import (
	"archive/tar"
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// A tree is what goes into one layer, by clean absolute path.
type tree map[string]*entry

// An entry is a directory, a link (Link is set), a file on the disk (Source is set) or a file with Data.
type entry struct {
	mode   fs.FileMode
	link   string
	source string
	data   []byte
}

// beforeUsr are the folders that are links into /usr in the image, whatever they are on this machine.
var beforeUsr = []string{"bin", "lib", "lib64", "sbin"}

// inUsr says where a path of this machine is in the image.
func inUsr(name string) string {
	name = path.Clean(name)
	for _, dir := range beforeUsr {
		if strings.HasPrefix(name, "/"+dir+"/") {
			return "/usr" + name
		}
	}
	return name
}

func (t tree) put(name string, e *entry) {
	name = inUsr(name)
	t[name] = e
	for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
		if _, there := t[dir]; !there {
			t[dir] = &entry{mode: fs.ModeDir | 0o755}
		}
	}
}

func (t tree) dir(name string, mode fs.FileMode) { t.put(name, &entry{mode: fs.ModeDir | mode}) }

func (t tree) text(name, text string) { t.put(name, &entry{mode: 0o644, data: []byte(text)}) }

func (t tree) link(name, target string) {
	t.put(name, &entry{mode: fs.ModeSymlink | 0o777, link: target})
}

func (t tree) has(name string) bool {
	_, there := t[inUsr(name)]
	return there
}

// file puts the file at source, links followed, at name. Of its mode only whether it can be executed is kept.
func (t tree) file(name, source string) error {
	info, err := os.Stat(source)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a file", source)
	}
	mode := fs.FileMode(0o644)
	if info.Mode()&0o111 != 0 {
		mode = 0o755
	}
	t.put(name, &entry{mode: mode, source: source})
	return nil
}

// write writes the tree as a layer that depends on nothing but the files' contents: sorted, without times and owners,
// and with files of the same content as links to the first of them.
func (t tree) write(w io.Writer) error {
	archive := tar.NewWriter(w)
	written := make(map[[sha256.Size + 1]byte]string)
	for _, name := range slices.Sorted(maps.Keys(t)) {
		e := t[name]
		header := &tar.Header{
			Name: strings.TrimPrefix(name, "/"), Mode: int64(e.mode.Perm()), ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
		}
		if e.mode&fs.ModeSticky != 0 {
			header.Mode |= 0o1000
		}
		switch {
		case e.mode.IsDir():
			header.Typeflag, header.Name = tar.TypeDir, header.Name+"/"
		case e.link != "":
			header.Typeflag, header.Linkname = tar.TypeSymlink, e.link
		default:
			if err := writeFile(archive, header, e, written); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			continue
		}
		if err := archive.WriteHeader(header); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return archive.Close()
}

func writeFile(archive *tar.Writer, header *tar.Header, e *entry, written map[[sha256.Size + 1]byte]string) error {
	data := e.data
	if e.source != "" {
		var err error
		if data, err = os.ReadFile(e.source); err != nil {
			return err
		}
	}
	var key [sha256.Size + 1]byte
	sum := sha256.Sum256(data)
	copy(key[:], sum[:])
	key[sha256.Size] = byte(header.Mode & 0o111)
	if first, there := written[key]; there && len(data) > 0 {
		header.Typeflag, header.Linkname = tar.TypeLink, first
		return archive.WriteHeader(header)
	}
	written[key] = header.Name
	header.Typeflag, header.Size = tar.TypeReg, int64(len(data))
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err := archive.Write(data)
	return err
}
