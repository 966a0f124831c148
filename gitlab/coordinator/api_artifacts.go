package coordinator

import (
	"cmp"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/coordinator/artifacts"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// authorizeArtifact answers POST /jobs/:id/artifacts/authorize: may a file of this size and type be uploaded?
func (c *Coordinator) authorizeArtifact(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	if err := r.ParseForm(); err == nil { // bounded by net/http
		q = r.Form
	}
	kind := cmp.Or(q.Get("artifact_type"), artifacts.Archive)
	if !artifacts.KnownType(kind) {
		replyError(w, http.StatusBadRequest, "artifact_type does not have a valid value")
		return
	}
	size := int64(0)
	if text := q.Get("filesize"); text != "" {
		var err error
		if size, err = strconv.ParseInt(text, 10, 64); err != nil {
			replyError(w, http.StatusBadRequest, "filesize is invalid")
			return
		}
	}
	j := c.authenticateJob(w, r, cmp.Or(q.Get("token"), r.Header.Get(runnerapi.HeaderJobToken)), onRunner)
	if j == nil {
		return
	}
	limit := c.maxArtifact(j)
	c.mu.Unlock()
	if size > limit {
		tooLarge(w)
		return
	}
	body := map[string]any{"TempPath": c.store.Dir(), "MaximumSize": limit}
	if kind == "lsif" {
		body["ProcessLsif"] = true
	}
	w.Header().Set("Content-Type", "application/vnd.gitlab-workhorse+json")
	writeJSON(w, http.StatusOK, body)
}

func tooLarge(w http.ResponseWriter) {
	reply(w, http.StatusRequestEntityTooLarge, "file size has reached maximum size limit")
}

// maxArtifact is the greatest size of a file that a job may upload. mu is held.
func (c *Coordinator) maxArtifact(j *job) int64 {
	return cmp.Or(j.pipe.project.MaxArtifact, c.opts.MaxArtifact)
}

// downloadArtifact answers GET /jobs/:id/artifacts for jobs that run: of the archives of their own project.
func (c *Coordinator) downloadArtifact(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	token := cmp.Or(q.Get("token"), r.Header.Get(runnerapi.HeaderJobToken))
	id, err := strconv.ParseInt(r.PathValue("id"), 10, 64)
	if err != nil {
		replyError(w, http.StatusBadRequest, "id is invalid")
		return
	}
	c.mu.Lock()
	asking, j := c.jobTokens[token], c.jobs[id]
	switch {
	case token == "" || asking == nil || !asking.processing():
		c.mu.Unlock()
		reply(w, http.StatusUnauthorized, "401 Unauthorized")
		return
	case j == nil || j.pipe.project != asking.pipe.project:
		c.mu.Unlock()
		c.forbidden(w, "")
		return
	}
	var found artifacts.Artifact
	a := j.uploads.find(artifacts.Archive)
	if a != nil {
		found = *a
	}
	base := cmp.Or(c.url, requestBase(r.Host, r.TLS != nil))
	c.mu.Unlock()
	if a == nil {
		reply(w, http.StatusNotFound, "404 Not Found")
		return
	}
	if direct, err := strconv.ParseBool(q.Get("direct_download")); err == nil && direct && c.opts.DirectDownload {
		c.stats.redirects.Add(1)
		http.Redirect(w, r, base+c.storagePath(id, found.Name, time.Now().Add(storageLinkLife)), http.StatusFound)
		return
	}
	c.serveArtifact(w, r, &found)
}

// serveArtifact answers with a file or the part of it that was asked for.
func (c *Coordinator) serveArtifact(w http.ResponseWriter, r *http.Request, a *artifacts.Artifact) {
	f, err := c.store.Open(a)
	switch {
	case errors.Is(err, artifacts.ErrGone):
		reply(w, http.StatusNotFound, "404 Not Found")
		return
	case err != nil:
		c.log.Warn("an artifact cannot be served", "error", err)
		reply(w, http.StatusInternalServerError, "500 Internal Server Error")
		return
	}
	defer func() { _ = f.Close() }() // it was only read
	c.stats.downloads.Add(1)
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Transfer-Encoding", "binary")
	h.Set("Content-Disposition", disposition(a.Name))
	http.ServeContent(w, r, "", a.CreatedAt, f)
}

// disposition is Content-Disposition as Rails writes it.
func disposition(name string) string {
	ascii := make([]byte, 0, len(name))
	for _, c := range name {
		if c > '~' {
			c = '?'
		}
		ascii = append(ascii, byte(c))
	}
	return fmt.Sprintf(`attachment; filename="%s"; filename*=UTF-8''%s`, ascii, url.PathEscape(name))
}

// storageLinkLife is how long the address of a direct download can be used.
const storageLinkLife = 10 * time.Minute

// storagePath is the path under which the object store has an archive: whoever knows it may read it for a while, with no
// token. The store is this coordinator too, but runners cannot tell.
func (c *Coordinator) storagePath(job int64, name string, until time.Time) string {
	id, end := strconv.FormatInt(job, 10), strconv.FormatInt(until.Unix(), 10)
	return "/-/storage/artifacts/" + id + "/" + url.PathEscape(name) + "?expires=" + end + "&signature=" + c.sign(id, end)
}

func (c *Coordinator) sign(job, until string) string {
	mac := hmac.New(sha256.New, c.storageKey[:])
	mac.Write([]byte(job + " " + until))
	return hex.EncodeToString(mac.Sum(nil))
}

// serveStorage answers for the object store.
func (c *Coordinator) serveStorage(w http.ResponseWriter, r *http.Request) {
	q, id := r.URL.Query(), r.PathValue("id")
	end, err := strconv.ParseInt(q.Get("expires"), 10, 64)
	if err != nil || !hmac.Equal([]byte(c.sign(id, q.Get("expires"))), []byte(q.Get("signature"))) || time.Now().Unix() >= end {
		reply(w, http.StatusForbidden, "403 Forbidden")
		return
	}
	job, err := strconv.ParseInt(id, 10, 64)
	if err != nil {
		reply(w, http.StatusForbidden, "403 Forbidden")
		return
	}
	c.mu.Lock()
	var found artifacts.Artifact
	j := c.jobs[job]
	if j != nil {
		if a := j.uploads.find(artifacts.Archive); a != nil {
			found = *a
		}
	}
	c.mu.Unlock()
	if found.Path == "" {
		reply(w, http.StatusNotFound, "404 Not Found")
		return
	}
	c.serveArtifact(w, r, &found)
}

// isMultipart says whether a request has a form with files.
func isMultipart(r *http.Request) bool {
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	return err == nil && mediaType == "multipart/form-data"
}
