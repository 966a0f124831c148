package artifacts

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"
)

// ErrTooLarge says that an upload has more bytes than it may have.
var ErrTooLarge = errors.New("the upload is too large")

// ErrGone says that a file is not there any more.
var ErrGone = errors.New("the artifact is gone")

var errClosed = errors.New("the store of artifacts is closed")

// Store is a folder of uploads. All methods may be called concurrently.
type Store struct {
	dir     string
	buffers sync.Pool

	mu     sync.Mutex
	closed bool
}

// bufferSize is how much is read and written at a time.
const bufferSize = 256 << 10

// NewStore makes a store in a folder, which must exist and be the store's own.
func NewStore(dir string) *Store {
	return &Store{dir: dir, buffers: sync.Pool{New: func() any { return new([bufferSize]byte) }}}
}

// Dir is the store's folder.
func (s *Store) Dir() string { return s.dir }

// Close lets no new file begin. The folder may be removed after it: uploads that are under way lose theirs.
func (s *Store) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
}

// Upload is a file that has been received and belongs to no job yet.
type Upload struct {
	Path   string
	Size   int64
	SHA256 string // in hexadecimal digits
}

// Receive reads a file of at most limit bytes to its end. After an error, nothing is left. The error is [ErrTooLarge] if
// there are more bytes; those behind the limit are not read.
func (s *Store) Receive(r io.Reader, limit int64) (*Upload, error) {
	f, err := s.create()
	if err != nil {
		return nil, fmt.Errorf("receive an artifact: %w", err)
	}
	u, err := s.write(f, r, limit)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, errors.Join(err, remove(f.Name()))
	}
	u.Path = f.Name()
	return u, nil
}

func (s *Store) create() (*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errClosed
	}
	return os.CreateTemp(s.dir, "artifact-")
}

func (s *Store) write(f *os.File, r io.Reader, limit int64) (*Upload, error) {
	buffer := s.buffers.Get().(*[bufferSize]byte)
	defer s.buffers.Put(buffer)
	digest := sha256.New()
	u := &Upload{}
	for {
		n, readErr := fill(r, buffer[:])
		if u.Size += int64(n); u.Size > limit {
			return nil, ErrTooLarge
		}
		digest.Write(buffer[:n])
		if _, err := f.Write(buffer[:n]); err != nil {
			return nil, fmt.Errorf("keep an artifact: %w", err)
		}
		switch {
		case errors.Is(readErr, io.EOF):
			u.SHA256 = hex.EncodeToString(digest.Sum(nil))
			return u, nil
		case readErr != nil:
			return nil, fmt.Errorf("receive an artifact: %w", readErr)
		}
	}
}

// fill reads until the buffer is full; unlike io.ReadFull it leaves the reader's error as it is, which tells the end of an
// upload from one that broke off.
func fill(r io.Reader, buffer []byte) (n int, err error) {
	for n < len(buffer) && err == nil {
		var more int
		more, err = r.Read(buffer[n:])
		n += more
	}
	return n, err
}

// Discard removes an upload.
func (u *Upload) Discard() error { return remove(u.Path) }

// Remove removes files of artifacts; one that is gone already is no error.
func (s *Store) Remove(paths ...string) error {
	var errs []error
	for _, p := range paths {
		errs = append(errs, remove(p))
	}
	return errors.Join(errs...)
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove an artifact: %w", err)
	}
	return nil
}

// Open opens an artifact; ErrGone is in the chain if it has been removed.
func (s *Store) Open(a *Artifact) (*os.File, error) {
	f, err := os.Open(a.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s %s: %w", a.Type, a.Name, ErrGone)
	}
	if err != nil {
		return nil, fmt.Errorf("open an artifact: %w", err)
	}
	return f, nil
}
