//go:build unix

package cache

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"strings"
	"unicode"
)

// key is a cache's key.
type key struct {
	human string // as people know it
	name  string // of the local folder and the remote object: human, or its SHA-256
	// former is the name that it had before keys were hashed; empty if it is the same or cannot be one.
	former string
}

// key finds a cache's key; ok is false if there is none, which was said. user is the key as the payload has it, check, if not
// nil, may refuse what came out. what is what is skipped.
func (r *run) key(what, user string, check func(human string) bool) (k key, ok bool) {
	skip := func(why string) (key, bool) {
		r.Notice("Skipping cache " + what + " due to " + why)
		return key{}, false
	}
	// path.Join removes what could lead out of the folder.
	raw := path.Join("/", r.JobName, r.Ref)[1:]
	if user != "" {
		var err error
		if raw, err = r.Expand(user); err != nil {
			return skip(fmt.Sprintf("the key %q: %v", user, err))
		}
	}
	hashed := r.Flag("FF_HASH_CACHE_KEYS")
	k.human = raw
	if !hashed {
		k.human = sanitize(raw)
		switch {
		case k.human == "" && raw != "":
			r.Warn(fmt.Sprintf("cache key %q could not be sanitized", raw))
		case k.human != raw:
			r.Warn(fmt.Sprintf("cache key %q sanitized to %q", raw, k.human))
		}
	}
	if check != nil && !check(k.human) {
		return key{}, false
	}
	if k.human == "" {
		return skip("empty cache key")
	}
	k.name = k.human
	if hashed {
		sum := sha256.Sum256([]byte(k.human))
		k.name, k.former = hex.EncodeToString(sum[:]), sanitize(k.human)
	}
	return k, true
}

var normalize = strings.NewReplacer("%2f", "/", "%2F", "/", "%2e", ".", "%2E", ".", `\`, "/")

// sanitize makes a key that is a path below some folder, by gitlab-runner's rules: slashes and dots may be URL-encoded,
// backslashes are slashes, nothing leads out of the folder, and spaces at the end are cut with what becomes empty by that.
// It returns nothing if nothing is left.
func sanitize(raw string) string {
	parts := strings.Split(path.Clean("/" + normalize.Replace(raw))[1:], "/")
	for n := len(parts); n > 0; n-- {
		// gitlab-runner overlooks that dots may be what is left before spaces.
		if last := strings.TrimRightFunc(parts[n-1], unicode.IsSpace); last != "" && last != "." && last != ".." {
			parts[n-1] = last
			return strings.Join(parts[:n], "/")
		}
	}
	return ""
}
