//go:build unix

package artifacts

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/archive"
	"github.com/switchyard-ci/switchyard/job/transfer"
)

// maxDownloaded limits the archive of one job.
const maxDownloaded = 256 << 30

// Download downloads and extracts the artifacts of the jobs that this one depends on, in order. The first failure ends it.
func (s *Stage) Download(ctx context.Context, list []runnerapi.Dependency) error {
	if !Downloads(list) {
		return nil
	}
	r, err := s.start()
	if err != nil {
		return err
	}
	defer r.stop()
	for _, d := range list {
		if d.ArtifactsFile.Filename == "" {
			continue
		}
		r.Notice(fmt.Sprintf("Downloading artifacts for %s (%d)...", d.Name, d.ID))
		err := r.downloadOne(ctx, d)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return fmt.Errorf("artifacts of %s (%d): %w", d.Name, d.ID, err)
		}
	}
	return nil
}

func (r *run) downloadOne(ctx context.Context, d runnerapi.Dependency) error {
	f, err := r.temporary()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLocal, err)
	}
	defer func() { _ = f.Close() }()
	if err := r.download(ctx, d, f); err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLocal, err)
	}
	if _, err := archive.Unpack(ctx, f, info.Size(), r.root, archive.Limits{}, r.Warn); err != nil {
		return fmt.Errorf("%w: extract: %w", ErrLocal, err)
	}
	return nil
}

// temporary makes a file without a name: nothing is left of it whatever happens.
func (r *run) temporary() (*os.File, error) {
	if err := os.MkdirAll(r.TempDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the folder for temporary files: %w", err)
	}
	f, err := os.CreateTemp(r.TempDir, "artifacts")
	if err != nil {
		return nil, fmt.Errorf("make a temporary file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(fmt.Errorf("make a temporary file: %w", err), f.Close())
	}
	return f, nil
}

const downloading = "Downloading artifacts from coordinator..."

func (r *run) download(ctx context.Context, dep runnerapi.Dependency, f *os.File) error {
	id := strconv.FormatInt(dep.ID, 10)
	direct := r.Flag("FF_USE_DIRECT_DOWNLOAD")
	var ok string
	d := transfer.Download{
		Client: r.client, File: f, Timeout: defaultTimeout, Limit: maxDownloaded,
		Patience: transfer.Patience{Tries: tries, Least: time.Second, Most: time.Second, Wait: r.wait},
		Again: func(err error) {
			r.Warn("Retrying..." + fields("error", strconv.QuoteToGraphic(err.Error())))
		},
	}
	// Only the first try asks to be sent to the object store, which not every runner can reach.
	d.Request = func(ctx context.Context, try int, delivered bool) (*http.Request, error) {
		query := url.Values{}
		if direct && (try == 0 || delivered) {
			query.Set("direct_download", "true")
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.address(r.base, dep.ID, query), nil)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrConfiguration, err)
		}
		req.Header.Set(tokenHeader, dep.Token)
		if !delivered && try > 0 {
			direct = false
		}
		return req, nil
	}
	if r.Flag("FF_USE_PARALLEL_ARTIFACT_TRANSFER") && direct {
		d.Ranges = transfer.Ranges{Connections: transfer.DefaultConnections, If: func(resp *http.Response) bool {
			return !transfer.SameOrigin(resp.Request.URL, r.base)
		}}
	}
	line := func(resp *http.Response, text string) string {
		return downloading + " " + text + fields("correlation_id", transfer.RequestID(resp), "host", resp.Request.URL.Host,
			"id", id, "responseStatus", resp.Status)
	}
	d.Begin = func(resp *http.Response) error {
		ok = line(resp, "ok")
		d.Meter = transfer.StartMeter("Downloading artifacts", transfer.Size(resp), r.meter, r.Progress)
		return nil
	}
	d.Judge = func(resp *http.Response) error {
		e := transfer.NewStatusError(resp)
		switch e.Code {
		case http.StatusForbidden:
			r.Fail(line(resp, "forbidden") + fields("status", strconv.QuoteToGraphic(e.Message)))
			return fmt.Errorf("%w: %w", ErrPermission, e)
		case http.StatusUnauthorized:
			r.Fail(line(resp, "unauthorized"))
			return fmt.Errorf("%w: %w", ErrPermission, e)
		case http.StatusNotFound:
			r.Fail(line(resp, "not found"))
			return fmt.Errorf("%w: %w", ErrNotFound, e)
		}
		r.Warn(line(resp, "failed"))
		return &transfer.Transient{Err: e, After: e.RetryAfter}
	}
	err := d.Run(ctx)
	d.Meter.Stop()
	if err == nil {
		r.Say(ok)
		return nil
	}
	if _, transient := errors.AsType[*transfer.Transient](err); transient {
		r.Fail(downloading + " error" + fields("error", strconv.QuoteToGraphic(err.Error()), "id", id))
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	for _, kind := range []error{ErrPermission, ErrNotFound, ErrConfiguration} {
		if errors.Is(err, kind) {
			return err
		}
	}
	if ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%w: %w", ErrLocal, err)
}
