//go:build unix

package attach

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"github.com/switchyard-ci/switchyard/job/folder"
)

// The frames with which the standard input of `switchyard-job launch` begins, in this order; lines of orders follow.
const (
	specFrame    Kind = 'J' // JSON of folder.Spec
	payloadFrame Kind = 'P' // GitLab's payload, byte for byte
)

// WriteHeader writes what launch needs to make the job's folder.
func WriteHeader(w io.Writer, spec folder.Spec, payload []byte) error {
	spec.Version = folder.Version
	b, err := json.Marshal(spec)
	if err != nil {
		return fmt.Errorf("describe the job: %w", err)
	}
	for _, part := range []struct {
		kind    Kind
		content []byte
		limit   int
	}{{specFrame, b, folder.MaxSpec}, {payloadFrame, payload, folder.MaxPayload}} {
		if len(part.content) > part.limit {
			return fmt.Errorf("describe the job: part %q has %d bytes, more than the limit of %d", byte(part.kind), len(part.content), part.limit)
		}
		if _, err := w.Write(appendHead(nil, part.kind, len(part.content))); err != nil {
			return fmt.Errorf("describe the job: %w", err)
		}
		if _, err := w.Write(part.content); err != nil {
			return fmt.Errorf("describe the job: %w", err)
		}
	}
	return nil
}

// ReadHeader reads what WriteHeader wrote, and no byte more.
func ReadHeader(r io.Reader) (spec folder.Spec, payload []byte, err error) {
	b, err := readPart(r, specFrame, folder.MaxSpec)
	if err != nil {
		return folder.Spec{}, nil, err
	}
	if spec, err = folder.ParseSpec(b); err != nil {
		return folder.Spec{}, nil, err
	}
	payload, err = readPart(r, payloadFrame, folder.MaxPayload)
	return spec, payload, err
}

func readPart(r io.Reader, kind Kind, limit uint32) ([]byte, error) {
	var head [headLength]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, fmt.Errorf("read the description of the job: %w", err)
	}
	size := binary.BigEndian.Uint32(head[1:])
	switch {
	case Kind(head[0]) != kind:
		return nil, fmt.Errorf("read the description of the job: part %q instead of %q", head[0], byte(kind))
	case size > limit:
		return nil, fmt.Errorf("read the description of the job: part %q has %d bytes, more than the limit of %d", byte(kind), size, limit)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("read the description of the job: %w", err)
	}
	return b, nil
}
