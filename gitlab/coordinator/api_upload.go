package coordinator

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/ciconfig"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/artifacts"
	"github.com/switchyard-ci/switchyard/gitlab/coordinator/dotenv"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// The limits of what comes beside the file of an upload.
const (
	maxUploadFields = 32
	maxUploadField  = 16 << 10
	// uploadOverhead is what a form may have besides the bytes of its file.
	uploadOverhead = 1 << 20
)

// upload is a request to keep a file, as far as it has been read.
type upload struct {
	values url.Values // of the address, then of the form
	file   *artifacts.Upload
	name   string
}

// refusal is an answer that ends a request.
type refusal struct {
	status  int
	message string
	params  bool // the request does not fit the route: {"error": ...}
}

func (r *refusal) Error() string { return r.message }

// uploadArtifact answers POST /jobs/:id/artifacts, first as Workhorse, which asks whether the job may and receives the
// file, then as Rails (Ci::JobArtifacts::CreateService).
func (c *Coordinator) uploadArtifact(w http.ResponseWriter, r *http.Request) {
	u := &upload{values: r.URL.Query()}
	if err := u.check(); err != nil {
		c.refuseUpload(w, err)
		return
	}
	j := c.authenticateJob(w, r, cmp.Or(u.values.Get("token"), r.Header.Get(runnerapi.HeaderJobToken)), onRunner)
	if j == nil {
		return
	}
	limit := c.maxArtifact(j)
	c.mu.Unlock()
	err := c.receive(w, r, u, limit)
	if err == nil {
		err = c.keep(w, j, u)
	}
	if u.file != nil { // the job has not taken it
		if err := u.file.Discard(); err != nil {
			c.log.Warn("an upload stays", "job", j.id, "error", err)
		}
	}
	if err != nil {
		c.refuseUpload(w, err)
		drain(r)
	}
}

// drainLimit is how much of a refused upload is still read.
const drainLimit = 16 << 20

// drain reads the rest of a body, if it is not much: a client that still sends when the connection is closed may not see
// the answer. One that waits to be told to send (Expect: 100-continue) has seen it.
func drain(r *http.Request) {
	if r.Header.Get("Expect") == "" {
		_, _ = io.CopyN(io.Discard, r.Body, drainLimit) // whatever the client does now
	}
}

func (c *Coordinator) refuseUpload(w http.ResponseWriter, err error) {
	var r *refusal
	switch {
	case errors.Is(err, artifacts.ErrTooLarge), errors.As(err, new(*http.MaxBytesError)):
		tooLarge(w)
	case errors.As(err, &r) && r.params:
		replyError(w, r.status, r.message)
	case errors.As(err, &r):
		reply(w, r.status, r.message)
	default:
		c.log.Warn("an upload failed", "error", err)
		reply(w, http.StatusInternalServerError, "500 Internal Server Error")
	}
}

// check looks at the parameters that are known so far.
func (u *upload) check() error {
	if !artifacts.KnownType(u.kind()) {
		return &refusal{http.StatusBadRequest, "artifact_type does not have a valid value", true}
	}
	if !artifacts.KnownFormat(u.format()) {
		return &refusal{http.StatusBadRequest, "artifact_format does not have a valid value", true}
	}
	return nil
}

func (u *upload) kind() string   { return cmp.Or(u.values.Get("artifact_type"), artifacts.Archive) }
func (u *upload) format() string { return cmp.Or(u.values.Get("artifact_format"), artifacts.Zip) }

// receive reads the form: one file and some fields. What is in the address counts more than a field.
func (c *Coordinator) receive(w http.ResponseWriter, r *http.Request, u *upload, limit int64) error {
	if r.ContentLength > limit+uploadOverhead {
		return artifacts.ErrTooLarge
	}
	missing := &refusal{http.StatusBadRequest, "file is missing", true}
	if !isMultipart(r) {
		return missing
	}
	whole := r.Body
	r.Body = http.MaxBytesReader(w, whole, limit+uploadOverhead)
	defer func() { r.Body = whole }()
	form, err := r.MultipartReader()
	if err != nil {
		return &refusal{http.StatusBadRequest, err.Error(), true}
	}
	fields := url.Values{}
	for n := 0; ; n++ {
		part, err := form.NextPart()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return brokenForm(err)
		}
		switch {
		case n > maxUploadFields:
			return &refusal{http.StatusBadRequest, "the form has too many fields", true}
		case part.FileName() == "":
			err = readField(fields, part)
		case part.FormName() != "file" || u.file != nil:
			return &refusal{http.StatusBadRequest, fmt.Sprintf("invalid form field: %q", part.FormName()), true}
		default:
			u.name = artifacts.CleanName(part.FileName())
			u.file, err = c.store.Receive(part, limit)
		}
		if err != nil {
			return brokenForm(err)
		}
	}
	if u.file == nil {
		return missing
	}
	for key, values := range fields {
		if !u.values.Has(key) {
			u.values[key] = values
		}
	}
	return u.check()
}

// brokenForm is the error of a form that does not come to its end; one that is about the file itself stays as it is.
func brokenForm(err error) error {
	var path *os.PathError
	switch {
	case errors.Is(err, artifacts.ErrTooLarge), errors.As(err, new(*http.MaxBytesError)), errors.As(err, new(*refusal)), errors.As(err, &path):
		return err
	default:
		return &refusal{http.StatusBadRequest, "the form cannot be read: " + err.Error(), true}
	}
}

func readField(fields url.Values, part *multipart.Part) error {
	text, err := io.ReadAll(io.LimitReader(part, maxUploadField+1))
	if err != nil {
		return err
	}
	if len(text) > maxUploadField {
		return &refusal{http.StatusBadRequest, fmt.Sprintf("the field %q is too long", part.FormName()), true}
	}
	fields.Add(part.FormName(), string(text))
	return nil
}

// keep gives the file to the job and answers, or says why not.
func (c *Coordinator) keep(w http.ResponseWriter, j *job, u *upload) error {
	now := time.Now()
	a := artifacts.Artifact{
		Type: u.kind(), Format: u.format(), Name: u.name, Size: u.file.Size, SHA256: u.file.SHA256, Path: u.file.Path,
		Access: c.access(j, u), CreatedAt: now,
	}
	if j.def.Artifacts != nil && a.Type == artifacts.Archive {
		a.ExposedAs = j.def.Artifacts.ExposeAs
	}
	if text := u.values.Get("expire_in"); text != "" && !strings.EqualFold(text, "never") {
		d, err := ciconfig.ParseDuration(text)
		if err != nil {
			return &refusal{http.StatusBadRequest, "expire_in is invalid: " + err.Error(), true}
		}
		a.ExpiresAt = now.Add(d)
	}
	variables, err := c.readDotenv(&a)
	if err != nil {
		return err
	}
	c.mu.Lock()
	if j.erased || !j.processing() {
		c.refuseLate(w, j)
		return nil
	}
	old := j.uploads.find(a.Type)
	if old != nil && old.SHA256 != a.SHA256 {
		c.mu.Unlock()
		return &refusal{http.StatusBadRequest, "another artifact of the same type already exists", false}
	}
	if old == nil {
		if artifacts.FormatOf(a.Type) != a.Format {
			c.mu.Unlock()
			return &refusal{http.StatusBadRequest, "Validation failed: Invalid file format with specified file type", false}
		}
		c.addArtifact(j, a, variables)
		u.file = nil
	}
	c.mu.Unlock()
	c.stats.uploads.Add(1)
	c.stats.uploadBytes.Add(a.Size)
	replyStatus(w, http.StatusCreated)
	return nil
}

// access is who may download, as the request or the job says (Ci::Build#artifact_access_setting_in_config).
func (c *Coordinator) access(j *job, u *upload) string {
	switch u.values.Get("accessibility") {
	case "public":
		return "all"
	case "private":
		return "developer"
	}
	if j.def.Artifacts == nil {
		return "all"
	}
	return cmp.Or(j.def.Artifacts.Access, "all")
}

// readDotenv reads the variables of a dotenv report.
func (c *Coordinator) readDotenv(a *artifacts.Artifact) ([]ciconfig.Variable, error) {
	if a.Type != artifacts.Dotenv || a.Format != artifacts.Gzip {
		return nil, nil
	}
	f, err := c.store.Open(a)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	parsed, err := dotenv.Parse(f, a.Size)
	if err != nil {
		return nil, &refusal{http.StatusBadRequest, err.Error(), false}
	}
	variables := make([]ciconfig.Variable, len(parsed))
	for i, v := range parsed {
		variables[i] = ciconfig.Variable{Key: v.Key, Value: v.Value}
	}
	return variables, nil
}
