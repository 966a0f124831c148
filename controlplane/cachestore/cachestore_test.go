package cachestore_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/cachestore"
	"github.com/switchyard-ci/switchyard/controlplane/registry"
)

// bucket is an S3-compatible store with one bucket, "caches". It checks signatures and keeps the headers of uploads.
type bucket struct {
	registry.S3
	mu      sync.Mutex
	uploads []http.Header
	memory  *s3mem.Backend
}

func newBucket(t *testing.T) *bucket {
	t.Helper()
	b := &bucket{memory: s3mem.New()}
	require.NoError(t, b.memory.CreateBucket("caches"))
	fake := gofakes3.New(b.memory, gofakes3.WithTimeSkewLimit(0)).Server()
	server := httptest.NewServer(&signatures{"access", "secret", "session", "eu-central-1", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut {
			b.mu.Lock()
			b.uploads = append(b.uploads, r.Header.Clone())
			b.mu.Unlock()
		}
		fake.ServeHTTP(w, r)
	})})
	t.Cleanup(server.Close)
	b.S3 = registry.S3{
		ServerAddress: strings.TrimPrefix(server.URL, "http://"), Insecure: true, BucketName: "caches", BucketLocation: "eu-central-1",
		AccessKey: "access", SecretKey: "secret", SessionToken: "session",
	}
	return b
}

func (b *bucket) names(t *testing.T) []string {
	t.Helper()
	list, err := b.memory.ListBucket("caches", nil, gofakes3.ListBucketPage{})
	require.NoError(t, err)
	var names []string
	for _, o := range list.Contents {
		names = append(names, o.Key)
	}
	return names
}

func request(t *testing.T, method string, signed cachestore.Signed, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, signed.URL, strings.NewReader(body))
	require.NoError(t, err)
	for k, v := range signed.Headers {
		r.Header.Set(k, v)
	}
	r.Header.Set("Content-Type", "application/octet-stream") // as uploads have it, not signed
	res, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	require.NoError(t, err)
	return res.StatusCode, string(text)
}

func sign(t *testing.T, s *cachestore.Store, op cachestore.Operation, key string) cachestore.Signed {
	t.Helper()
	signed, err := s.Sign(t.Context(), cachestore.Request{Operation: op, ProjectID: 42, Key: key, Age: time.Hour})
	require.NoError(t, err)
	return signed
}

func TestAnArchiveGoesThereAndBack(t *testing.T) {
	b := newBucket(t)
	s, err := cachestore.New(registry.Cache{Path: "ci", S3: b.S3}, "AbCdEfGhI")
	require.NoError(t, err)
	const key = "test: ü/main + 100%?&#-protected"

	code, _ := request(t, http.MethodHead, sign(t, s, cachestore.Head, key), "")
	require.Equal(t, http.StatusNotFound, code)
	code, text := request(t, http.MethodPut, sign(t, s, cachestore.Put, key), "archive")
	require.Equal(t, http.StatusOK, code, text)
	require.Equal(t, []string{"ci/runner/AbCdEfGhI/project/42/" + key}, b.names(t))
	code, _ = request(t, http.MethodHead, sign(t, s, cachestore.Head, key), "")
	require.Equal(t, http.StatusOK, code)
	code, text = request(t, http.MethodGet, sign(t, s, cachestore.Get, key), "")
	require.Equal(t, http.StatusOK, code, text)
	require.Equal(t, "archive", text)
}

// TestAURLIsGoodForOneThingOnly checks that nothing else can be done with a URL.
func TestAURLIsGoodForOneThingOnly(t *testing.T) {
	b := newBucket(t)
	s, err := cachestore.New(registry.Cache{S3: b.S3}, "AbCdEfGhI")
	require.NoError(t, err)
	get := sign(t, s, cachestore.Get, "key")
	for _, method := range []string{http.MethodPut, http.MethodHead, http.MethodDelete} {
		code, _ := request(t, method, get, "archive")
		require.Equal(t, http.StatusForbidden, code, method)
	}
	for what, with := range map[string]func(u *url.URL){
		"another project": func(u *url.URL) { u.Path = strings.Replace(u.Path, "/42/", "/43/", 1) },
		"a longer time":   func(u *url.URL) { u.RawQuery = strings.Replace(u.RawQuery, "Expires=3600", "Expires=7200", 1) },
		"a listing":       func(u *url.URL) { u.Path = "/caches/" },
	} {
		code, _ := request(t, http.MethodGet, cachestore.Signed{URL: change(get.URL, with)}, "")
		require.Equal(t, http.StatusForbidden, code, what)
	}
	require.NotContains(t, get.URL, "secret")
	require.Empty(t, b.names(t))
}

func TestUploadsAreEncrypted(t *testing.T) {
	for encryption, keyID := range map[registry.Encryption]string{
		registry.EncryptionS3: "", registry.EncryptionKMS: "alias/caches", registry.EncryptionDSSEKMS: "",
	} {
		b := newBucket(t)
		b.Encryption, b.EncryptionKeyID = encryption, keyID
		s, err := cachestore.New(registry.Cache{Shared: true, S3: b.S3}, "")
		require.NoError(t, err)
		require.Empty(t, sign(t, s, cachestore.Get, "key").Headers)
		put := sign(t, s, cachestore.Put, "key")
		code, text := request(t, http.MethodPut, put, "archive")
		require.Equal(t, http.StatusOK, code, text)
		b.mu.Lock()
		uploads := b.uploads
		b.mu.Unlock()
		require.Len(t, uploads, 1)
		require.Equal(t, string(encryption), uploads[0].Get("X-Amz-Server-Side-Encryption"))
		require.Equal(t, keyID, uploads[0].Get("X-Amz-Server-Side-Encryption-Aws-Kms-Key-Id"))
		require.Equal(t, []string{"project/42/key"}, b.names(t))

		delete(put.Headers, "X-Amz-Server-Side-Encryption")
		code, _ = request(t, http.MethodPut, put, "archive")
		require.Equal(t, http.StatusForbidden, code, "the headers are part of the signature")
	}
}

// TestAddresses checks how stores are addressed, without asking any.
func TestAddresses(t *testing.T) {
	yes, no := true, false
	for _, c := range []struct {
		s3   registry.S3
		want string
	}{
		{registry.S3{ServerAddress: "s3.amazonaws.com", BucketLocation: "eu-central-1", DualStack: true}, "https://caches.s3.dualstack.eu-central-1.amazonaws.com/"},
		{registry.S3{ServerAddress: "s3.amazonaws.com", BucketLocation: "eu-central-1"}, "https://caches.s3.eu-central-1.amazonaws.com/"},
		{registry.S3{ServerAddress: "s3.amazonaws.com", BucketLocation: "eu-central-1", PathStyle: &yes}, "https://s3.eu-central-1.amazonaws.com/caches/"},
		{registry.S3{ServerAddress: "s3.amazonaws.com", BucketLocation: "eu-central-1", Accelerate: true}, "https://caches.s3-accelerate.amazonaws.com/"},
		{registry.S3{ServerAddress: "storage.googleapis.com", BucketLocation: "us-east-1"}, "https://caches.storage.googleapis.com/"},
		{registry.S3{ServerAddress: "minio.example.com:9000", BucketLocation: "us-east-1"}, "https://minio.example.com:9000/caches/"},
		{registry.S3{ServerAddress: "minio.example.com:9000", BucketLocation: "us-east-1", PathStyle: &no}, "https://caches.minio.example.com:9000/"},
		{registry.S3{ServerAddress: "10.0.0.1", BucketLocation: "us-east-1", Insecure: true}, "http://10.0.0.1/caches/"},
	} {
		c.s3.BucketName, c.s3.AccessKey, c.s3.SecretKey = "caches", "access", "secret"
		s, err := cachestore.New(registry.Cache{S3: c.s3}, "AbCdEfGhI")
		require.NoError(t, err)
		require.Equal(t, c.want+"runner/AbCdEfGhI/project/42/key", strings.Split(sign(t, s, cachestore.Get, "key").URL, "?")[0])
	}
}

func TestKeys(t *testing.T) {
	s, err := cachestore.New(registry.Cache{Path: "a/b", S3: registry.S3{
		ServerAddress: "minio.example.com", BucketName: "caches", BucketLocation: "us-east-1", AccessKey: "access", SecretKey: "secret",
	}}, "AbCdEfGhI")
	require.NoError(t, err)
	const base = "/caches/a/b/runner/AbCdEfGhI/project/42/"
	for key, want := range map[string]string{
		"key":                      "key",
		"/a//./b/":                 "a/b",
		"..a/b..":                  "..a/b..",
		"%2e%2e/x":                 "%2e%2e/x",
		strings.Repeat("k", 900):   strings.Repeat("k", 900),
		"":                         "",
		"..":                       "",
		"../43/key":                "",
		"a/../../43/key":           "",
		"a/..":                     "",
		"/":                        "",
		"./.":                      "",
		"a\x00b":                   "",
		"a\nb":                     "",
		"a\x7fb":                   "",
		"a\u0085b":                 "",
		"\xff":                     "",
		strings.Repeat("k", 1024):  "", // with the prefix it is too long
		strings.Repeat("ü", 10000): "",
	} {
		signed, err := s.Sign(t.Context(), cachestore.Request{Operation: cachestore.Get, ProjectID: 42, Key: key})
		if want == "" {
			require.True(t, cachestore.IsKey(err), "%q: %v", key, err)
			require.Contains(t, err.Error(), "cache key")
			require.Less(t, len(err.Error()), 300)
			continue
		}
		require.NoError(t, err, "%q", key)
		u, err := url.Parse(signed.URL)
		require.NoError(t, err)
		require.Equal(t, base+want, u.Path)
	}
}

func FuzzKeys(f *testing.F) {
	for _, seed := range []string{"key", "../x", "a/../../b", "/./", "\\..\\x", "%2e%2e%2f", "a\x00", "ü/é"} {
		f.Add(seed)
	}
	s, err := cachestore.New(registry.Cache{S3: registry.S3{
		ServerAddress: "minio.example.com", BucketName: "caches", BucketLocation: "us-east-1", AccessKey: "access", SecretKey: "secret",
	}}, "AbCdEfGhI")
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, key string) {
		signed, err := s.Sign(t.Context(), cachestore.Request{Operation: cachestore.Get, ProjectID: 42, Key: key})
		if err != nil {
			require.True(t, cachestore.IsKey(err), "%v", err)
			return
		}
		u, err := url.Parse(signed.URL)
		require.NoError(t, err)
		const base = "/caches/runner/AbCdEfGhI/project/42/"
		name, ok := strings.CutPrefix(u.Path, base)
		require.True(t, ok, u.Path)
		require.NotEmpty(t, name)
		require.NotContains(t, strings.Split(name, "/"), "..")
		require.LessOrEqual(t, len(u.Path), len("/caches/")+cachestore.MaxKey)
	})
}

func TestAges(t *testing.T) {
	b := newBucket(t)
	s, err := cachestore.New(registry.Cache{S3: b.S3}, "AbCdEfGhI")
	require.NoError(t, err)
	for age, want := range map[time.Duration]string{
		0: "7200", time.Hour: "3600", 500 * time.Millisecond: "7200", 30 * 24 * time.Hour: "604800",
	} {
		signed, err := s.Sign(t.Context(), cachestore.Request{Operation: cachestore.Get, ProjectID: 42, Key: "key", Age: age})
		require.NoError(t, err)
		require.Contains(t, signed.URL, "X-Amz-Expires="+want+"&")
	}
}

func TestCredentialsOfTheSurroundings(t *testing.T) {
	var answer atomic.Int64
	answer.Store(http.StatusInternalServerError)
	metadata := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(int(answer.Load()))
		_, _ = io.WriteString(w, `{"AccessKeyId":"access","SecretAccessKey":"secret","Token":"session","Expiration":"`+
			time.Now().Add(time.Hour).UTC().Format(time.RFC3339)+`"}`)
	}))
	defer metadata.Close()
	for _, name := range []string{"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", metadata.URL)
	b := newBucket(t)
	b.IAM, b.AccessKey, b.SecretKey, b.SessionToken = true, "", "", ""
	s, err := cachestore.New(registry.Cache{S3: b.S3}, "AbCdEfGhI")
	require.NoError(t, err)

	_, err = s.Sign(t.Context(), cachestore.Request{Operation: cachestore.Put, ProjectID: 42, Key: "key"})
	require.ErrorContains(t, err, "sign PUT of a cache archive in bucket caches")
	require.False(t, cachestore.IsKey(err))

	answer.Store(http.StatusOK)
	code, text := request(t, http.MethodPut, sign(t, s, cachestore.Put, "key"), "archive")
	require.Equal(t, http.StatusOK, code, text)
}

func TestRunnersWithoutANameForTheirCaches(t *testing.T) {
	for _, token := range []string{"", "..", "a/b"} {
		_, err := cachestore.New(registry.Cache{S3: registry.S3{ServerAddress: "minio.example.com", BucketName: "caches"}}, token)
		require.ErrorContains(t, err, "set shared")
	}
	_, err := cachestore.New(registry.Cache{S3: registry.S3{ServerAddress: "http://minio.example.com"}}, "AbCdEfGhI")
	require.ErrorContains(t, err, "object store http://minio.example.com: ")
}
