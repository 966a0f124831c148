package cachestore_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// signatures stands before an object store and lets through what is signed with the keys that it knows: Signature
// Version 4 in the query, written down from Amazon's documentation and not from what makes the signatures.
type signatures struct {
	access, secret, token, region string
	store                         http.Handler
}

func (s *signatures) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := s.check(r); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	s.store.ServeHTTP(w, r)
}

func (s *signatures) check(r *http.Request) error {
	q := r.URL.Query()
	at, err := time.Parse("20060102T150405Z", q.Get("X-Amz-Date"))
	if err != nil {
		return fmt.Errorf("X-Amz-Date: %w", err)
	}
	age, err := time.ParseDuration(q.Get("X-Amz-Expires") + "s")
	if err != nil || time.Since(at) > age {
		return fmt.Errorf("the URL is no longer good: it was signed at %s for %s", at, age)
	}
	scope := at.Format("20060102") + "/" + s.region + "/s3/aws4_request"
	if q.Get("X-Amz-Algorithm") != "AWS4-HMAC-SHA256" || q.Get("X-Amz-Credential") != s.access+"/"+scope || q.Get("X-Amz-Security-Token") != s.token {
		return fmt.Errorf("unknown credential %q", q.Get("X-Amz-Credential"))
	}
	signature := q.Get("X-Amz-Signature")
	q.Del("X-Amz-Signature")

	signed := strings.Split(q.Get("X-Amz-SignedHeaders"), ";")
	headers := ""
	for _, name := range signed {
		value := r.Header.Get(name)
		if name == "host" {
			value = r.Host
		}
		headers += name + ":" + strings.TrimSpace(value) + "\n"
	}
	for name := range r.Header {
		if name = strings.ToLower(name); strings.HasPrefix(name, "x-amz-") && !slices.Contains(signed, name) {
			return fmt.Errorf("the header %s is not signed", name)
		}
	}
	canonical := strings.Join([]string{
		r.Method, r.URL.EscapedPath(), strings.ReplaceAll(q.Encode(), "+", "%20"), headers, strings.Join(signed, ";"), "UNSIGNED-PAYLOAD",
	}, "\n")
	digest := sha256.Sum256([]byte(canonical))
	text := strings.Join([]string{"AWS4-HMAC-SHA256", q.Get("X-Amz-Date"), scope, hex.EncodeToString(digest[:])}, "\n")
	key := []byte("AWS4" + s.secret)
	for part := range strings.SplitSeq(scope, "/") {
		key = sum(key, part)
	}
	if want := hex.EncodeToString(sum(key, text)); want != signature {
		return fmt.Errorf("the signature is not that of %q", canonical)
	}
	return nil
}

func sum(key []byte, text string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(text))
	return h.Sum(nil)
}

// change returns the URL with its path or query changed.
func change(raw string, with func(u *url.URL)) string {
	u, err := url.Parse(raw)
	if err != nil {
		panic(err)
	}
	with(u)
	return u.String()
}
