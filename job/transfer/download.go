package transfer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"
)

const (
	// maxResumes is how many broken connections a download survives that each delivered something; they are no failed tries.
	maxResumes = 10
	bufferSize = 256 << 10
)

var errTooSlow = errors.New("it took too long")

// Download gets one file by GET. A connection that breaks is taken up where it broke if the server says by ETag or
// Last-Modified what it delivers; otherwise the file is got anew.
type Download struct {
	Client *Client
	// Request makes the request of one try, the first being 0. delivered says that an earlier try got a part of the file:
	// the way that it took is open. Headers about ranges are added to the request.
	Request func(ctx context.Context, try int, delivered bool) (*http.Request, error)
	// Judge makes an error of an answer that is neither 200 nor 206; a *Transient one is followed by another try. nil makes
	// a *StatusError, in a *Transient if it is temporary.
	Judge func(resp *http.Response) error
	// Begin is called with the first answer whose body would be read. An error of it ends the download. It may be nil.
	Begin func(resp *http.Response) error
	// File is written from its beginning; it is empty at first.
	File *os.File
	// Timeout is that of one try; 0 is no limit.
	Timeout time.Duration
	// Patience says how often is tried. Again is told what is followed by another try; it may be nil.
	Patience Patience
	Again    func(err error)
	// Limit is the greatest size of the file; 0 is no limit.
	Limit int64
	// Ranges make the file come in parts at the same time.
	Ranges Ranges
	// Meter, if not nil, counts what arrives.
	Meter *Meter

	have    int64 // bytes in File
	total   int64 // of the whole file; -1 if it is not known
	version version
	begun   bool
	single  bool // no ranges at the same time, or no longer
}

// Run downloads the file, once. Its error is context.Cause(ctx) if ctx ended, what Request, Judge or Begin returned, or
// what broke.
func (d *Download) Run(ctx context.Context) error {
	d.total = -1
	failures, resumes := 0, 0
	for n := 0; ; n++ {
		before := d.have
		err := d.try(ctx, n)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		t, ok := errors.AsType[*Transient](err)
		switch {
		case !ok:
			return err
		case d.have > before && resumes < maxResumes:
			resumes++
		default:
			if failures++; failures >= d.Patience.tries(t) {
				return err
			}
		}
		if d.Again != nil {
			d.Again(err)
		}
		if err := d.Patience.pause(ctx, max(failures-1, 0), t.After); err != nil {
			return err
		}
	}
}

func (d *Download) try(ctx context.Context, n int) error {
	whole := ctx
	if d.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, d.Timeout, errTooSlow)
		defer cancel()
	}
	req, err := d.Request(ctx, n, d.have > 0)
	if err != nil {
		return err
	}
	err = d.get(ctx, req)
	if err != nil && whole.Err() == nil && ctx.Err() != nil {
		return &Transient{Err: fmt.Errorf("GET %s: %w (%v)", CleanURL(req.URL.String()), errTooSlow, d.Timeout)}
	}
	return err
}

func (d *Download) get(ctx context.Context, req *http.Request) error {
	asked := true
	parallel := d.have == 0 && !d.single && d.Ranges.Connections > 1
	switch {
	case d.have > 0 && d.version.value() != "":
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", d.have))
		req.Header.Set("If-Range", d.version.value())
	case parallel:
		req.Header.Set("Range", fmt.Sprintf("bytes=0-%d", d.Ranges.size()-1))
	default:
		asked = false
		req.Header.Del("Range")
		req.Header.Del("If-Range")
		if err := d.restart(); err != nil {
			return err
		}
	}
	resp, err := d.Client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	switch {
	case resp.StatusCode == http.StatusOK:
		if err := d.restart(); err != nil {
			return err
		}
		d.total, d.version = resp.ContentLength, versionOf(resp.Header)
		parallel = false
	case resp.StatusCode == http.StatusPartialContent && asked:
		start, total, ok := contentRange(resp.Header)
		if !ok || start != d.have || d.have > 0 && (total != d.total && d.total >= 0 || !d.version.agrees(resp.Header)) {
			return d.anew(req, "the answer is no part of the same file")
		}
		d.total = total
		if d.have == 0 {
			d.version = versionOf(resp.Header)
		}
	case resp.StatusCode == http.StatusRequestedRangeNotSatisfiable && asked:
		return d.anew(req, status(resp.StatusCode))
	case d.Judge != nil:
		return d.Judge(resp)
	default:
		e := NewStatusError(resp)
		if e.Temporary() {
			return &Transient{Err: e, After: e.RetryAfter}
		}
		return e
	}
	if d.Limit > 0 && d.total > d.Limit {
		return d.tooLarge()
	}
	if !d.begun && d.Begin != nil {
		if err := d.Begin(resp); err != nil {
			return err
		}
	}
	d.begun = true
	if parallel && d.total > d.Ranges.size() && d.version.value() != "" && (d.Ranges.If == nil || d.Ranges.If(resp)) {
		return d.parallel(ctx, resp)
	}
	if err := d.copy(req, resp.Body); err != nil {
		return err
	}
	switch {
	case d.total < 0 || d.have == d.total:
		return nil
	case parallel: // the first part was asked for and is here; the rest comes at once
		d.single = true
		next := req.Clone(ctx)
		next.Header.Del(requestID)
		return d.get(ctx, next)
	}
	return &Transient{Err: fmt.Errorf("GET %s: the answer ended after %d of %d bytes", CleanURL(req.URL.String()), d.have, d.total)}
}

// copy writes what is left of an answer to the file.
func (d *Download) copy(req *http.Request, body io.Reader) error {
	buffer := make([]byte, bufferSize)
	for {
		n, err := body.Read(buffer)
		if d.Limit > 0 && d.have+int64(n) > d.Limit {
			return d.tooLarge()
		}
		if n > 0 {
			if _, err := d.File.WriteAt(buffer[:n], d.have); err != nil {
				return fmt.Errorf("keep what is downloaded: %w", err)
			}
			d.have += int64(n)
			d.Meter.Add(n)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return &Transient{Err: fmt.Errorf("GET %s: the connection broke after %d bytes: %w", CleanURL(req.URL.String()), d.have, err)}
		}
	}
}

// anew makes the next try begin from nothing.
func (d *Download) anew(req *http.Request, reason string) error {
	d.single = true
	if err := d.restart(); err != nil {
		return err
	}
	return &Transient{Err: fmt.Errorf("GET %s: %s; it is got from the beginning", CleanURL(req.URL.String()), reason)}
}

func (d *Download) restart() error {
	d.have, d.total, d.version = 0, -1, version{}
	if err := d.File.Truncate(0); err != nil {
		return fmt.Errorf("keep what is downloaded: %w", err)
	}
	return nil
}

func (d *Download) tooLarge() error {
	return fmt.Errorf("the file is larger than the greatest that is downloaded (%d bytes)", d.Limit)
}

// version says which of its versions a file is.
type version struct{ etag, modified string }

func versionOf(h http.Header) version {
	v := version{etag: h.Get("ETag"), modified: h.Get("Last-Modified")}
	if strings.HasPrefix(v.etag, "W/") { // says nothing about single bytes
		v.etag = ""
	}
	return v
}

// value is what If-Range takes; nothing if the version is not known.
func (v version) value() string {
	if v.etag != "" {
		return v.etag
	}
	return v.modified
}

// agrees says whether an answer is of this version. Not every server heeds If-Range, so it is compared.
func (v version) agrees(h http.Header) bool {
	other := versionOf(h)
	if v.etag != "" && other.etag != "" {
		return v.etag == other.etag
	}
	return v.modified != "" && v.modified == other.modified
}
