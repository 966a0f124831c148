package folder

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
)

// MaxCacheKey is the greatest length of a cache's key in bytes: that of an object's name in S3.
const MaxCacheKey = 1024

// CacheRequest is a job's question for a URL by which one cache archive can be reached in the runner's object store. The
// control plane has the store's keys; it signs for objects below the job's own project only.
type CacheRequest struct {
	ID uint64 `json:"id"` // of the question, unique within the job
	// Op is "head", "get" or "put".
	Op string `json:"op"`
	// Key is the cache's key as gitlab-runner makes it (suffix for protected refs included), without any prefix.
	Key string `json:"key"`
}

// CacheAnswer is the answer.
type CacheAnswer struct {
	ID  uint64 `json:"id"`
	URL string `json:"url,omitempty"`
	// Headers must be sent with the request; they are part of the signature.
	Headers map[string]string `json:"headers,omitempty"`
	// Error says why there is no URL, for the job's trace.
	Error string `json:"error,omitempty"`
}

// Check says what is wrong with a question.
func (r CacheRequest) Check() error {
	switch {
	case r.ID == 0:
		return errors.New("a question about a cache has no id")
	case r.Op != "head" && r.Op != "get" && r.Op != "put":
		return fmt.Errorf("a question about a cache asks for %.20q, not head, get or put", r.Op)
	case r.Key == "" || len(r.Key) > MaxCacheKey:
		return fmt.Errorf("the key of a cache has %d bytes: it must have 1 to %d", len(r.Key), MaxCacheKey)
	}
	return nil
}

// ParseCacheRequest reads the JSON of a question and checks it.
func ParseCacheRequest(b []byte) (CacheRequest, error) {
	var r CacheRequest
	if err := json.Unmarshal(b, &r); err != nil {
		return CacheRequest{}, fmt.Errorf("read a question about a cache: %w", err)
	}
	if err := r.Check(); err != nil {
		return CacheRequest{}, err
	}
	return r, nil
}

// Fits reports whether the answer can be sent: its line has at most MaxLine bytes.
func (a CacheAnswer) Fits() bool {
	return len(AppendOrder(nil, Order{Kind: OrderAnswer, Answer: a})) <= MaxLine+1
}

func parseAnswer(b []byte) (CacheAnswer, error) {
	var a CacheAnswer
	if err := json.Unmarshal(b, &a); err != nil {
		return CacheAnswer{}, fmt.Errorf("read an answer about a cache: %w", err)
	}
	if a.ID == 0 {
		return CacheAnswer{}, errors.New("an answer about a cache names no question")
	}
	return a, nil
}

// appendJSON appends v's JSON, which has no line breaks. URLs stay as they are: escaping their & would triple their length.
func appendJSON(b []byte, v any) []byte {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false)
	// It is made of strings and numbers only, so it has a JSON form.
	_ = encoder.Encode(v)
	return append(b, bytes.TrimSuffix(text.Bytes(), []byte{'\n'})...)
}
