package ciconfig

import (
	"strconv"
	"time"
)

// inheritable are the keywords that `default` can set for all jobs.
type inheritable struct {
	set           map[string]bool // which are there
	before, after []string
	tags          []string
	interruptible bool
	timeout       time.Duration
	image         *Image
	services      []Image
	caches        []cacheSpec
	artifacts     *Artifacts
	retry         *Retry
	preGetSources []string
}

// maxTags is one more than the tags that a job may have (GitLab's TAGS_LIMIT).
const maxTags = 50

// inheritable reads these keywords from a job or from `default`.
func (c *compiler) inheritable(n *node, path string) inheritable {
	out := inheritable{set: map[string]bool{}}
	read := func(key string, value func(n *node, path string)) {
		if v := n.present(key); v != nil {
			out.set[key] = true
			value(v, join(path, key))
		}
	}
	read("before_script", func(n *node, path string) { out.before, _ = c.commands(n, path) })
	read("after_script", func(n *node, path string) { out.after, _ = c.commands(n, path) })
	read("tags", func(n *node, path string) {
		out.tags, _ = c.texts(n, path)
		if len(out.tags) >= maxTags {
			c.fail(n, path, "", "there are %d tags, GitLab allows less than %d", len(out.tags), maxTags)
		}
	})
	read("interruptible", func(n *node, path string) { out.interruptible, _ = c.boolean(n, path) })
	read("timeout", func(n *node, path string) { out.timeout = c.duration(n, path, maxTimeout, "a month") })
	read("image", func(n *node, path string) { out.image = c.image(n, path) })
	read("services", func(n *node, path string) { out.services = c.services(n, path) })
	read("cache", func(n *node, path string) { out.caches = c.caches(n, path) })
	read("artifacts", func(n *node, path string) { out.artifacts = c.artifacts(n, path) })
	read("retry", func(n *node, path string) { out.retry = c.retry(n, path) })
	read("hooks", func(n *node, path string) { out.preGetSources = c.hooks(n, path) })
	return out
}

// hooks reads `hooks`.
func (c *compiler) hooks(n *node, path string) []string {
	const key = "pre_get_sources_script"
	if n.kind != kindMap {
		c.fail(n, path, "", "this must be a mapping with `%s`, it is %s", key, n.kind)
		return nil
	}
	c.check(n, path, keywords{key: true})
	v := n.present(key)
	if v == nil {
		return nil
	}
	script, _ := c.commands(v, join(path, key))
	return script
}

// readDefaults reads `default` and the old top-level forms of its keywords.
func (c *compiler) readDefaults(root *node) {
	n := root.present("default")
	if n == nil {
		n = newMap(root.at, nil)
	}
	if n.kind != kindMap {
		c.fail(n, "default", "", "this must be a mapping of keywords, it is %s", n.kind)
		return
	}
	c.check(n, "default", defaultKeywords())
	c.defaults = c.inheritable(n, "default")
	if v := n.present("timeout"); v != nil {
		c.warn("default:timeout has no effect in GitLab, and has none here: set it in the jobs")
		c.defaults.set["timeout"] = false
	}
	read := func(key string, value func(n *node, path string)) {
		v := root.present(key)
		if v == nil {
			return
		}
		if c.defaults.set[key] {
			c.report.at(root.keyAt(key), key, "`"+key+"` is in `default` and at the top level", "keep the one in `default`")
			return
		}
		c.defaults.set[key] = true
		value(v, key)
	}
	read("before_script", func(n *node, path string) { c.defaults.before, _ = c.commands(n, path) })
	read("after_script", func(n *node, path string) { c.defaults.after, _ = c.commands(n, path) })
	read("image", func(n *node, path string) { c.defaults.image = c.image(n, path) })
	read("services", func(n *node, path string) { c.defaults.services = c.services(n, path) })
	read("cache", func(n *node, path string) { c.defaults.caches = c.caches(n, path) })
}

// filter says what a job inherits: everything, nothing, or the names in a list.
type filter struct {
	none  bool
	names map[string]bool // nil: no list
}

func (f filter) allows(name string) bool {
	return !f.none && (f.names == nil || f.names[name])
}

// inherit reads a job's `inherit`.
func (c *compiler) inherit(n *node, path string) (defaults, variables filter) {
	if n.kind != kindMap {
		c.fail(n, path, "", "this must be a mapping with `default` or `variables`, it is %s", n.kind)
		return defaults, variables
	}
	c.check(n, path, keywords{"default": true, "variables": true})
	known := defaultKeywords()
	read := func(key string) (f filter) {
		v := n.present(key)
		if v == nil {
			return f
		}
		here := join(path, key)
		switch v.kind {
		case kindBool:
			f.none = !v.truth
		case kindList:
			names, _ := c.texts(v, here)
			f.names = make(map[string]bool, len(names))
			for i, name := range names {
				f.names[name] = true
				if _, ok := known[name]; !ok && key == "default" {
					c.fail(v.items[i], join(here, strconv.Itoa(i)), "known here: "+known.list(), "`default` has no keyword %q", name)
				}
			}
		default:
			c.fail(v, here, "", "this must be true, false or a list of names, it is %s", v.kind)
		}
		return f
	}
	return read("default"), read("variables")
}

// take gives a job the defaults that it inherits and does not set itself.
func (own *inheritable) take(defaults inheritable, f filter) {
	has := func(key string) bool {
		if own.set[key] || !defaults.set[key] || !f.allows(key) {
			return false
		}
		own.set[key] = true
		return true
	}
	if has("before_script") {
		own.before = defaults.before
	}
	if has("after_script") {
		own.after = defaults.after
	}
	if has("tags") {
		own.tags = defaults.tags
	}
	if has("interruptible") {
		own.interruptible = defaults.interruptible
	}
	if has("image") {
		own.image = defaults.image
	}
	if has("services") {
		own.services = defaults.services
	}
	if has("cache") {
		own.caches = defaults.caches
	}
	if has("artifacts") {
		own.artifacts = defaults.artifacts
	}
	if has("retry") {
		own.retry = defaults.retry
	}
	if has("hooks") {
		own.preGetSources = defaults.preGetSources
	}
}
