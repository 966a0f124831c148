package ciconfig

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
)

// Cache is one cache of a job, with what GitLab fills in where the configuration says nothing.
type Cache struct {
	// Key has its variables unexpanded. That of `key:files` is complete: prefix and digest.
	Key          string
	Paths        []string // nil: not given
	Untracked    bool
	Policy       string // pull-push, pull, push, or a variable that names one
	When         string
	Unprotect    bool     // protected and other branches share it
	FallbackKeys []string // never nil
}

// cacheSpec is a cache as it is written.
type cacheSpec struct {
	Cache
	at   pos
	path string // of its key

	files     []string // of key:files or key:files_commits; nil: the key is a text
	byCommit  bool
	prefix    string
	hasPrefix bool
}

// GitLab's limits.
const (
	maxCaches       = 4
	maxFallbackKeys = 5
	maxKeyFiles     = 2
	defaultCacheKey = "default"
)

// caches reads `cache`: one cache or a list of them.
func (c *compiler) caches(n *node, path string) []cacheSpec {
	switch n.kind {
	case kindMap:
		return []cacheSpec{c.cache(n, path)}
	case kindList:
	default:
		c.fail(n, path, "write {key: ..., paths: [...]}", "a cache must be a mapping or a list of mappings, this is %s", n.kind)
		return nil
	}
	if len(n.items) > maxCaches {
		c.fail(n, path, "", "the job has %d caches, GitLab allows %d", len(n.items), maxCaches)
		return nil
	}
	out := []cacheSpec{}
	for i, it := range n.items {
		here := join(path, strconv.Itoa(i))
		if it.kind != kindMap {
			c.fail(it, here, "write {key: ..., paths: [...]}", "a cache must be a mapping, this is %s", it.kind)
			continue
		}
		out = append(out, c.cache(it, here))
	}
	return out
}

// cachePolicy is a policy that a variable decides.
var cachePolicy = regexp.MustCompile(`^\$\w{1,255}$`)

func (c *compiler) cache(n *node, path string) cacheSpec {
	c.check(n, path, cacheKeywords())
	s := cacheSpec{at: n.at, path: path, Cache: Cache{
		Key: defaultCacheKey, Policy: "pull-push", When: "on_success", FallbackKeys: []string{},
	}}
	if v := n.present("key"); v != nil {
		s.at, s.path = v.at, join(path, "key")
		c.cacheKey(&s, v)
	}
	if v := n.present("paths"); v != nil {
		s.Paths, _ = c.texts(v, join(path, "paths"))
	}
	if v := n.present("untracked"); v != nil {
		s.Untracked, _ = c.boolean(v, join(path, "untracked"))
	}
	if v := n.present("unprotect"); v != nil {
		s.Unprotect, _ = c.boolean(v, join(path, "unprotect"))
	}
	if v := n.present("policy"); v != nil {
		here := join(path, "policy")
		if text, ok := c.text(v, here); ok && (cachePolicy.MatchString(text) || c.oneOf(v, here, []string{"pull-push", "pull", "push"})) {
			s.Policy = text
		}
	}
	if v := n.present("when"); v != nil {
		s.When = c.choice(v, join(path, "when"), artifactWhens())
	}
	if v := n.present("fallback_keys"); v != nil {
		keys, ok := c.texts(v, join(path, "fallback_keys"))
		if len(keys) > maxFallbackKeys {
			c.fail(v, join(path, "fallback_keys"), "", "there are %d keys, GitLab allows %d", len(keys), maxFallbackKeys)
		}
		if ok {
			s.FallbackKeys = keys
		}
	}
	return s
}

func (c *compiler) cacheKey(s *cacheSpec, n *node) {
	switch n.kind {
	case kindString:
		if c.checkKey(n, s.path) {
			s.Key = n.text
		}
	case kindMap:
		c.cacheKeyFiles(s, n)
	case kindNull, kindBool, kindInt, kindFloat:
		c.fail(n, s.path, quoteIt(n), "a key must be a string or a mapping with `files`, this is %s", n.kind)
	default:
		c.fail(n, s.path, "", "a key must be a string or a mapping with `files`, this is %s", n.kind)
	}
}

// `.` and `/` as addresses have them: GitLab finds those too.
var (
	escapedDot   = regexp.MustCompile(`(?i)%2e`)
	escapedSlash = regexp.MustCompile(`(?i)%2f`)
)

// checkKey reports a key that would leave the folder of the project's caches.
func (c *compiler) checkKey(n *node, path string) bool {
	text, ok := c.text(n, path)
	if !ok {
		return false
	}
	text = escapedSlash.ReplaceAllString(escapedDot.ReplaceAllString(text, "."), "/")
	switch {
	case strings.Contains(text, "/"):
		c.fail(n, path, "$CI_COMMIT_REF_SLUG is the branch without slashes", "a key cannot have a `/`")
	case text == "." || text == "..":
		c.fail(n, path, "", "a key cannot be `.` or `..`")
	default:
		return true
	}
	return false
}

func (c *compiler) cacheKeyFiles(s *cacheSpec, n *node) {
	c.check(n, s.path, keywords{"files": true, "files_commits": true, "prefix": true})
	files, commits := n.present("files"), n.present("files_commits")
	key := "files"
	switch {
	case files == nil && commits == nil:
		c.fail(n, s.path, "", "the key has neither `files` nor `files_commits`")
		return
	case files != nil && commits != nil:
		c.fail(n, s.path, "", "the key has both `files` and `files_commits`")
		return
	case commits != nil:
		files, key, s.byCommit = commits, "files_commits", true
	}
	here := join(s.path, key)
	list, ok := c.texts(files, here)
	if ok && (len(list) == 0 || len(list) > maxKeyFiles) {
		c.fail(files, here, "", "there are %d files, GitLab allows 1 to %d", len(list), maxKeyFiles)
		ok = false
	}
	if ok && c.opt.CacheDigest == nil {
		c.fail(files, here, "", "`cache:key:%s` cannot be evaluated here: the repository's files are not known", key)
		ok = false
	}
	if ok {
		s.files = make([]string, len(list))
		for i, f := range list {
			s.files[i] = strings.TrimLeft(f, "/")
		}
	}
	if v := n.present("prefix"); v != nil {
		if c.checkKey(v, join(s.path, "prefix")) {
			s.prefix, s.hasPrefix = v.text, true
		}
	}
}

// resolveCaches makes the keys that depend on files. Every job that has the caches gets the same list.
func (c *compiler) resolveCaches(specs []cacheSpec) []Cache {
	out := make([]Cache, len(specs))
	for i, s := range specs {
		out[i] = s.Cache
		if s.files == nil {
			continue
		}
		if !s.hasPrefix {
			s.prefix = cachePrefix(i, s)
		}
		digest := c.cacheDigest(s)
		if s.prefix != "" {
			digest = s.prefix + "-" + digest
		}
		out[i].Key = digest
	}
	return out
}

// cachePrefix is GitLab's prefix for keys that have none: two caches of a job must not have one key by chance.
func cachePrefix(index int, s cacheSpec) string {
	prefix := strconv.Itoa(index)
	if s.byCommit {
		return prefix
	}
	names := make([]string, len(s.files))
	for i, f := range s.files {
		names[i], _, _ = strings.Cut(f, ".")
	}
	return prefix + "_" + strings.Join(names, "_")
}

func (c *compiler) cacheDigest(s cacheSpec) string {
	id := fmt.Sprint(s.byCommit, "\x00", strings.Join(s.files, "\x00"))
	if known, ok := c.digests[id]; ok {
		return known
	}
	var files []string
	for _, f := range s.files {
		if !blank(f) {
			files = append(files, f)
		}
	}
	digest, err := c.opt.CacheDigest(files, s.byCommit)
	if err != nil {
		c.report.add(&Error{
			File: s.at.file, Line: s.at.line, Column: s.at.col, Path: s.path, Message: fmt.Sprintf("make the key: %s", err), cause: err,
		})
	}
	if digest == "" {
		digest = defaultCacheKey
	}
	if c.digests == nil {
		c.digests = map[string]string{}
	}
	c.digests[id] = digest
	return digest
}
