//go:build unix

package artifacts

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"time"

	"github.com/switchyard-ci/switchyard/job/archive"
	"github.com/switchyard-ci/switchyard/job/transfer"
)

// packBuffer gathers what is packed before it goes on its way.
const packBuffer = 128 << 10

var errAnswered = errors.New("the upload has ended")

// nobodyThere says that there was no connection: a server that is being restarted, which says the same by 503 a moment
// later.
func nobodyThere(err error) bool {
	dialled, ok := errors.AsType[*net.OpError](err)
	return ok && dialled.Op == "dial"
}

// post packs the files and uploads them at the same time. The answer's body is read already, up to a limit. Errors are
// *transfer.Transient if it was the network, and satisfy ErrLocal if it was the files.
func (u *upload) post(whole context.Context) (*http.Response, error) {
	timeout := u.UploadTimeout
	if timeout <= 0 {
		timeout = defaultTimeout
	}
	ctx, cancel := context.WithTimeout(whole, timeout)
	defer cancel()

	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	if _, err := w.CreateFormFile("file", u.file); err != nil {
		return nil, fmt.Errorf("upload artifacts: %w", err)
	}
	head := bytes.Clone(form.Bytes())
	form.Reset()
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("upload artifacts: %w", err)
	}
	reader, writer := io.Pipe()
	meter := transfer.StartMeter("Uploading artifacts", 0, u.meter, u.Progress)
	defer meter.Stop()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.address(u.base, u.JobID, u.query), struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head), meter.Reader(reader), &form), reader})
	if err != nil {
		return nil, fmt.Errorf("upload artifacts: %w", err)
	}
	req.Header.Set(tokenHeader, u.Token)
	req.Header.Set("Content-Type", w.FormDataContentType())
	if u.ask { // a refusal or a redirect comes before the body then
		req.Header.Set("Expect", "100-continue")
	}

	packed := make(chan error, 1)
	go func() {
		buffered := bufio.NewWriterSize(writer, packBuffer)
		_, err := archive.Pack(ctx, buffered, u.format, u.level, u.root, u.names, u.Warn)
		if err == nil {
			err = buffered.Flush()
		}
		_ = writer.CloseWithError(err)
		packed <- err
	}()
	resp, err := u.client.Send(req)
	if t, ok := errors.AsType[*transfer.Transient](err); ok && nobodyThere(err) {
		t.Tries = triesUnavailable
	}
	_ = reader.CloseWithError(errAnswered)
	packErr := <-packed
	if err == nil {
		defer func() { _ = resp.Body.Close() }()
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what is missing of a message is no reason to fail
		resp.Body = io.NopCloser(bytes.NewReader(body))
		if resp.StatusCode != http.StatusCreated || packErr == nil {
			return resp, nil
		}
		err = &transfer.Transient{Err: errors.New("GitLab answered before it had all of the artifacts")}
	}
	switch {
	case whole.Err() != nil:
		return nil, context.Cause(whole)
	case ctx.Err() != nil:
		return nil, &transfer.Transient{Err: fmt.Errorf("POST %s: it took too long (%v)",
			transfer.CleanURL(req.URL.String()), timeout.Round(time.Millisecond))}
	case packErr != nil && !errors.Is(packErr, errAnswered) && !errors.Is(packErr, io.ErrClosedPipe):
		return nil, fmt.Errorf("%w: pack the artifacts: %w", ErrLocal, packErr)
	}
	return nil, err
}
