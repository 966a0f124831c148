// Package cachestore signs URLs by which jobs reach their caches in an object store. The store's keys stay here: what a
// job gets is good for one method, one object and a limited time.
package cachestore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"

	"github.com/switchyard-ci/switchyard/controlplane/registry"
)

// Limits of the signing.
const (
	// MaxKey is the greatest length in bytes of a key, and of an object's whole name (S3's limit).
	MaxKey = 1024
	// MaxAge is how long a URL is good at most: S3 takes no longer ones.
	MaxAge = 7 * 24 * time.Hour
	// DefaultAge is that of a URL for a job without a timeout: gitlab-runner's default timeout.
	DefaultAge = 2 * time.Hour
	// credentialsPatience is how long the surroundings may take to say what the credentials are.
	credentialsPatience = 10 * time.Second
)

// Operation is the HTTP method that a URL is for.
type Operation string

// The operations.
const (
	Head Operation = http.MethodHead
	Get  Operation = http.MethodGet
	Put  Operation = http.MethodPut
)

// Request says what is to be signed.
type Request struct {
	Operation Operation
	ProjectID int64
	// Key is the cache's, as the job made it.
	Key string
	// Age is how long the URL is to be good: the job's timeout, as with gitlab-runner. It is brought into the limits.
	Age time.Duration
}

// Signed is the answer.
type Signed struct {
	URL string // a secret while it is good
	// Headers must be sent with the request exactly like this.
	Headers map[string]string
}

// KeyError says what is wrong with a key, for people.
type KeyError struct{ Text string }

func (e *KeyError) Error() string { return e.Text }

// Store signs for one runner. Its methods may be called concurrently.
type Store struct {
	client  *minio.Client
	bucket  string
	prefix  string // of all projects' objects; no slash at the end
	encrypt http.Header
}

// New makes the store of a runner with that short token. Nothing is sent to the object store, now or later.
func New(c registry.Cache, shortToken string) (*Store, error) {
	options := minio.Options{
		Creds: credentials.NewStaticV4(c.S3.AccessKey, c.S3.SecretKey, c.S3.SessionToken), Secure: !c.S3.Insecure,
		Region:       c.S3.BucketLocation, // else the store would be asked for it
		BucketLookup: minio.BucketLookupAuto,
	}
	if c.S3.IAM {
		options.Creds = credentials.New(&credentials.IAM{
			Region: c.S3.BucketLocation, Client: &http.Client{Timeout: credentialsPatience},
		})
	}
	if c.S3.PathStyle != nil {
		options.BucketLookup = minio.BucketLookupDNS
		if *c.S3.PathStyle {
			options.BucketLookup = minio.BucketLookupPath
		}
	}
	client, err := minio.New(c.S3.ServerAddress, &options)
	if err != nil {
		return nil, fmt.Errorf("object store %s: %w", c.S3.ServerAddress, err)
	}
	client.SetS3EnableDualstack(c.S3.DualStack)
	if c.S3.Accelerate {
		client.SetS3TransferAccelerate(accelerated(c.S3.DualStack))
	}
	namespace := ""
	if !c.Shared {
		if shortToken == "" || strings.ContainsRune(shortToken, '/') || strings.Trim(shortToken, ".") == "" {
			return nil, fmt.Errorf("the runner's token gives no name to keep its caches apart (%q): set shared, or use a token as GitLab makes it", shortToken)
		}
		namespace = path.Join("runner", shortToken)
	}
	return &Store{
		client: client, bucket: c.S3.BucketName, prefix: path.Join(c.Path, namespace, "project"), encrypt: encryption(c.S3),
	}, nil
}

func accelerated(dualStack bool) string {
	if dualStack {
		return "s3-accelerate.dualstack.amazonaws.com"
	}
	return "s3-accelerate.amazonaws.com"
}

// encryption returns the headers with which an upload says how it is to be encrypted.
func encryption(s registry.S3) http.Header {
	if s.Encryption == "" {
		return nil
	}
	h := http.Header{}
	h.Set("X-Amz-Server-Side-Encryption", string(s.Encryption))
	if s.EncryptionKeyID != "" {
		h.Set("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id", s.EncryptionKeyID)
	}
	return h
}

// Sign makes the URL for a request. Its errors are a *KeyError, or what is wrong with the credentials.
func (s *Store) Sign(ctx context.Context, r Request) (Signed, error) {
	name, err := s.object(r.ProjectID, r.Key)
	if err != nil {
		return Signed{}, err
	}
	age := r.Age.Truncate(time.Second)
	if age <= 0 {
		age = DefaultAge
	}
	var headers http.Header
	if r.Operation == Put {
		headers = s.encrypt
	}
	u, err := s.client.PresignHeader(ctx, string(r.Operation), s.bucket, name, min(age, MaxAge), nil, headers)
	if err != nil {
		return Signed{}, fmt.Errorf("sign %s of a cache archive in bucket %s: %w", r.Operation, s.bucket, err)
	}
	signed := Signed{URL: u.String()}
	if len(headers) > 0 {
		signed.Headers = make(map[string]string, len(headers))
		for k := range headers {
			signed.Headers[k] = headers.Get(k)
		}
	}
	return signed, nil
}

// object is the name of a key's object. It lies below the project's folder whatever the key is.
func (s *Store) object(project int64, key string) (string, error) {
	wrong := func(format string, args ...any) (string, error) {
		return "", &KeyError{fmt.Sprintf("cache key %s: ", shown(key)) + fmt.Sprintf(format, args...)}
	}
	switch {
	case key == "":
		return "", &KeyError{"the cache key is empty"}
	case len(key) > MaxKey:
		return wrong("it has %d bytes, more than %d", len(key), MaxKey)
	case !utf8.ValidString(key), strings.ContainsFunc(key, unicode.IsControl):
		return wrong("it has control characters in it, or is not UTF-8")
	case slices.Contains(strings.Split(key, "/"), ".."):
		return wrong("it has a part .., which would lead out of the project's own folder")
	}
	clean := strings.Trim(path.Clean("/"+key), "/")
	if clean == "" {
		return wrong("nothing is left of it but slashes and dots")
	}
	name := path.Join(s.prefix, strconv.FormatInt(project, 10), clean)
	if len(name) > MaxKey {
		return wrong("with its prefix %d bytes long, more than %d", len(name), MaxKey)
	}
	return name, nil
}

// shown quotes the begin of a key.
func shown(key string) string {
	const most = 80
	if len(key) <= most {
		return strconv.Quote(key)
	}
	return strconv.Quote(strings.ToValidUTF8(key[:most], "")) + "…"
}

// IsKey says whether an error of Sign is about the key.
func IsKey(err error) bool {
	_, ok := errors.AsType[*KeyError](err)
	return ok
}
