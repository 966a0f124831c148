package helperimage

import (
	"bufio"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// architectures are Go's names for what ELF calls machines.
var architectures = map[elf.Machine]string{
	elf.EM_386: "386", elf.EM_AARCH64: "arm64", elf.EM_ARM: "arm", elf.EM_LOONGARCH: "loong64", elf.EM_PPC64: "ppc64le",
	elf.EM_RISCV: "riscv64", elf.EM_S390: "s390x", elf.EM_X86_64: "amd64",
}

// A program is an ELF file with what it asks for.
type program struct {
	machine elf.Machine
	class   elf.Class
	loader  string // the dynamic loader's path; empty for a static program and for a library
	needed  []string
	search  []string // folders that the file itself names
}

// errNotELF is the answer to scripts, and to programs of other systems.
var errNotELF = errors.New("not an ELF program")

func readELF(path string) (*program, error) {
	f, err := elf.Open(path)
	if err != nil {
		if format := (*elf.FormatError)(nil); errors.As(err, &format) || errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("%s: %w", path, errNotELF)
		}
		return nil, err
	}
	defer f.Close()
	p := &program{machine: f.Machine, class: f.Class}
	for _, segment := range f.Progs {
		if segment.Type != elf.PT_INTERP {
			continue
		}
		name := make([]byte, min(segment.Filesz, 4096))
		if _, err := segment.ReadAt(name, 0); err != nil {
			return nil, fmt.Errorf("%s: read the loader's name: %w", path, err)
		}
		p.loader, _, _ = strings.Cut(string(name), "\x00")
	}
	if f.SectionByType(elf.SHT_DYNAMIC) == nil {
		return p, nil
	}
	if p.needed, err = f.ImportedLibraries(); err != nil {
		return nil, fmt.Errorf("%s: read what it needs: %w", path, err)
	}
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		lists, err := f.DynString(tag)
		if err != nil {
			return nil, fmt.Errorf("%s: read where it looks: %w", path, err)
		}
		for _, list := range lists {
			for dir := range strings.SplitSeq(list, ":") {
				dir = strings.NewReplacer("${ORIGIN}", "$ORIGIN").Replace(dir)
				p.search = append(p.search, strings.ReplaceAll(dir, "$ORIGIN", filepath.Dir(path)))
			}
		}
	}
	return p, nil
}

// libraries finds shared libraries on this machine and puts them where the loader looks without being told: beside the C
// library.
type libraries struct {
	tree tree
	dirs []string
	home string // the C library's folder
	done map[string]bool
}

func newLibraries(t tree) *libraries {
	l := &libraries{tree: t, done: make(map[string]bool)}
	l.dirs = append(loaderDirs("/etc/ld.so.conf", 0), "/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")
	return l
}

// loaderDirs reads the folders of ld.so.conf and of what it includes. A machine without it has the usual ones only.
func loaderDirs(file string, depth int) (dirs []string) {
	const maxDepth = 8
	f, err := os.Open(file)
	if err != nil || depth > maxDepth {
		return nil
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		line, _, _ := strings.Cut(lines.Text(), "#")
		line = strings.TrimSpace(line)
		if pattern, ok := strings.CutPrefix(line, "include "); ok {
			pattern = strings.TrimSpace(pattern)
			if !filepath.IsAbs(pattern) {
				pattern = filepath.Join(filepath.Dir(file), pattern)
			}
			included, _ := filepath.Glob(pattern) // a malformed pattern includes nothing
			for _, name := range included {
				dirs = append(dirs, loaderDirs(name, depth+1)...)
			}
		} else if filepath.IsAbs(line) {
			dirs = append(dirs, line)
		}
	}
	return dirs
}

// add puts the loader and all libraries that the ELF file at path asks for into the tree.
func (l *libraries) add(path string) error {
	p, err := readELF(path)
	if err != nil {
		return err
	}
	if p.loader != "" && !l.tree.has(p.loader) {
		target, err := filepath.EvalSymlinks(p.loader)
		if err != nil {
			return fmt.Errorf("%s: its loader: %w", path, err)
		}
		if err := l.tree.file(p.loader, target); err != nil {
			return fmt.Errorf("%s: its loader: %w", path, err)
		}
		l.done[filepath.Base(p.loader)] = true
	}
	for _, name := range p.needed {
		if l.done[name] {
			continue
		}
		found, err := l.find(name, p)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		l.done[name] = true
		if l.home == "" {
			if l.home, err = l.cLibrary(p); err != nil {
				return fmt.Errorf("%s: %w", path, err)
			}
		}
		if err := l.tree.file(filepath.Join(l.home, name), found); err != nil {
			return err
		}
		if err := l.add(found); err != nil {
			return err
		}
	}
	return nil
}

// optional adds a library that the C library loads when it needs it, if this machine has it.
func (l *libraries) optional(name string) error {
	path := filepath.Join(l.home, name)
	if l.home == "" || l.done[name] || !isFile(path) {
		return nil
	}
	l.done[name] = true
	if err := l.tree.file(path, path); err != nil {
		return err
	}
	return l.add(path)
}

// cLibrary is the folder of the C library: the loader's own idea of where libraries are.
func (l *libraries) cLibrary(p *program) (string, error) {
	at := slices.IndexFunc(p.needed, func(name string) bool { return strings.HasPrefix(name, "libc.") })
	if at < 0 {
		return "", errors.New("it needs libraries, but no C library")
	}
	path, err := l.find(p.needed[at], p)
	if err != nil {
		return "", err
	}
	return filepath.Dir(path), nil
}

func (l *libraries) find(name string, p *program) (string, error) {
	for _, dir := range slices.Concat(p.search, l.dirs) {
		path := filepath.Join(dir, name)
		if !isFile(path) {
			continue
		}
		if library, err := readELF(path); err == nil && library.machine == p.machine && library.class == p.class {
			return path, nil
		}
	}
	return "", fmt.Errorf("it needs %s, which is in none of %s", name, strings.Join(slices.Concat(p.search, l.dirs), ", "))
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
