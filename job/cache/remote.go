//go:build unix

package cache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/job/folder"
	"github.com/switchyard-ci/switchyard/job/transfer"
)

const (
	signTimeout     = 30 * time.Second
	responseTimeout = 2 * time.Minute
	// maxDownloaded limits what is downloaded.
	maxDownloaded = 256 << 30
	// bodyWorthAsking is the size from which a server is asked first whether it takes the body.
	bodyWorthAsking = 1 << 20
)

var (
	errMissing  = errors.New("file does not exist")
	errUpToDate = errors.New("the local cache is up to date")
)

func (r *run) sign(ctx context.Context, op, name string) (folder.CacheAnswer, error) {
	signing, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	answer, err := r.Sign(signing, op, name)
	switch {
	case err != nil:
		return answer, fmt.Errorf("no address for the cache in the object store: %w", err)
	case answer.Error != "":
		return answer, errors.New("no address for the cache in the object store: " + answer.Error)
	case answer.URL == "":
		return answer, errors.New("no address for the cache in the object store")
	}
	return answer, nil
}

func (r *run) patience() transfer.Patience {
	return transfer.Patience{Tries: 3, Least: time.Second, Most: time.Second, Wait: r.wait}
}

func (r *run) again(err error) { r.Warn("Retrying... " + err.Error()) }

// request makes a request of a signed address.
func request(ctx context.Context, method string, answer folder.CacheAnswer) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, answer.URL, nil)
	if err != nil { // its text has the address, with the signature
		return nil, errors.New("the address of the cache in the object store is no URL")
	}
	for name, value := range answer.Headers {
		req.Header.Set(name, value)
	}
	return req, nil
}

// download brings the local archive up to date with the remote one.
func (r *run) download(ctx context.Context, k key) error {
	err := r.downloadObject(ctx, k.name, k.name)
	if errors.Is(err, errMissing) && k.former != "" && ctx.Err() == nil {
		err = r.downloadObject(ctx, k.former, k.name)
	}
	return err
}

func (r *run) downloadObject(ctx context.Context, object, name string) error {
	answer, err := r.sign(ctx, "get", object)
	if err != nil {
		return err
	}
	local := r.store.find(name)
	f, err := r.store.create(name)
	if err != nil {
		return err
	}
	var modified time.Time
	d := transfer.Download{
		Client: r.client, File: f.File, Timeout: r.timeout, Limit: maxDownloaded, Patience: r.patience(), Again: r.again,
		Ranges: r.ranges(),
		Request: func(ctx context.Context, _ int, _ bool) (*http.Request, error) {
			req, err := request(ctx, http.MethodGet, answer)
			if err == nil && local != nil {
				req.Header.Set("If-Modified-Since", local.ModTime().UTC().Format(http.TimeFormat))
			}
			return req, err
		},
	}
	d.Judge = func(resp *http.Response) error {
		switch {
		case resp.StatusCode == http.StatusNotModified && local != nil:
			return errUpToDate
		case resp.StatusCode == http.StatusNotFound:
			return errMissing
		}
		return judge(resp)
	}
	d.Begin = func(resp *http.Response) error {
		modified, _ = http.ParseTime(resp.Header.Get("Last-Modified"))
		if local != nil && !modified.After(local.ModTime()) {
			return errUpToDate
		}
		r.Say("Downloading cache from " + transfer.CleanURL(answer.URL) + "  " + fields("ETag", resp.Header.Get("ETag")))
		d.Meter = transfer.StartMeter("Downloading cache", transfer.Size(resp), r.meter, r.Progress)
		return nil
	}
	err = d.Run(ctx)
	d.Meter.Stop()
	if err != nil {
		f.discard()
		if errors.Is(err, errUpToDate) {
			r.Say(archiveName + " is up to date")
			return nil
		}
		return err
	}
	return f.keep(modified)
}

// fields is one field of a line as gitlab-runner has them.
func fields(name, value string) string {
	if value == "" {
		return ""
	}
	return name + "=" + strconv.QuoteToGraphic(value)
}

// ranges are those of FF_USE_PARALLEL_CACHE_TRANSFER.
func (r *run) ranges() transfer.Ranges {
	if !r.Flag("FF_USE_PARALLEL_CACHE_TRANSFER") {
		return transfer.Ranges{}
	}
	number := func(name string, def int64) int64 {
		v := r.Value(name)
		if v == "" {
			return def
		}
		n, err := strconv.ParseInt(v, 10, 64)
		if err != nil || n < 0 {
			r.Warn(fmt.Sprintf("%s: expected a number, got %q, using %d", name, v, def))
			return def
		}
		return n
	}
	return transfer.Ranges{
		Connections: int(min(number("CACHE_CONCURRENCY", transfer.DefaultConnections), 1<<10)),
		Chunk:       number("CACHE_CHUNK_SIZE", transfer.DefaultChunk),
	}
}

// upload puts the local archive into the object store. If that fails the local one is removed: it would be taken for the
// newest, and no later job of this machine would upload it.
func (r *run) upload(ctx context.Context, k key) error {
	info := r.store.find(k.name)
	if info == nil {
		return errors.New("the cache's archive is gone before it was uploaded")
	}
	if r.MaxUploaded > 0 && info.Size() > r.MaxUploaded {
		r.Say(fmt.Sprintf("Cache archive size (%d) is too big (Limit is set to %d). Cache will be stored only locally.", info.Size(), r.MaxUploaded))
		return nil
	}
	answer, err := r.sign(ctx, "put", k.name)
	if err == nil {
		err = r.patience().Do(ctx, r.again, func(int) error { return r.put(ctx, k, answer) })
	}
	if err != nil {
		if dropErr := r.store.drop(k.name, info); dropErr != nil {
			r.Warn("remove the cache that was not uploaded: " + dropErr.Error())
		}
	}
	return err
}

func (r *run) put(whole context.Context, k key, answer folder.CacheAnswer) error {
	ctx, cancel := context.WithTimeout(whole, r.timeout)
	defer cancel()
	req, err := request(ctx, http.MethodPut, answer)
	if err != nil {
		return err
	}
	f, info, err := r.store.open(k.name)
	if err != nil {
		return err
	}
	r.Say("Uploading " + archiveName + " to " + transfer.CleanURL(answer.URL))
	meter := transfer.StartMeter("Uploading cache", info.Size(), r.meter, r.Progress)
	defer meter.Stop()
	req.Body = f
	if meter != nil {
		req.Body = struct {
			io.Reader
			io.Closer
		}{meter.Reader(f), f}
	}
	req.ContentLength = info.Size()
	if req.ContentLength == 0 {
		_ = f.Close()
		req.Body = http.NoBody
	}
	if req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/octet-stream")
	}
	req.Header.Set("Last-Modified", info.ModTime().UTC().Format(http.TimeFormat))
	if info.Size() >= bodyWorthAsking {
		req.Header.Set("Expect", "100-continue")
	}
	resp, err := r.client.Send(req)
	if err != nil {
		if whole.Err() == nil && ctx.Err() != nil {
			return &transfer.Transient{Err: fmt.Errorf("PUT %s: it took too long (%v, CACHE_REQUEST_TIMEOUT)", transfer.CleanURL(answer.URL), r.timeout)}
		}
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 == 2 {
		return nil
	}
	return judge(resp)
}

// judge makes an error of an answer that is none of success.
func judge(resp *http.Response) error {
	e := transfer.NewStatusError(resp)
	if e.Code == http.StatusForbidden && strings.HasPrefix(e.Message, "AccessDenied") && e.Method == http.MethodGet {
		e.Message += " (an object store also says that of what does not exist)"
	}
	if e.Temporary() {
		return &transfer.Transient{Err: e, After: e.RetryAfter}
	}
	return e
}

// exists says whether the object store has the cache; if that cannot be found out it has not.
func (r *run) exists(ctx context.Context, k key) bool {
	answer, err := r.sign(ctx, "head", k.name)
	if err != nil {
		r.Warn(err.Error())
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, responseTimeout)
	defer cancel()
	req, err := request(ctx, http.MethodHead, answer)
	if err != nil {
		r.Warn(err.Error())
		return false
	}
	resp, err := r.client.Do(req)
	if err != nil {
		r.Warn(err.Error())
		return false
	}
	_ = resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}
