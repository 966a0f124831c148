//go:build unix

package folder

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Create makes a job folder that can be run: folder, payload.json and spec.json. The folder may exist already, with its
// payload and prefix; a spec.json in it is an error that satisfies errors.Is(err, fs.ErrExist).
func Create(path string, spec Spec, payload []byte) error {
	f, err := Make(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := f.WritePayload(payload); err != nil {
		return err
	}
	return f.WriteSpec(spec)
}

// Make makes an empty job folder with mode 0700 (its parent must exist) and opens it. A folder that exists is opened, and
// its mode set.
//
// Nothing is synced before the fence: what the machine loses until then was never started, and a job without fence that
// is found after a loss of power is begun anew or given up.
func Make(path string) (*Folder, error) {
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("make job folder: %w", err)
	}
	f, err := Open(path)
	if err != nil {
		return nil, err
	}
	if err := f.dir.Chmod(0o700); err != nil {
		return nil, errors.Join(fmt.Errorf("make job folder: %w", err), f.Close())
	}
	return f, nil
}

// WritePayload writes payload.json. Writing the same job's payload again replaces it, which is allowed until spec.json is
// there.
func (f *Folder) WritePayload(payload []byte) error {
	if len(payload) > MaxPayload {
		return fmt.Errorf("write %s: it is %d bytes long, more than the limit of %d", PayloadFile, len(payload), MaxPayload)
	}
	if err := f.absent(SpecFile); err != nil {
		return fmt.Errorf("write %s: %w", PayloadFile, err)
	}
	return f.replace(PayloadFile, payload, notSynced)
}

// WriteSpec writes spec.json: from here on the job can be run. Version is filled in. The prefix file must have
// spec.PrefixLength bytes (none and no file is the same; nor is there one if it is elsewhere) and payload.json must be
// there. A spec.json that is there already is an error that satisfies errors.Is(err, fs.ErrExist).
func (f *Folder) WriteSpec(spec Spec) error {
	if err := f.absent(SpecFile); err != nil {
		return fmt.Errorf("write %s: %w", SpecFile, err)
	}
	here := spec.PrefixLength
	if spec.PrefixElsewhere {
		here = 0
	}
	if err := f.checkPrefix(here); err != nil {
		return fmt.Errorf("write %s: %w", SpecFile, err)
	}
	if _, err := f.root.Lstat(PayloadFile); err != nil {
		return fmt.Errorf("write %s: %w", SpecFile, err)
	}
	spec.Version = Version
	b, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("write %s: %w", SpecFile, err)
	}
	if len(b) > MaxSpec {
		return fmt.Errorf("write %s: it is %d bytes long, more than the limit of %d", SpecFile, len(b), MaxSpec)
	}
	return f.replace(SpecFile, b, notSynced)
}

// OpenPrefix opens the prefix for appending and makes it if needed; the caller owns the file. What a previous process of
// the agent wrote is kept.
func (f *Folder) OpenPrefix() (*os.File, error) {
	file, err := f.root.OpenFile(PrefixFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", PrefixFile, err)
	}
	return file, nil
}

// WriteSuffix writes the suffix whole and synced. It is for jobs that ended without a result, after their process is
// gone, and can be written once: a suffix that is there already is an error that satisfies errors.Is(err, fs.ErrExist).
func (f *Folder) WriteSuffix(text []byte) error {
	if err := f.absent(SuffixFile); err != nil {
		return fmt.Errorf("write %s: %w", SuffixFile, err)
	}
	if err := f.replace(SuffixFile, text, synced); err != nil {
		return err
	}
	return f.sync(SuffixFile)
}

// WriteStarted raises the fence: file and folder are synced when it returns nil. An error that satisfies
// errors.Is(err, fs.ErrExist) means that the job was started before, by whomever: it must not start again. After any
// other error the fence may stand or not, so the caller must not start the job either.
func (f *Folder) WriteStarted(s Started) error {
	s.Version = Version
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("write %s: %w", StartedFile, err)
	}
	file, err := f.root.OpenFile(StartedFile, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", StartedFile, err)
	}
	if err := writeClose(file, b, synced); err != nil {
		return fmt.Errorf("write %s: %w", StartedFile, err)
	}
	return f.sync(StartedFile)
}

// ReserveResult takes the disk space that WriteResult will need, where the file system can do that: a job whose disk is full
// must still be able to say how it ended. It is called before the job starts; the file has a temporary name.
func (f *Folder) ReserveResult() error {
	file, err := f.root.OpenFile(temporary(ResultFile), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("reserve %s: %w", ResultFile, err)
	}
	if err := errors.Join(reserve(file, 4<<10), file.Close()); err != nil {
		return fmt.Errorf("reserve %s: %w", ResultFile, err)
	}
	return nil
}

// spareFile holds the place of the trace's last words.
const spareFile = ".spare"

// ReserveTrace takes disk space for the trace's last words, where the file system can do that and has some: who reads a
// trace that ends because the disk is full should be told so. It is called before the job starts.
func (f *Folder) ReserveTrace() error {
	file, err := f.root.OpenFile(spareFile, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("reserve %s: %w", TraceFile, err)
	}
	_ = reserve(file, 4<<10) // without it the trace ends without these words
	if err := file.Close(); err != nil {
		return fmt.Errorf("reserve %s: %w", TraceFile, err)
	}
	return nil
}

// ReleaseTrace gives the space back, for the next who writes. There may be none.
func (f *Folder) ReleaseTrace() error {
	if err := f.root.Remove(spareFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("make room for the end of the trace: %w", err)
	}
	return nil
}

// WriteResult puts result.json in place, synced, in one step. The caller has synced the trace.
func (f *Folder) WriteResult(r Result) error {
	r.Version = Version
	b, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write %s: %w", ResultFile, err)
	}
	if err := f.replace(ResultFile, b, synced); err != nil {
		return err
	}
	return f.sync(ResultFile)
}

// OpenForJob opens one of the job's own files (the trace, the log) for appending and makes it with mode 0600 if needed.
func (f *Folder) OpenForJob(name string) (*os.File, error) {
	file, err := f.root.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return file, nil
}

func (f *Folder) absent(name string) error {
	_, err := f.root.Lstat(name)
	if err == nil {
		return &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func (f *Folder) checkPrefix(length int64) error {
	info, err := f.root.Lstat(PrefixFile)
	switch {
	case errors.Is(err, fs.ErrNotExist) && length == 0:
		return nil
	case err != nil:
		return err
	case !info.Mode().IsRegular():
		return fmt.Errorf("%s is not a regular file", PrefixFile)
	case info.Size() != length:
		return fmt.Errorf("%s has %d bytes, prefix_length is %d", PrefixFile, info.Size(), length)
	}
	return nil
}

// durability says whether a file is to outlive a loss of power when the call returns.
type durability bool

const (
	notSynced durability = false
	synced    durability = true
)

// replace writes name under a temporary name, syncs it if it is to last and renames it. The folder is not synced. Blocks
// that the temporary file has already are used and not given back first.
func (f *Folder) replace(name string, b []byte, d durability) error {
	file, err := f.root.OpenFile(temporary(name), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := writeClose(file, b, d); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := f.root.Rename(temporary(name), name); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

func temporary(name string) string { return "." + name + ".new" }

func (f *Folder) sync(name string) error {
	if err := f.dir.Sync(); err != nil {
		return fmt.Errorf("write %s: sync the folder: %w", name, err)
	}
	return nil
}

func writeClose(file *os.File, b []byte, d durability) error {
	_, err := file.Write(b)
	if err == nil {
		err = file.Truncate(int64(len(b)))
	}
	if err == nil && d == synced {
		err = file.Sync()
	}
	return errors.Join(err, file.Close())
}
