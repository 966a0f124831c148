package pull

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// aliases are other names of architectures, with the variant that they imply.
var aliases = map[string][2]string{
	"x86_64": {"amd64"}, "x86-64": {"amd64"}, "aarch64": {"arm64"}, "i386": {"386"}, "i686": {"386"},
	"armhf": {"arm", "v7"}, "armel": {"arm", "v6"},
}

// systems are the names that are no architectures.
var systems = []string{"linux", "windows", "freebsd", "darwin"}

// parsePlatform reads OS, ARCHITECTURE, OS/ARCHITECTURE or OS/ARCHITECTURE/VARIANT; "" is nil.
func parsePlatform(text string) (*ocispec.Platform, error) {
	if text == "" {
		return nil, nil
	}
	parts := strings.Split(strings.ToLower(text), "/")
	if len(parts) > 3 || slices.Contains(parts, "") {
		return nil, fmt.Errorf("platform %q must be like linux/arm64, linux/arm/v7 or arm64", text)
	}
	if len(parts) == 1 {
		if slices.Contains(systems, parts[0]) {
			return &ocispec.Platform{OS: parts[0]}, nil
		}
		parts = append([]string{"linux"}, parts...)
	}
	p := &ocispec.Platform{OS: parts[0], Architecture: parts[1]}
	if alias, ok := aliases[p.Architecture]; ok {
		p.Architecture, p.Variant = alias[0], alias[1]
	}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}

// matches says whether an image is for the wanted platform, as far as both say.
func matches(wanted *ocispec.Platform, image client.ImageInspectResult) bool {
	if wanted == nil {
		return true
	}
	same := func(want, got string) bool { return want == "" || got == "" || want == got }
	return same(wanted.OS, image.Os) && same(wanted.Architecture, image.Architecture) && same(wanted.Variant, image.Variant)
}

// inspectsPlatforms says whether an engine with this version of the API can be asked for one of an image's platforms.
func inspectsPlatforms(version string) bool {
	var major, minor int
	_, err := fmt.Sscanf(version, "%d.%d", &major, &minor)
	return err == nil && (major > 1 || major == 1 && minor >= 49)
}
