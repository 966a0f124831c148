package config_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/stretchr/testify/require"

	"github.com/switchyard-ci/switchyard/controlplane/config"
	"github.com/switchyard-ci/switchyard/controlplane/registry"
	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

var update = flag.Bool("update", false, "write the messages into testdata")

// TestMessages reads each archive's switchyard.yaml, beside the other files of the archive, and compares all problems
// and warnings with the file want.
func TestMessages(t *testing.T) {
	archives, err := filepath.Glob("testdata/*.txtar")
	require.NoError(t, err)
	require.NotEmpty(t, archives)
	t.Setenv("EMPTY_TOKEN", " \n")
	for _, path := range archives {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			require.NoError(t, err)
			folder := t.TempDir()
			want := &archive.Files[len(archive.Files)-1]
			require.Equal(t, "want", want.Name)
			for _, file := range archive.Files[:len(archive.Files)-1] {
				name, open := strings.CutSuffix(file.Name, " (0644)")
				mode := os.FileMode(0o600)
				if open {
					mode = 0o644
				}
				require.NoError(t, os.WriteFile(filepath.Join(folder, name), file.Data, mode))
				require.NoError(t, os.Chmod(filepath.Join(folder, name), mode))
			}

			c, warnings, err := config.Load(filepath.Join(folder, "switchyard.yaml"))
			var got bytes.Buffer
			if err != nil {
				require.Nil(t, c)
				got.WriteString(err.Error() + "\n")
			}
			for _, w := range warnings {
				got.WriteString("warning: " + w.String() + "\n")
			}
			text := strings.ReplaceAll(got.String(), folder+string(filepath.Separator), "")
			text = strings.ReplaceAll(text, folder, ".")
			if *update {
				want.Data = []byte(text)
				require.NoError(t, os.WriteFile(path, txtar.Format(archive), 0o644))
				return
			}
			require.Equal(t, string(want.Data), text)
			require.NotContains(t, text, "S3CRET")
		})
	}
}

// write makes a folder with files of mode 0600 and returns the path of switchyard.yaml.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	folder := t.TempDir()
	for name, content := range files {
		require.NoError(t, os.WriteFile(filepath.Join(folder, name), []byte(content), 0o600))
	}
	return filepath.Join(folder, "switchyard.yaml")
}

func TestDefaults(t *testing.T) {
	path := write(t, map[string]string{
		"token": "glrt-token\n",
		"switchyard.yaml": `
runners:
  - name: everything
    url: https://gitlab.example.com
    token_file: ./token
`,
	})
	c, warnings, err := config.Load(path)
	require.NoError(t, err)
	require.Empty(t, warnings)
	require.Equal(t, &config.Config{
		Listen: "127.0.0.1:7443",
		Data:   filepath.Join(filepath.Dir(path), "data"),
		Runners: []config.Runner{{Runner: registry.Runner{
			Name: "everything", URL: "https://gitlab.example.com", Token: "glrt-token", Executor: "shell", OutputLimit: 4096 << 10,
		}}},
	}, c)
}

func TestEverything(t *testing.T) {
	t.Setenv("SECOND_TOKEN", "glrt-second")
	t.Setenv("S3_ACCESS", "access")
	path := write(t, map[string]string{
		"token":  "  glrt-first\n",
		"ca.pem": certificate(t),
		"s3.key": "secret\n",
		"switchyard.yaml": `
listen: "[::]:7443"
data: /var/lib/switchyard/../switchyard
ping_period: 5s
lease:
  stop_after: 10m
  lost_after: 15m
runners:
  - &first
    name: "all of it: ü"
    url: https://GitLab.Example.com:8443/gitlab//
    token_file: token
    tls_ca_file: ca.pem
    labels: {zone: eu-1, _os.kind: "22.04"}
    executor: shell
    limit: 10
    output_limit: 1
    lease: {stop_after: 4h, lost_after: 5h}
    agents: &linux {os: linux, example.com/zone: "1", empty: ""}
    check_interval: 1500ms
    requests_per_minute: 60
    environment: [LC_ALL=C.UTF-8, "EMPTY=", {key: KEY, value: a=$b, file: true, masked: true, raw: true}]
    pre_get_sources_script: git config --global http.proxy ""
    post_get_sources_script: "true"
    pre_build_script: |
      echo one
      echo two
    post_build_script: echo three
    clone_url: https://git.example.com:8443/
    debug_trace_disabled: true
    feature_flags: {FF_TIMESTAMPS: true, FF_SCRIPT_SECTIONS: false}
    prepare_timeout: 10m
    get_sources_timeout: 90s
    artifact: {upload_timeout: 2h, response_header_timeout: 5m}
    cache:
      type: s3
      path: /ci//caches/
      shared: true
      max_uploaded_archive_size: 1000000000
      s3:
        server_address: minio.example.com:9000
        access_key_env: S3_ACCESS
        secret_key_file: s3.key
        session_token: session
        bucket_name: caches
        bucket_location: eu-central-1
        path_style: false
        server_side_encryption: kms
        server_side_encryption_key_id: alias/caches
        dual_stack: false
        accelerate: true
  - name: second
    url: https://gitlab.example.com/ci
    token_env: SECOND_TOKEN
    limit: 0
    agents: *linux
    environment: {ONE: 1, TWO: "", THREE: "yes: $ONE"}
    cache: {type: s3, s3: {bucket_name: caches, authentication_type: iam}}
  - name: third
    url: https://gitlab.example.com
    token: glrt-third
`,
	})
	c, warnings, err := config.Load(path)
	require.NoError(t, err)
	require.Empty(t, warnings)
	selector := registry.Selector{"os": "linux", "example.com/zone": "1", "empty": ""}
	require.Equal(t, &config.Config{
		Listen: "[::]:7443", Data: "/var/lib/switchyard", PingPeriod: 5 * time.Second, StopAfter: 10 * time.Minute, LostAfter: 15 * time.Minute,
		Runners: []config.Runner{
			{
				Runner: registry.Runner{
					Name: "all of it: ü", URL: "https://gitlab.example.com:8443/gitlab", Token: "glrt-first", Executor: "shell",
					CAFile: filepath.Join(filepath.Dir(path), "ca.pem"), Limit: 10, OutputLimit: 1024, Selector: selector,
					Labels: map[string]string{"zone": "eu-1", "_os.kind": "22.04"},
					Settings: registry.Settings{
						Environment: []runnerapi.Variable{
							{Key: "LC_ALL", Value: "C.UTF-8"},
							{Key: "EMPTY"},
							{Key: "KEY", Value: "a=$b", File: true, Masked: true, Raw: true},
						},
						PreGetSourcesScript: `git config --global http.proxy ""`, PostGetSourcesScript: "true",
						PreBuildScript: "echo one\necho two\n", PostBuildScript: "echo three",
						CloneURL: "https://git.example.com:8443", DebugTraceDisabled: true,
						FeatureFlags:   map[string]bool{"FF_TIMESTAMPS": true, "FF_SCRIPT_SECTIONS": false},
						PrepareTimeout: 10 * time.Minute, GetSourcesTimeout: 90 * time.Second,
						ArtifactUploadTimeout: 2 * time.Hour, ArtifactResponseHeaderTimeout: 5 * time.Minute,
						Cache: &registry.Cache{
							Path: "ci/caches", Shared: true, MaxUploadedArchiveSize: 1000000000,
							S3: registry.S3{
								ServerAddress: "minio.example.com:9000", BucketName: "caches", BucketLocation: "eu-central-1",
								AccessKey: "access", SecretKey: "secret", SessionToken: "session", PathStyle: new(bool),
								Accelerate: true, Encryption: registry.EncryptionKMS, EncryptionKeyID: "alias/caches",
							},
						},
					},
				},
				CheckInterval: 1500 * time.Millisecond, RequestsPerMinute: 60, StopAfter: 4 * time.Hour, LostAfter: 5 * time.Hour,
			},
			{Runner: registry.Runner{
				Name: "second", URL: "https://gitlab.example.com", Token: "glrt-second", Executor: "shell", OutputLimit: 4096 << 10, Selector: selector,
				Settings: registry.Settings{
					Environment: []runnerapi.Variable{{Key: "ONE", Value: "1"}, {Key: "TWO"}, {Key: "THREE", Value: "yes: $ONE"}},
					Cache: &registry.Cache{S3: registry.S3{
						ServerAddress: "s3.amazonaws.com", BucketName: "caches", BucketLocation: "us-east-1", IAM: true, DualStack: true,
					}},
				},
			}},
			{Runner: registry.Runner{
				Name: "third", URL: "https://gitlab.example.com", Token: "glrt-third", Executor: "shell", OutputLimit: 4096 << 10,
			}},
		},
	}, c)
}

func certificate(t *testing.T) string {
	t.Helper()
	cert, _ := keyPair(t)
	return cert
}

// keyPair makes a certificate and its key, both PEM.
func keyPair(t *testing.T) (certificate, secret string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
}

func TestClientCertificates(t *testing.T) {
	cert, key := keyPair(t)
	_, otherKey := keyPair(t)
	files := map[string]string{
		"cert.pem": cert, "key.pem": key, "other.pem": otherKey, "both.pem": key + cert,
		"switchyard.yaml": `
runners:
  - {name: a, url: https://gitlab.example.com, token: glrt-a, tls_cert_file: cert.pem, tls_key_file: KEY}
`,
	}
	load := func(name string) (*config.Config, []config.Problem, error) {
		with := maps.Clone(files)
		with["switchyard.yaml"] = strings.ReplaceAll(with["switchyard.yaml"], "KEY", name)
		path := write(t, with)
		require.NoError(t, os.Chmod(filepath.Join(filepath.Dir(path), "key.pem"), 0o640))
		return config.Load(path)
	}
	for _, name := range []string{"key.pem", "both.pem"} {
		c, warnings, err := load(name)
		require.NoError(t, err)
		require.Equal(t, name, filepath.Base(c.Runners[0].KeyFile))
		require.Equal(t, "cert.pem", filepath.Base(c.Runners[0].CertFile))
		if name == "key.pem" {
			require.Len(t, warnings, 1)
			require.Contains(t, warnings[0].String(), "key.pem (mode 0640); chmod 600 ")
		}
	}
	_, _, err := load("other.pem")
	require.ErrorContains(t, err, "runners[0].tls_key_file: ")
	require.ErrorContains(t, err, "private key does not match public key; name the certificate and its own key")
}

func TestFilesThatCannotBeRead(t *testing.T) {
	folder := t.TempDir()
	large := filepath.Join(folder, "large.yaml")
	require.NoError(t, os.WriteFile(large, bytes.Repeat([]byte("#\n"), 1<<20), 0o600))
	for path, text := range map[string]string{
		filepath.Join(folder, "missing.yaml"): "missing.yaml: no such file or directory; name another file with -c",
		folder:                                folder + ": it is not a regular file; name another file with -c",
		large:                                 "large.yaml: it has more than 1024 KiB",
	} {
		_, _, err := config.Load(path)
		require.ErrorContains(t, err, text)
	}
}

func TestAnOpenDataFolderIsWarnedAbout(t *testing.T) {
	path := write(t, map[string]string{
		"token":           "glrt-token",
		"switchyard.yaml": "data: open\nrunners: [{name: a, url: https://gitlab.example.com, token_file: token}]\n",
	})
	data := filepath.Join(filepath.Dir(path), "open")
	require.NoError(t, os.Mkdir(data, 0o755))
	require.NoError(t, os.Chmod(data, 0o755))
	_, warnings, err := config.Load(path)
	require.NoError(t, err)
	require.Len(t, warnings, 1)
	require.Equal(t, path+":1:7: data: others can look into "+data+" (mode 0755); chmod 700 "+data, warnings[0].String())
}

func FuzzLoad(f *testing.F) {
	archives, err := filepath.Glob("testdata/*.txtar")
	require.NoError(f, err)
	for _, path := range archives {
		archive, err := txtar.ParseFile(path)
		require.NoError(f, err)
		f.Add(archive.Files[0].Data)
	}
	f.Add([]byte("&a [*a]"))
	f.Add([]byte("runners: &a [*a, {agents: *a}]"))
	f.Add([]byte("# nothing"))
	folder := f.TempDir()
	f.Fuzz(func(t *testing.T, data []byte) {
		path := filepath.Join(folder, "switchyard.yaml")
		require.NoError(t, os.WriteFile(path, data, 0o600))
		c, _, err := config.Load(path)
		require.NotEqual(t, c == nil, err == nil, "either a configuration or an error")
		if err != nil {
			require.NotEmpty(t, err.Error())
		}
	})
}
