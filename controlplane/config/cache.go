package config

import (
	"fmt"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/minio/minio-go/v7/pkg/s3utils"
	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/controlplane/registry"
	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

// Defaults and limits of an object store for caches.
const (
	DefaultS3Address  = "s3.amazonaws.com"
	DefaultS3Location = "us-east-1"
	maxCachePath      = 512     // bytes
	maxArchive        = 5 << 40 // bytes: S3's greatest object
)

const s3Hint = "an object store needs type: s3 and a section s3 with bucket_name, access_key_file and secret_key_file"

// otherStores are the types that gitlab-runner has besides, and what to use instead.
var otherStores = map[string]string{
	"gcs":   "use type: s3 with server_address: storage.googleapis.com and an HMAC key of a service account (Google Cloud Storage speaks S3's protocol)",
	"azure": "use type: s3 with a store that speaks S3's protocol, or with an S3 gateway before the container; without a cache section caches stay on the agents",
}

// cache reads [runners.cache]; nil if it cannot be used.
func (r *reader) cache(n *yaml.Node, at string) *registry.Cache {
	n = yamlform.Resolve(n)
	c := &registry.Cache{}
	known := yamlform.Fields{
		"type":   r.cacheType,
		"path":   func(n *yaml.Node, p string) { c.Path = r.cachePath(n, p) },
		"shared": func(n *yaml.Node, p string) { c.Shared = r.Boolean(n, p) },
		"max_uploaded_archive_size": func(n *yaml.Node, p string) {
			c.MaxUploadedArchiveSize, _ = r.Number(n, p, 0, maxArchive, "bytes, 0 for no limit")
		},
		"s3": func(n *yaml.Node, p string) { r.s3(n, p, &c.S3) },
	}
	for name, hint := range otherStores {
		known[name] = func(n *yaml.Node, p string) {
			r.Problem(n, p, "is not available: caches are kept in S3-compatible stores only", hint)
		}
	}
	if !r.Mapping(n, at, known) {
		return nil
	}
	for _, required := range []string{"type", "s3"} {
		if yamlform.Value(n, required) == nil && yamlform.Value(n, "gcs") == nil && yamlform.Value(n, "azure") == nil {
			r.Problem(n, at+"."+required, "is missing", s3Hint)
		}
	}
	return c
}

func (r *reader) cacheType(n *yaml.Node, at string) {
	text, ok := r.Text(n, at)
	kind := strings.TrimSuffix(text, "v2") // gitlab-runner's adapters have two versions
	switch other, known := otherStores[kind]; {
	case !ok || kind == "s3":
	case known:
		r.Problem(yamlform.Resolve(n), at, text+" is not available: caches are kept in S3-compatible stores only", other)
	default:
		r.Problem(yamlform.Resolve(n), at, "unknown type "+yamlform.Quoted(text), "available: s3")
	}
}

func (r *reader) cachePath(n *yaml.Node, at string) string {
	text, ok := r.Text(n, at)
	if !ok {
		return ""
	}
	switch {
	case len(text) > maxCachePath:
		r.Problem(yamlform.Resolve(n), at, fmt.Sprintf("has %d bytes, more than %d", len(text), maxCachePath), "")
	case strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c == 0x7f }):
		r.Problem(yamlform.Resolve(n), at, yamlform.Quoted(text)+" has control characters in it", "")
	case slices.Contains(strings.Split(text, "/"), ".."):
		r.Problem(yamlform.Resolve(n), at, yamlform.Quoted(text)+" has a part ..", "write the path from the bucket's root")
	default:
		return strings.Trim(path.Clean("/"+text), "/")
	}
	return ""
}

// s3 reads [runners.cache.s3].
func (r *reader) s3(n *yaml.Node, at string, s *registry.S3) {
	*s = registry.S3{ServerAddress: DefaultS3Address, BucketLocation: DefaultS3Location, DualStack: true}
	known := yamlform.Fields{
		"server_address":                func(n *yaml.Node, p string) { s.ServerAddress = r.s3Address(n, p) },
		"insecure":                      func(n *yaml.Node, p string) { s.Insecure = r.insecure(n, p) },
		"bucket_name":                   func(n *yaml.Node, p string) { s.BucketName = r.bucket(n, p) },
		"bucket_location":               func(n *yaml.Node, p string) { s.BucketLocation = r.header(n, p) },
		"authentication_type":           func(n *yaml.Node, p string) { s.IAM = r.Choice(n, p, "access-key", "iam") == "iam" },
		"dual_stack":                    func(n *yaml.Node, p string) { s.DualStack = r.Boolean(n, p) },
		"accelerate":                    func(n *yaml.Node, p string) { s.Accelerate = r.Boolean(n, p) },
		"server_side_encryption":        func(n *yaml.Node, p string) { s.Encryption = r.encryption(n, p) },
		"server_side_encryption_key_id": func(n *yaml.Node, p string) { s.EncryptionKeyID = r.header(n, p) },
		"path_style": func(n *yaml.Node, p string) {
			style := r.Boolean(n, p)
			s.PathStyle = &style
		},
	}
	for _, name := range []string{"role_arn", "upload_role_arn", "assume_role_max_concurrency"} {
		known[name] = func(n *yaml.Node, p string) {
			r.Problem(n, p, "is not available: agents get signed URLs, never credentials", "remove it, and give the keys or the role of authentication_type: iam the right to read and write the bucket")
		}
	}
	r.secret(accessKey, known, func(v string) { s.AccessKey = v })
	r.secret(secretKey, known, func(v string) { s.SecretKey = v })
	r.secret(sessionToken, known, func(v string) { s.SessionToken = v })
	n = yamlform.Resolve(n)
	if !r.Mapping(n, at, known) {
		return
	}
	if yamlform.Value(n, "bucket_name") == nil {
		r.Problem(n, at+".bucket_name", "is missing", "name the bucket that caches are to be kept in")
	}
	if s.EncryptionKeyID != "" && (s.Encryption == "" || s.Encryption == registry.EncryptionS3) {
		r.Problem(yamlform.Value(n, "server_side_encryption_key_id"), at+".server_side_encryption_key_id", "needs a key management service", "set server_side_encryption to KMS or DSSE-KMS, or remove it")
	}
	for _, kind := range []secret{accessKey, secretKey, sessionToken} {
		given := r.given(kind, n, at)
		switch {
		case s.IAM && len(given) > 0:
			r.Problem(yamlform.Value(n, given[0]), at+"."+given[0], "is not used with authentication_type: iam", "keep one of them")
		case !s.IAM && len(given) == 0 && kind.key != sessionToken.key:
			r.Problem(n, at+"."+kind.key+"_file", "is missing",
				fmt.Sprintf("put %s into a file of mode 600 and name it here, or use %s_env, or authentication_type: iam", kind.whole, kind.key))
		}
	}
}

func (r *reader) s3Address(n *yaml.Node, at string) string {
	text, ok := r.Text(n, at)
	if !ok {
		return ""
	}
	const hint = "write host or host:port, for example s3.eu-central-1.amazonaws.com or minio.example.com:9000; insecure: true stands for http"
	host, port, err := net.SplitHostPort(text)
	if err != nil {
		host, port = text, "443"
	}
	_, err = strconv.ParseUint(port, 10, 16)
	if err != nil || !s3utils.IsValidDomain(host) && !s3utils.IsValidIP(strings.Trim(host, "[]")) {
		r.Problem(yamlform.Resolve(n), at, yamlform.Quoted(text)+" is not the address of a server", hint)
		return ""
	}
	return text
}

func (r *reader) insecure(n *yaml.Node, at string) bool {
	insecure := r.Boolean(n, at)
	if insecure {
		r.Warn(yamlform.Resolve(n), at, "caches and the URLs that they can be reached by are sent in the clear", "use https if the object store has it")
	}
	return insecure
}

func (r *reader) bucket(n *yaml.Node, at string) string {
	text, ok := r.Text(n, at)
	if !ok {
		return ""
	}
	if err := s3utils.CheckValidBucketName(text); err != nil {
		r.Problem(yamlform.Resolve(n), at, yamlform.Quoted(text)+" is not the name of a bucket", "it has 3 to 63 letters, digits, dots and hyphens")
		return ""
	}
	return text
}

func (r *reader) encryption(n *yaml.Node, at string) registry.Encryption {
	text, ok := r.Text(n, at)
	switch strings.ToUpper(text) {
	case "S3", "AES256":
		return registry.EncryptionS3
	case "KMS", "AWS:KMS":
		return registry.EncryptionKMS
	case "DSSE-KMS", "AWS:KMS:DSSE":
		return registry.EncryptionDSSEKMS
	}
	if ok {
		r.Problem(yamlform.Resolve(n), at, yamlform.Quoted(text)+" is unknown", "available: S3, KMS, DSSE-KMS")
	}
	return ""
}

// header reads what goes into a header of HTTP.
func (r *reader) header(n *yaml.Node, at string) string {
	text, ok := r.Text(n, at)
	if ok && strings.ContainsFunc(text, func(c rune) bool { return c < ' ' || c > '~' }) {
		r.Problem(yamlform.Resolve(n), at, yamlform.Quoted(text)+" has special characters in it", "")
		return ""
	}
	return text
}
