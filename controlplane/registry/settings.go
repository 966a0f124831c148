package registry

import (
	"log/slog"
	"time"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// Settings are what a runner's administrator asks of its jobs, with gitlab-runner's names (config.toml, [[runners]]). The
// zero value is gitlab-runner's default for each; a time of 0 is no limit of its own.
type Settings struct {
	// Environment is added to the jobs' variables, which win over it.
	Environment []runnerapi.Variable

	PreGetSourcesScript  string
	PostGetSourcesScript string
	PreBuildScript       string
	PostBuildScript      string

	// CloneURL takes the place of GitLab's address for sources; http or https.
	CloneURL           string
	DebugTraceDisabled bool
	FeatureFlags       map[string]bool // by FF_ name

	PrepareTimeout    time.Duration
	GetSourcesTimeout time.Duration
	// ArtifactUploadTimeout and ArtifactResponseHeaderTimeout limit one upload; 0 is one hour and ten minutes.
	ArtifactUploadTimeout         time.Duration
	ArtifactResponseHeaderTimeout time.Duration

	// Cache is where caches are kept; nil: where the jobs run.
	Cache *Cache
}

// Cache is an object store for caches.
type Cache struct {
	// Path is put before the objects' names; it has no slash at either end.
	Path string
	// Shared: runners with the same store share the caches of a project; otherwise each has its own.
	Shared bool
	// MaxUploadedArchiveSize is in bytes; 0 is no limit.
	MaxUploadedArchiveSize int64
	S3                     S3
}

// S3 is a bucket of an S3-compatible store.
type S3 struct {
	ServerAddress  string // host or host:port
	Insecure       bool   // http instead of https
	BucketName     string
	BucketLocation string // the region that requests are signed for

	// IAM: credentials come from the surroundings of the control plane (instance profile, container or web identity) instead
	// of the three fields below.
	IAM          bool
	AccessKey    string
	SecretKey    string // secret
	SessionToken string // secret; may be empty

	// PathStyle says whether the bucket is named in the path instead of in the host's name; nil: as the address suggests.
	PathStyle  *bool
	DualStack  bool // of Amazon's addresses: those that speak IPv4 and IPv6
	Accelerate bool // Amazon's transfer acceleration

	Encryption Encryption
	// EncryptionKeyID is that of a KMS; empty is the store's default key.
	EncryptionKeyID string
}

// Encryption is how objects are encrypted by the store, as its API has it; empty is what the bucket does by itself.
type Encryption string

// The kinds of encryption.
const (
	EncryptionS3      Encryption = "AES256"
	EncryptionKMS     Encryption = "aws:kms"
	EncryptionDSSEKMS Encryption = "aws:kms:dsse"
)

// LogValue keeps the keys out of logs.
func (s S3) LogValue() slog.Value {
	return slog.GroupValue(slog.String("server_address", s.ServerAddress), slog.String("bucket_name", s.BucketName))
}

// LogValue keeps the keys out of logs.
func (c Cache) LogValue() slog.Value {
	return slog.GroupValue(slog.String("path", c.Path), slog.Bool("shared", c.Shared), slog.Any("s3", c.S3))
}

// LogValue keeps values of variables and keys out of logs.
func (s Settings) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("environment", len(s.Environment)), slog.Any("feature_flags", s.FeatureFlags), slog.Bool("cache", s.Cache != nil))
}
