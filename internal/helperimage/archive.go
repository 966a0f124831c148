package helperimage

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/opencontainers/go-digest"
)

const (
	manifestName = "manifest.json"
	maxJSON      = 1 << 20 // of manifest.json and of the configuration
	// compression is where a higher level costs much and saves little.
	compression = 5
)

// manifest is the one element of manifest.json.
type manifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// image is what an archive is made of. The layers that change seldom come first: an engine that has them stores and
// unpacks the others only.
type image struct {
	architecture string
	layers       []tree
	level        int // of compression
}

// configuration is an image's configuration and its encoded form, whose digest is the image's ID.
type configuration struct {
	ocispec.Image
	encoded []byte
	digest  digest.Digest
}

func (i *image) configuration() (*configuration, error) {
	epoch := time.Unix(0, 0).UTC()
	c := &configuration{Image: ocispec.Image{
		Created:  &epoch,
		Platform: ocispec.Platform{OS: "linux", Architecture: i.architecture},
		Config: ocispec.ImageConfig{
			Env:        []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cmd:        []string{"sh"},
			WorkingDir: "/",
			Labels:     map[string]string{ocispec.AnnotationTitle: Repository},
		},
		RootFS: ocispec.RootFS{Type: "layers"},
	}}
	for range i.layers {
		c.History = append(c.History, ocispec.History{Created: &epoch, CreatedBy: Repository})
	}
	c.RootFS.DiffIDs = make([]digest.Digest, len(i.layers))
	var group errgroup.Group
	for n, layer := range i.layers {
		group.Go(func() error {
			sum := sha256.New()
			if err := layer.write(sum); err != nil {
				return fmt.Errorf("read the helper image's files: %w", err)
			}
			c.RootFS.DiffIDs[n] = digest.NewDigest(digest.SHA256, sum)
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return nil, err
	}
	var err error
	if c.encoded, err = json.Marshal(c.Image); err != nil {
		return nil, fmt.Errorf("encode the helper image's configuration: %w", err)
	}
	c.digest = digest.FromBytes(c.encoded)
	return c, nil
}

func (c *configuration) info(version string) Info {
	info := Info{Reference: reference(version, c.digest.Encoded()), ID: c.digest.String(), OS: c.OS, Architecture: c.Architecture}
	for _, layer := range c.RootFS.DiffIDs {
		info.Layers = append(info.Layers, layer.String())
	}
	return info
}

func (i *image) write(w io.Writer, c *configuration, info Info) error {
	m := manifest{Config: c.digest.Encoded() + ".json", RepoTags: []string{info.Reference}}
	compressed := make([]bytes.Buffer, len(i.layers))
	var group errgroup.Group
	for n, layer := range i.layers {
		m.Layers = append(m.Layers, c.RootFS.DiffIDs[n].Encoded()+".tar.gz")
		group.Go(func() error {
			sum := sha256.New()
			z, err := gzip.NewWriterLevel(&compressed[n], i.level)
			if err == nil {
				err = errors.Join(layer.write(io.MultiWriter(z, sum)), z.Close())
			}
			if err == nil && hex.EncodeToString(sum.Sum(nil)) != c.RootFS.DiffIDs[n].Encoded() {
				err = errors.New("files changed while they were packed; run it again")
			}
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	list, err := json.Marshal([]manifest{m})
	if err != nil {
		return err
	}
	archive := tar.NewWriter(w)
	put := func(name string, data []byte) {
		header := &tar.Header{
			Typeflag: tar.TypeReg, Name: name, Size: int64(len(data)), Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatPAX,
		}
		if err == nil {
			err = archive.WriteHeader(header)
		}
		if err == nil {
			_, err = archive.Write(data)
		}
	}
	put(manifestName, list)
	put(m.Config, c.encoded)
	for n, name := range m.Layers {
		put(name, compressed[n].Bytes())
	}
	return errors.Join(err, archive.Close())
}

// Read says what is in the archive at path. It reads its beginning only.
func Read(path string) (Info, error) {
	file, err := os.Open(path)
	if err != nil {
		return Info{}, fmt.Errorf("read the helper image: %w", err)
	}
	defer file.Close()
	info, err := readHead(file)
	if err != nil {
		return Info{}, fmt.Errorf("%s is no helper image that `make build` has made: %w", path, err)
	}
	return info, nil
}

func readHead(r io.Reader) (Info, error) {
	archive := tar.NewReader(r)
	list, err := next(archive, manifestName)
	if err != nil {
		return Info{}, err
	}
	var manifests []manifest
	if err := json.Unmarshal(list, &manifests); err != nil {
		return Info{}, fmt.Errorf("%s: %w", manifestName, err)
	}
	if len(manifests) != 1 || len(manifests[0].RepoTags) != 1 {
		return Info{}, fmt.Errorf("%s must have one image with one name", manifestName)
	}
	m := manifests[0]
	encoded, err := next(archive, m.Config)
	if err != nil {
		return Info{}, err
	}
	c := configuration{encoded: encoded, digest: digest.FromBytes(encoded)}
	if m.Config != c.digest.Encoded()+".json" {
		return Info{}, fmt.Errorf("%s has another digest, %s", m.Config, c.digest)
	}
	if err := json.Unmarshal(encoded, &c.Image); err != nil {
		return Info{}, fmt.Errorf("%s: %w", m.Config, err)
	}
	info := c.info("")
	if info.Reference = m.RepoTags[0]; !strings.HasPrefix(info.Reference, Repository+":") {
		return Info{}, fmt.Errorf("the image is called %q, not %s", info.Reference, Repository)
	}
	return info, nil
}

// next returns the next file, which must have this name.
func next(archive *tar.Reader, name string) ([]byte, error) {
	header, err := archive.Next()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if header.Name != name || header.Size > maxJSON {
		return nil, fmt.Errorf("there is %q of %d bytes instead of %s of at most %d", header.Name, header.Size, name, maxJSON)
	}
	data, err := io.ReadAll(archive)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return data, nil
}
