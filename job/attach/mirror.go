//go:build unix

package attach

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"

	"github.com/switchyard-ci/switchyard/job/folder"
)

const (
	// notices is how much longer than its limit a trace may be: it ends with what the job has to say about that.
	notices = 4 << 10
	// maxMessage is how much of a result's message is kept.
	maxMessage = 4 << 10
)

// Mirror makes a job folder on this host a copy of the one in the environment, frame by frame: trace, fence, result. The
// folder's spec.json says which job it is and how long its trace may get. It is not for concurrent use.
type Mirror struct {
	folder *folder.Folder
	spec   folder.Spec
	file   *os.File
	length int64    // of file
	crc    checksum // of the whole trace
	begun  bool
}

// OpenMirror opens the mirror that f is. The copying goes on after what an earlier process has copied.
func OpenMirror(f *folder.Folder) (*Mirror, error) {
	m := &Mirror{folder: f}
	var err error
	if m.spec, err = f.Spec(); err != nil {
		return nil, err
	}
	switch _, err := f.Started(); {
	case err == nil:
		m.begun = true
	case !errors.Is(err, folder.ErrNotStarted):
		return nil, err
	}
	if m.file, err = f.MirrorTrace(false); err != nil {
		return nil, err
	}
	m.crc = checksum(m.spec.PrefixCRC32)
	if m.length, err = io.Copy(&m.crc, m.file); err != nil {
		return nil, errors.Join(fmt.Errorf("read %s: %w", folder.TraceFile, err), m.file.Close())
	}
	return m, nil
}

// checksum is the CRC of all that was written to it and of what it began with.
type checksum uint32

func (c *checksum) Write(b []byte) (int, error) {
	*c = checksum(crc32.Update(uint32(*c), crc32.IEEETable, b))
	return len(b), nil
}

// Close closes the trace.
func (m *Mirror) Close() error { return m.file.Close() }

// Spec is the job's.
func (m *Mirror) Spec() folder.Spec { return m.spec }

// Begun reports whether the job is known to have started.
func (m *Mirror) Begun() bool { return m.begun }

// Offset is where the trace goes on: the next stream is to begin there.
func (m *Mirror) Offset() int64 { return m.spec.PrefixLength + m.length }

// Apply writes down what a frame says. An *InvalidError: it cannot be true; any other error is this host's own (its disk is
// full), and the same may be tried again with another stream from Offset on. When it returns nil for a Result, trace and
// result are on the disk for good.
func (m *Mirror) Apply(f Frame) error {
	switch f.Kind {
	case Hello:
		return m.greeted(f.Greeting)
	case Data:
		return m.grow(f.Offset, f.Data)
	case Result:
		return m.end(f.Result)
	case Stage, Ask, Gone, Failed:
	}
	return nil
}

func (m *Mirror) greeted(g Greeting) error {
	if g.Job != m.spec.Job || g.Epoch != m.spec.Epoch {
		return invalid("the environment runs job %d, epoch %d, not job %d, epoch %d", g.Job, g.Epoch, m.spec.Job, m.spec.Epoch)
	}
	if g.Started == nil || m.begun {
		return nil
	}
	// The time is what the agent reports. A process id says nothing on this host.
	if err := m.folder.MirrorStarted(folder.Started{At: g.Started.At}); err != nil {
		return err
	}
	m.begun = true
	return nil
}

func (m *Mirror) grow(offset int64, b []byte) error {
	if offset != m.Offset() {
		return invalid("the trace goes on at %d, not at %d", m.Offset(), offset)
	}
	if most := max(m.spec.OutputLimit, m.spec.PrefixLength) + notices; offset+int64(len(b)) > most {
		return invalid("the job's log is longer than its limit of %d bytes", m.spec.OutputLimit)
	}
	n, err := m.file.Write(b)
	m.length += int64(n)
	_, _ = m.crc.Write(b[:n])
	if err != nil {
		return fmt.Errorf("write the trace: %w", err)
	}
	return nil
}

func (m *Mirror) end(r folder.Result) error {
	switch {
	case r.TraceLength != m.length:
		return invalid("the job's log has %d bytes, but its result says %d", m.length, r.TraceLength)
	case r.TraceCRC32 != uint32(m.crc):
		return invalid("the job's log was damaged: its checksum is %08x, its result says %08x", m.crc, r.TraceCRC32)
	}
	r.Message = r.Message[:min(len(r.Message), maxMessage)]
	if err := m.file.Sync(); err != nil {
		return fmt.Errorf("write the trace: %w", err)
	}
	return m.folder.WriteResult(r)
}
