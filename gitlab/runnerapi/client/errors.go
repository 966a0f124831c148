package client

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"
)

// TransportError says that no usable answer came: GitLab was not reached, the connection broke, the answer was cut off,
// the time ran out or the context ended. The request may have been carried out nevertheless.
type TransportError struct {
	Method string
	URL    string // without a query; never with a token
	Err    error
	Hint   string // the way out; may be empty
}

func (e *TransportError) Error() string {
	s := e.Method + " " + e.URL + ": " + e.Err.Error()
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

func (e *TransportError) Unwrap() error { return e.Err }

// StatusError says that GitLab, or something before it, answered with a status that the call does not know.
type StatusError struct {
	Method string
	URL    string // without a query; never with a token
	Code   int    // HTTP status
	// Message is the answer's own text in one line of at most 500 bytes, or what the answer looks like; may be empty.
	Message string
	// HTML is true for a page made for people: the URL is not that of a GitLab, or a proxy answers in its place.
	HTML bool
	// RetryAfter is how long GitLab wants to be left alone, at most 5 minutes; 0 if it did not say.
	RetryAfter time.Duration
}

func (e *StatusError) Error() string {
	s := fmt.Sprintf("%s %s: %d", e.Method, e.URL, e.Code)
	if text := http.StatusText(e.Code); text != "" {
		s += " " + text
	}
	if e.Message != "" {
		s += ": " + e.Message
	}
	return s
}

const (
	maxMessage  = 500
	htmlMessage = "answered with an HTML page; is the URL of the GitLab right?"
)

// statusError reads what is left of an answer and closes nothing. It is no error yet if the caller knows the status.
func (r *response) statusError(now time.Time) *StatusError {
	e := &StatusError{Method: r.req.method, URL: r.url, Code: r.StatusCode, RetryAfter: retryAfter(r.Header, now)}
	if location := r.Header.Get("Location"); location != "" && e.Code >= 300 && e.Code < 400 {
		if u, err := r.Request.URL.Parse(location); err == nil {
			u.RawQuery, u.Fragment = "", ""
			u.Path = strings.TrimSuffix(u.Path, apiPath+r.req.path)
			e.Message = "the address of the GitLab seems to be " + limited(u.Redacted(), maxMessage/2) + "; redirects are not followed"
			return e
		}
	}
	e.Message, e.HTML = message(r.Response)
	if e.HTML && !meantByProxy(e.Code) {
		r.broken = e
	}
	return e
}

// message finds the sentence in an answer: {"message": "…"}, {"message": {"field": ["…"]}}, {"error": "…"} or a text.
func message(res *http.Response) (text string, html bool) {
	if res.ContentLength == 0 && !isHTML(res.Header) {
		return "", false
	}
	body, _ := io.ReadAll(io.LimitReader(res.Body, maxAnswer)) // what is there of it must do
	body = bytes.TrimSpace(body)
	if isHTML(res.Header) || looksLikeHTML(body) {
		return htmlMessage, true
	}
	if len(body) == 0 {
		return "", false
	}
	var answer struct {
		Message          json.RawMessage `json:"message"`
		Error            string          `json:"error"`
		ErrorDescription string          `json:"error_description"`
	}
	if json.Unmarshal(body, &answer) != nil {
		return limited(string(body), maxMessage), false
	}
	var sentence string
	var fields map[string][]string
	switch {
	case json.Unmarshal(answer.Message, &sentence) == nil:
	case json.Unmarshal(answer.Message, &fields) == nil:
		var parts []string
		for field, texts := range fields {
			parts = append(parts, field+": "+strings.Join(texts, ", "))
		}
		slices.Sort(parts)
		sentence = strings.Join(parts, "; ")
	case len(answer.Message) > 0:
		sentence = string(answer.Message)
	case answer.ErrorDescription != "":
		sentence = answer.ErrorDescription
	default:
		sentence = answer.Error
	}
	return limited(sentence, maxMessage), false
}

// meantByProxy says whether a status counts also if a proxy gives it with a page of its own: nginx answers so to a body that
// is too large.
func meantByProxy(code int) bool {
	return code == http.StatusRequestEntityTooLarge || code == http.StatusTooManyRequests
}

// isPage says whether an answer is a page made for people. What it reads of the body can be read again.
func (r *response) isPage() bool {
	if isHTML(r.Header) {
		return true
	}
	var head [64]byte
	n, _ := io.ReadFull(r.Body, head[:]) // shorter is well
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(head[:n]), r.Body), r.Body}
	return looksLikeHTML(bytes.TrimSpace(head[:n]))
}

func isHTML(h http.Header) bool {
	media, _, _ := mime.ParseMediaType(h.Get("Content-Type"))
	return media == "text/html"
}

func looksLikeHTML(body []byte) bool {
	start := bytes.ToLower(body[:min(len(body), 64)])
	return bytes.HasPrefix(start, []byte("<!doctype html")) || bytes.HasPrefix(start, []byte("<html"))
}

// hintFor knows the way out of the mistakes that people make with URLs and certificates.
func hintFor(err error, scheme string) string {
	var (
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
		invalid   x509.CertificateInvalidError
		record    tls.RecordHeaderError
	)
	switch {
	case errors.As(err, &authority):
		return "give the CA that signed GitLab's certificate as the runner's CA file"
	case errors.As(err, &hostname):
		return "use the host name that GitLab's certificate is made for"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "the certificate has expired or this machine's clock is wrong"
	case strings.Contains(err.Error(), "tls: certificate required"), strings.Contains(err.Error(), "tls: bad certificate"):
		return "the server asks for a client certificate that it trusts; give the runner's certificate and key files"
	case errors.As(err, &record), strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return "the server does not speak TLS at this address; is it http://?"
	case scheme == "http" && strings.Contains(err.Error(), "malformed HTTP response"):
		return "the server speaks another protocol at this address; is it https://?"
	}
	return ""
}
