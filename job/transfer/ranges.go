package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sync/errgroup"
)

// The parts of a download: gitlab-runner's sizes for artifacts and its defaults for caches.
const (
	DefaultChunk       = 16 << 20
	DefaultConnections = 16

	leastChunk      = 1 << 20
	mostConnections = 32
)

// Ranges say how a file is got in parts at the same time, from servers that can.
type Ranges struct {
	// Connections is how many parts come at the same time, at most 32; 0 and 1 turn it off.
	Connections int
	// Chunk is the size of a part in bytes, at least 1 MiB; 0 is DefaultChunk.
	Chunk int64
	// If, if not nil, says whether the server that answered may be asked for more parts.
	If func(resp *http.Response) bool
}

func (r Ranges) size() int64 {
	if r.Chunk <= 0 {
		return DefaultChunk
	}
	return max(r.Chunk, leastChunk)
}

// parallel gets the rest of a file whose first part is the body of resp. All parts are of the version of the first.
func (d *Download) parallel(ctx context.Context, resp *http.Response) error {
	size, total := d.Ranges.size(), d.total
	parts := (total + size - 1) / size
	var next atomic.Int64
	group, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { _ = resp.Body.Close() })
	defer stop()
	part := func(body io.Reader, at, length int64) error {
		w := &fileAt{d: d, at: at}
		n, err := io.CopyBuffer(w, io.LimitReader(body, length), make([]byte, bufferSize))
		switch {
		case w.err != nil:
			return fmt.Errorf("keep what is downloaded: %w", w.err)
		case err == nil && n < length:
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return &Transient{Err: fmt.Errorf("GET %s: the connection broke after %d bytes of the part at %d: %w",
				CleanURL(resp.Request.URL.String()), n, at, err)}
		}
		return nil
	}
	for worker := range min(int64(min(d.Ranges.Connections, mostConnections)), parts) {
		group.Go(func() error {
			if worker == 0 {
				if err := part(resp.Body, 0, size); err != nil {
					return err
				}
			}
			for {
				i := next.Add(1)
				if i >= parts {
					return nil
				}
				at := i * size
				length := min(size, total-at)
				if err := d.part(ctx, resp, at, length, part); err != nil {
					return err
				}
			}
		})
	}
	err := group.Wait()
	if err == nil {
		d.have = total
		return nil
	}
	// What arrived has holes. The next try is a plain one.
	d.single = true
	return errors.Join(err, d.restart())
}

// part asks for one part where the first came from.
func (d *Download) part(ctx context.Context, first *http.Response, at, length int64, keep func(io.Reader, int64, int64) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, first.Request.URL.String(), nil)
	if err != nil {
		return fmt.Errorf("ask for a part: %w", err)
	}
	req.Header = first.Request.Header.Clone()
	req.Header.Del(requestID)
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", at, at+length-1))
	resp, err := d.Client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	start, total, ok := contentRange(resp.Header)
	if resp.StatusCode != http.StatusPartialContent || !ok || start != at || total != d.total || !d.version.agrees(resp.Header) {
		return &Transient{Err: fmt.Errorf("GET %s: asked for a part, got %s that is none of the same file", CleanURL(req.URL.String()),
			status(resp.StatusCode))}
	}
	return keep(resp.Body, at, length)
}

// fileAt writes to a place in the file and remembers whose fault an error was.
type fileAt struct {
	d   *Download
	at  int64
	err error
}

func (w *fileAt) Write(b []byte) (int, error) {
	n, err := w.d.File.WriteAt(b, w.at)
	w.at += int64(n)
	w.d.Meter.Add(n)
	w.err = err
	return n, err
}

// contentRange reads "bytes <start>-<end>/<total>".
func contentRange(h http.Header) (start, total int64, ok bool) {
	text, found := strings.CutPrefix(h.Get("Content-Range"), "bytes ")
	if !found {
		return 0, 0, false
	}
	span, all, _ := strings.Cut(text, "/")
	from, to, _ := strings.Cut(span, "-")
	start, err1 := strconv.ParseInt(from, 10, 64)
	end, err2 := strconv.ParseInt(to, 10, 64)
	total, err3 := strconv.ParseInt(all, 10, 64)
	return start, total, err1 == nil && err2 == nil && err3 == nil && start >= 0 && start <= end && end < total
}

// Size is the size of the whole file that an answer is of, or of a part of it; -1 if it does not say.
func Size(resp *http.Response) int64 {
	if _, total, ok := contentRange(resp.Header); ok && resp.StatusCode == http.StatusPartialContent {
		return total
	}
	return resp.ContentLength
}
