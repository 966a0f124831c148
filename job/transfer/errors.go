package transfer

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

const (
	maxAnswer     = 64 << 10 // of a body that is read for its message
	maxMessage    = 500
	maxRetryAfter = time.Minute
)

// Transient marks an error after which another try makes sense.
type Transient struct {
	Err error
	// After is how long the server wants to be left alone, at most a minute; 0 if it did not say.
	After time.Duration
	// Tries is how many tries this error is worth altogether; 0 leaves it to who retries.
	Tries int
}

func (e *Transient) Error() string { return e.Err.Error() }

// Unwrap returns the error itself.
func (e *Transient) Unwrap() error { return e.Err }

// StatusError says that a server answered with another status than was hoped for.
type StatusError struct {
	Method string
	URL    string // without user, query and fragment
	Code   int
	// Message is what the answer says about it: GitLab's JSON or an object store's XML, in one printable line; may be empty.
	Message string
	// RetryAfter is how long the server wants to be left alone, at most a minute; 0 if it did not say.
	RetryAfter time.Duration
}

// Status is code and text, as in "403 Forbidden".
func (e *StatusError) Status() string { return status(e.Code) }

func (e *StatusError) Error() string {
	s := fmt.Sprintf("%s %s: %s", e.Method, e.URL, e.Status())
	if e.Message != "" {
		s += ": " + e.Message
	}
	return s
}

func status(code int) string {
	return strings.TrimSpace(strconv.Itoa(code) + " " + http.StatusText(code))
}

// NewStatusError reads an answer's message, of at most 64 KiB; the body is left to be closed.
func NewStatusError(resp *http.Response) *StatusError {
	e := &StatusError{Code: resp.StatusCode, RetryAfter: retryAfter(resp.Header)}
	if resp.Request != nil {
		e.Method, e.URL = resp.Request.Method, CleanURL(resp.Request.URL.String())
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, maxAnswer)) // a message cut short is better than none
	e.Message = printable(message(resp.Header.Get("Content-Type"), bytes.TrimSpace(body)), maxMessage)
	return e
}

// Temporary says whether the same request may have more luck later.
func (e *StatusError) Temporary() bool {
	return e.Code == http.StatusRequestTimeout || e.Code == http.StatusTooManyRequests || e.Code/100 == 5
}

// message finds the sentence: {"message": …}, {"error": …} or <Error><Code/><Message/></Error>.
func message(contentType string, body []byte) string {
	media, _, _ := mime.ParseMediaType(contentType)
	switch {
	case media == "application/xml" || media == "text/xml" || bytes.HasPrefix(body, []byte("<?xml")):
		var answer struct {
			XMLName xml.Name `xml:"Error"`
			Code    string
			Message string
		}
		if xml.Unmarshal(body, &answer) != nil {
			return ""
		}
		return strings.Trim(answer.Code+": "+answer.Message, ": ")
	case media == "application/json" || bytes.HasPrefix(body, []byte("{")):
		var answer struct {
			Message json.RawMessage `json:"message"`
			Error   string          `json:"error"`
		}
		if json.Unmarshal(body, &answer) != nil {
			return ""
		}
		var sentence string
		var fields map[string][]string
		switch {
		case json.Unmarshal(answer.Message, &sentence) == nil:
			return sentence
		case json.Unmarshal(answer.Message, &fields) == nil:
			var parts []string
			for field, texts := range fields {
				parts = append(parts, field+": "+strings.Join(texts, ", "))
			}
			slices.Sort(parts)
			return strings.Join(parts, "; ")
		}
		return answer.Error
	case media == "text/plain":
		return string(body)
	case media == "text/html":
		return "answered with an HTML page; a proxy or another server answers at this address"
	}
	return ""
}

// printable makes one line of at most most bytes of text that came from elsewhere.
func printable(text string, most int) string {
	text = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(text, " "))
	text = strings.Join(strings.Fields(text), " ")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "…"
	}
	return text
}

// CleanURL is a URL that may be shown: without user, query and fragment, where secrets are.
func CleanURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return "an address that is no URL"
	}
	return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
}

func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if seconds, err := strconv.ParseInt(v, 10, 64); err == nil {
		return time.Duration(min(max(seconds, 0), int64(maxRetryAfter/time.Second))) * time.Second
	}
	if t, err := http.ParseTime(v); err == nil {
		now, err := http.ParseTime(h.Get("Date")) // the server's own clock
		if err != nil {
			now = time.Now()
		}
		return min(max(t.Sub(now), 0), maxRetryAfter)
	}
	return 0
}

// hintFor knows the way out of the mistakes that people make with URLs and certificates.
func hintFor(err error, scheme string) string {
	_, isAuthority := errors.AsType[x509.UnknownAuthorityError](err)
	_, isHostname := errors.AsType[x509.HostnameError](err)
	invalid, isInvalid := errors.AsType[x509.CertificateInvalidError](err)
	_, isRecord := errors.AsType[tls.RecordHeaderError](err)
	switch {
	case isAuthority:
		return "give the CA that signed the server's certificate as the runner's CA file"
	case isHostname:
		return "use the host name that the server's certificate is made for"
	case isInvalid && invalid.Reason == x509.Expired:
		return "the certificate has expired or this machine's clock is wrong"
	case isRecord, strings.Contains(err.Error(), "server gave HTTP response to HTTPS client"):
		return "the server does not speak TLS at this address; is it http://?"
	case scheme == "http" && strings.Contains(err.Error(), "malformed HTTP response"):
		return "the server speaks another protocol at this address; is it https://?"
	}
	return ""
}
