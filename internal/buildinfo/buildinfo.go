// Package buildinfo says which build of Switchyard is running.
package buildinfo

import (
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
)

// Set by the linker (-X), see the Makefile; empty in a build with plain `go build`.
var (
	version  string
	revision string
)

// Development is the version of a build that nobody gave one.
const Development = "0.0.0-dev"

// revisionLength is how many hexadecimal digits of a commit are shown.
const revisionLength = 8

// Version is the release, without a leading v: "1.4.0", between releases what `git describe` makes of it
// ("1.4.0-12-g1a2b3c4d"), and Development when the build knows of none.
func Version() string {
	if version != "" {
		return strings.TrimPrefix(version, "v")
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		if v := info.Main.Version; v != "" && v != "(devel)" {
			return strings.TrimPrefix(v, "v")
		}
	}
	return Development
}

// Revision is the short commit the binary was built from, or "unknown".
func Revision() string {
	rev := revision
	if rev == "" {
		if info, ok := debug.ReadBuildInfo(); ok {
			for _, s := range info.Settings {
				if s.Key == "vcs.revision" {
					rev = s.Value
				}
			}
		}
	}
	if rev == "" {
		return "unknown"
	}
	return rev[:min(len(rev), revisionLength)]
}

// UserAgent is what Switchyard calls itself over HTTP, in the form that gitlab-runner uses and GitLab's logs are read by:
// "switchyard 1.4.0 (1a2b3c4d; go1.26.0; linux/amd64)".
func UserAgent() string {
	return fmt.Sprintf("switchyard %s (%s; %s; %s/%s)", Version(), Revision(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// Line is what `--version` of the named program prints, without a newline.
func Line(program string) string {
	return program + strings.TrimPrefix(UserAgent(), "switchyard")
}
