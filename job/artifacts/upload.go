//go:build unix

package artifacts

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
	"github.com/switchyard-ci/switchyard/job/archive"
	"github.com/switchyard-ci/switchyard/job/transfer"
)

const (
	tries            = 3
	triesUnavailable = 6
	leastPause       = time.Second
	mostPause        = 5 * time.Second
)

// Upload uploads the artifacts that a job of this end keeps, one after another. A job may have none of the files; that is
// said and is no failure. If one upload fails the others are tried, unless GitLab does not let any through; the first error
// is returned.
func (s *Stage) Upload(ctx context.Context, list []runnerapi.Artifact, jobSucceeded bool) error {
	if !Uploads(list, jobSucceeded) {
		return nil
	}
	r, err := s.start()
	if err != nil {
		return err
	}
	defer r.stop()
	var first error
	for _, a := range list {
		if !hasContent(a) || !wanted(a.When, jobSucceeded) {
			continue
		}
		r.Notice("Uploading artifacts...")
		err := r.uploadOne(ctx, a)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if first == nil {
			first = err
		}
		if errors.Is(err, ErrPermission) || errors.Is(err, ErrUnavailable) {
			break
		}
	}
	return first
}

// upload is one artifact on its way.
type upload struct {
	*run
	format archive.Format
	level  archive.Level
	names  []string
	file   string // the name that GitLab sees
	label  string
	query  url.Values
	base   *url.URL
	ask    bool // whether the server wants the body, before it is sent
}

func (r *run) uploadOne(ctx context.Context, a runnerapi.Artifact) error {
	u := &upload{run: r, base: r.base, ask: true, query: url.Values{}, label: "Uploading artifacts to coordinator..."}
	switch u.format = archive.Format(a.Format); u.format {
	case "":
		u.format = archive.Zip
	case archive.Zip, archive.ZipZstd, archive.TarZstd, archive.Gzip, archive.Raw:
	default:
		return fmt.Errorf("%w: artifact_format %q is not supported: it can be zip, gzip, raw, zipzstd or tarzstd", ErrConfiguration, a.Format)
	}
	for key, value := range map[string]string{"expire_in": a.ExpireIn, "artifact_format": a.Format, "artifact_type": a.Type} {
		if value != "" {
			u.query.Set(key, value)
		}
	}
	if a.Type != "" {
		u.label = fmt.Sprintf("Uploading artifacts as %q to coordinator...", a.Type)
	}
	u.level = r.level()
	name, err := r.Expand(a.Name)
	if err != nil {
		return fmt.Errorf("%w: artifacts: name %q: %w", ErrConfiguration, a.Name, err)
	}
	if a.Name == "" {
		name = "artifacts"
	}
	u.file = fileName(name, u.format)
	w := archive.Wanted{Untracked: a.Untracked, Git: r.Git}
	if w.Paths, err = r.expandAll("paths", a.Paths); err != nil {
		return err
	}
	if w.Exclude, err = r.expandAll("exclude", a.Exclude); err != nil {
		return err
	}
	selected, err := archive.Select(ctx, r.ProjectDir, w)
	if err != nil {
		return fmt.Errorf("%w: find the artifacts: %w", ErrLocal, err)
	}
	r.say(selected.Messages)
	u.names = selected.Names
	if r.provenanceWanted(a) {
		if u.names, err = r.addProvenance(ctx, baseName(name), u.names, w.Exclude); err != nil {
			return fmt.Errorf("%w: artifacts metadata: %w", ErrLocal, err)
		}
	}
	if len(u.names) == 0 {
		r.Fail("No files to upload")
		return nil
	}
	return u.send(ctx)
}

// baseName is the artifacts' name without folders.
func baseName(name string) string {
	if name = path.Base(name); name == "." || name == "/" {
		return "default"
	}
	return name
}

// fileName is the name of the uploaded file.
func fileName(name string, f archive.Format) string {
	return baseName(name) + map[archive.Format]string{
		archive.Zip: ".zip", archive.ZipZstd: ".zip", archive.Gzip: ".gz", archive.TarZstd: ".tar.zst",
	}[f]
}

func (r *run) level() archive.Level {
	v := r.Value("ARTIFACT_COMPRESSION_LEVEL")
	switch l := archive.Level(strings.ToLower(v)); l {
	case "":
	case archive.Fastest, archive.Fast, archive.Default, archive.Slow, archive.Slowest:
		return l
	default:
		r.Warn(fmt.Sprintf("compression level %q is invalid, falling back to default", v))
	}
	return archive.Default
}

// send uploads, as often as it makes sense.
func (u *upload) send(ctx context.Context) error {
	p := transfer.Patience{Tries: tries, Least: leastPause, Most: mostPause, Wait: u.wait}
	err := p.Do(ctx, func(err error) {
		u.Warn("Retrying..." + fields("context", "artifacts-uploader", "error", strconv.QuoteToGraphic(err.Error())))
	}, func(int) error { return u.try(ctx) })
	if _, ok := errors.AsType[*transfer.Transient](err); ok {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}

// try uploads once; redirects are followed.
func (u *upload) try(ctx context.Context) error {
	const most = 3
	for moves := 0; ; moves++ {
		resp, err := u.post(ctx) //nolint:bodyclose // post has read the body and closed it
		if err != nil {
			u.Fail(u.label + " error" + fields("error", strconv.QuoteToGraphic(err.Error())))
			return err
		}
		moved := resp.StatusCode == http.StatusTemporaryRedirect || resp.StatusCode == http.StatusPermanentRedirect
		switch {
		case resp.StatusCode == http.StatusExpectationFailed && u.ask && moves < most:
			u.ask = false
		case moved && moves < most:
			if err := u.move(resp); err != nil {
				return err
			}
		default:
			return u.judge(resp)
		}
	}
}

// move makes the address that an answer names the one to upload to.
func (u *upload) move(resp *http.Response) error {
	to, err := resp.Location()
	if err != nil || to.Hostname() == "" || to.Scheme != "http" && to.Scheme != "https" {
		u.Fail(u.label + " " + resp.Status + " empty location")
		return &transfer.Transient{Err: errors.New("GitLab redirected the upload to nowhere")}
	}
	if u.base.Scheme == "https" && to.Scheme == "http" {
		return fmt.Errorf("%w: GitLab redirected the upload from https:// to %s, which would show the job's token to the network",
			ErrConfiguration, transfer.CleanURL(to.String()))
	}
	prefix, ok := strings.CutSuffix(to.Path, apiPath+"jobs/"+strconv.FormatInt(u.JobID, 10)+"/artifacts")
	if !ok {
		prefix = ""
	}
	u.base = &url.URL{Scheme: to.Scheme, Host: to.Host, Path: prefix + apiPath}
	u.Say("Upload request redirected" + fields("location", transfer.CleanURL(to.String()), "new-url", u.base.Scheme+"://"+u.base.Host+prefix))
	return nil
}

// judge says what an answer means.
func (u *upload) judge(resp *http.Response) error {
	line := func(text string) string {
		return u.label + " " + text + fields("correlation_id", transfer.RequestID(resp),
			"id", strconv.FormatInt(u.JobID, 10), "responseStatus", resp.Status)
	}
	if resp.StatusCode == http.StatusCreated {
		u.Say(line(resp.Status))
		return nil
	}
	e := transfer.NewStatusError(resp)
	text := e.Status()
	if e.Message != "" {
		text += ": " + e.Message
	}
	switch e.Code {
	case http.StatusForbidden, http.StatusUnauthorized:
		u.Fail(line(text))
		return fmt.Errorf("upload artifacts: %w: %w", ErrPermission, e)
	case http.StatusRequestEntityTooLarge:
		u.Fail(line(text))
		return fmt.Errorf("upload artifacts: %w: %w; GitLab's administrators set the maximum artifacts size", ErrTooLarge, e)
	case http.StatusServiceUnavailable, http.StatusTooManyRequests:
		u.Fail(line(text))
		return &transfer.Transient{Err: e, After: e.RetryAfter, Tries: triesUnavailable}
	}
	u.Warn(line(text))
	return &transfer.Transient{Err: e, After: e.RetryAfter}
}
