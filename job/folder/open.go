//go:build unix

package folder

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Limits of the files' sizes in bytes. A reader refuses a longer file: what a job folder holds may have been written by
// the user's job.
const (
	MaxSpec    = 16 << 20
	MaxPayload = 32 << 20
	MaxStarted = 4 << 10
	MaxResult  = 64 << 10
)

// ErrNoSpec, ErrNoPayload and ErrNoResult say that the file is not there yet, ErrNotStarted that the fence is not: no
// user command of the job ran.
var (
	ErrNoSpec     = errors.New("the job folder has no spec.json yet")
	ErrNoPayload  = errors.New("the job folder has no payload.json yet")
	ErrNoResult   = errors.New("the job has no result yet")
	ErrNotStarted = errors.New("the job has not started")
)

// VersionError is returned for a file whose format is newer than this code.
type VersionError struct {
	File  string
	Found int
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s has format %d, this program reads up to %d: upgrade the program that reads it", e.File, e.Found, Version)
}

// Folder is an opened job folder. It stays the same folder if it is renamed meanwhile, and no name in it leads out of it.
// Methods may be called concurrently; none after Close.
type Folder struct {
	path string
	root *os.Root
	dir  *os.File
}

// Open opens an existing job folder. The error satisfies errors.Is(err, fs.ErrNotExist) if there is none.
func Open(path string) (*Folder, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open job folder: %w", err)
	}
	return openIn(root, path)
}

// again opens the same folder a second time, whatever its path is by now.
func (f *Folder) again() (*Folder, error) {
	root, err := f.root.OpenRoot(".")
	if err != nil {
		return nil, fmt.Errorf("open job folder: %w", err)
	}
	return openIn(root, f.path)
}

func openIn(root *os.Root, path string) (*Folder, error) {
	dir, err := root.Open(".")
	if err != nil {
		_ = root.Close()
		return nil, fmt.Errorf("open job folder: %w", err)
	}
	return &Folder{path: path, root: root, dir: dir}, nil
}

// Path is the path that the folder was opened by.
func (f *Folder) Path() string { return f.path }

// Close releases the folder; followers and traces made from it go on.
func (f *Folder) Close() error {
	return errors.Join(f.dir.Close(), f.root.Close())
}

// Spec reads spec.json. It returns ErrNoSpec or a *VersionError.
func (f *Folder) Spec() (Spec, error) {
	b, err := f.read(SpecFile, MaxSpec, ErrNoSpec)
	if err != nil {
		return Spec{}, err
	}
	return ParseSpec(b)
}

// ParseSpec reads the content of a spec.json. It returns a *VersionError for a newer format.
func ParseSpec(b []byte) (Spec, error) {
	var s Spec
	if err := parseJSON(SpecFile, b, &s, &s.Version); err != nil {
		return Spec{}, err
	}
	return s, nil
}

// Payload reads payload.json byte for byte. It returns ErrNoPayload.
func (f *Folder) Payload() ([]byte, error) {
	return f.read(PayloadFile, MaxPayload, ErrNoPayload)
}

// Started reads the fence. It returns ErrNotStarted. A fence that is there but empty or damaged (the machine stopped
// between its making and its writing) is a fence: it is returned as a Started that has Version only.
func (f *Folder) Started() (Started, error) {
	b, err := f.read(StartedFile, MaxStarted, ErrNotStarted)
	if err != nil {
		return Started{}, err
	}
	var s Started
	if json.Unmarshal(b, &s) != nil {
		return Started{Version: Version}, nil //nolint:nilerr // see above
	}
	if s.Version > Version {
		return Started{}, &VersionError{File: StartedFile, Found: s.Version}
	}
	return s, nil
}

// Result reads result.json. It returns ErrNoResult, or what ParseResult does.
func (f *Folder) Result() (Result, error) {
	b, err := f.read(ResultFile, MaxResult, ErrNoResult)
	if err != nil {
		return Result{}, err
	}
	return ParseResult(b)
}

// ParseResult reads the content of a result.json. State is success or failed, lengths are not negative. It returns a
// *VersionError for a newer format.
func ParseResult(b []byte) (Result, error) {
	var r Result
	if err := parseJSON(ResultFile, b, &r, &r.Version); err != nil {
		return Result{}, err
	}
	if r.State != runnerapi.StateSuccess && r.State != runnerapi.StateFailed {
		return Result{}, fmt.Errorf("read %s: state is %q, not %q or %q", ResultFile, r.State, runnerapi.StateSuccess, runnerapi.StateFailed)
	}
	if r.TraceLength < 0 {
		return Result{}, fmt.Errorf("read %s: trace_length is %d", ResultFile, r.TraceLength)
	}
	return r, nil
}

// parseJSON reads a versioned file's content into v; version points at its version field.
func parseJSON(name string, b []byte, v any, version *int) error {
	if err := json.Unmarshal(b, v); err != nil {
		// A newer format may have changed a field's type: the version explains more than that.
		var only struct {
			Version int `json:"version"`
		}
		if json.Unmarshal(b, &only) == nil && only.Version > Version {
			return &VersionError{File: name, Found: only.Version}
		}
		return fmt.Errorf("read %s: %w", name, err)
	}
	if *version > Version {
		return &VersionError{File: name, Found: *version}
	}
	if *version < 1 {
		return fmt.Errorf("read %s: it names no format version", name)
	}
	return nil
}

func (f *Folder) read(name string, limit int64, missing error) ([]byte, error) {
	file, err := f.openRegular(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, missing
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if info.Size() > limit {
		return nil, fmt.Errorf("read %s: it is %d bytes long, more than the limit of %d", name, info.Size(), limit)
	}
	b := make([]byte, info.Size())
	n, err := io.ReadFull(file, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	return b[:n], nil
}

// openRegular opens a file for reading and refuses what is not a regular file: a FIFO or device would block or worse.
func (f *Folder) openRegular(name string) (*os.File, error) {
	file, err := f.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		_ = file.Close()
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	return file, nil
}
