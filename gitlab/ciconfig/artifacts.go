package ciconfig

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// Artifacts is `artifacts` of a job.
type Artifacts struct {
	Name      string   // of the archive, variables unexpanded; empty: the runner's default
	Paths     []string // nil: not given
	Exclude   []string
	Untracked bool
	When      string // on_success, on_failure, always; empty: not given, which means on_success
	ExpireIn  string // as it is written, see [ParseDuration]; "never" and empty: not at all
	ExposeAs  string // the name under which a merge request would show it
	// Access says who may download: all, developer, maintainer or none; empty: not given, which means all. `public` is
	// written as all or developer.
	Access  string
	Reports []Report // in the order of the configuration
}

// Archive says whether there is an archive of files, besides reports.
func (a *Artifacts) Archive() bool { return a.Untracked || a.Paths != nil }

// Report is one entry of `artifacts:reports`, which is an upload of its own.
type Report struct {
	Type  string // GitLab's artifact_type; that of coverage_report is its format, cobertura or jacoco
	Paths []string
}

var exposeAs = regexp.MustCompile(`^\w[-\w ]*$`)

const maxExposeAs = 100

// artifactWhens are the values of `when` of artifacts and caches.
func artifactWhens() []string { return []string{"on_success", "on_failure", "always"} }

// artifacts reads `artifacts`.
func (c *compiler) artifacts(n *node, path string) *Artifacts {
	if n.kind != kindMap {
		c.fail(n, path, "write paths: [build/]", "this must be a mapping, it is %s", n.kind)
		return nil
	}
	c.check(n, path, artifactKeywords())
	a := &Artifacts{}
	read := func(key string, value func(n *node, path string)) *node {
		v := n.present(key)
		if v != nil {
			value(v, join(path, key))
		}
		return v
	}
	read("name", func(n *node, path string) { a.Name, _ = c.text(n, path) })
	read("paths", func(n *node, path string) { a.Paths, _ = c.texts(n, path) })
	read("exclude", func(n *node, path string) { a.Exclude, _ = c.texts(n, path) })
	read("untracked", func(n *node, path string) { a.Untracked, _ = c.boolean(n, path) })
	read("when", func(n *node, path string) { a.When = c.choice(n, path, artifactWhens()) })
	read("expire_in", func(n *node, path string) {
		if n.kind == kindString && strings.EqualFold(n.text, "never") {
			a.ExpireIn = n.text
		} else if c.duration(n, path, maxDuration, "what can be counted") > 0 {
			a.ExpireIn = n.text
		}
	})
	read("expose_as", func(_ *node, path string) { c.exposeAs(a, n, path) })
	read("reports", func(n *node, path string) { a.Reports = c.reports(n, path) })
	public := read("public", func(n *node, path string) {
		if all, ok := c.boolean(n, path); ok {
			a.Access = map[bool]string{true: "all", false: "developer"}[all]
		}
	})
	access := read("access", func(n *node, path string) {
		a.Access = c.choice(n, path, []string{"all", "developer", "maintainer", "none"})
	})
	if public != nil && access != nil {
		c.report.at(n.keyAt("public"), join(path, "public"), "`public` and `access` cannot stand in one job", "keep `access`")
	}
	return a
}

// choice reads one of some texts; what is none of them is reported and becomes empty.
func (c *compiler) choice(n *node, path string, values []string) string {
	if s, ok := c.text(n, path); ok && c.oneOf(n, path, values) {
		return s
	}
	return ""
}

func (c *compiler) exposeAs(a *Artifacts, n *node, path string) {
	v := n.get("expose_as")
	name, ok := c.text(v, path)
	switch {
	case !ok:
		return
	case utf8.RuneCountInString(name) > maxExposeAs:
		c.fail(v, path, "", "the name is longer than %d characters", maxExposeAs)
	case !exposeAs.MatchString(name):
		c.fail(v, path, "", "%q may have letters, digits, `-`, `_` and spaces only", name)
	case len(a.Paths) == 0:
		c.fail(v, path, "", "`expose_as` needs `paths`")
	case slices.ContainsFunc(a.Paths, func(p string) bool { return strings.Contains(p, "*") }):
		c.fail(v, path, "", "with `expose_as`, no path can have a `*`")
	}
	a.ExposeAs = name
}

// ReportTypes are the types of reports that artifacts:reports may have, with the formats of coverage_report in its place.
func ReportTypes() []string {
	return []string{
		"accessibility", "annotations", "api_fuzzing", "browser_performance", "cluster_image_scanning", "codequality",
		"cobertura", "container_scanning", "coverage_fuzzing", "cyclonedx", "dast", "dependency_scanning", "dotenv", "jacoco", "junit",
		"license_scanning", "load_performance", "lsif", "metrics", "performance", "repository_xray", "requirements",
		"requirements_v2", "sarif", "sast", "secret_detection", "terraform",
	}
}

// coverageFormats are those of coverage_report.
func coverageFormats() []string { return []string{"cobertura", "jacoco"} }

func (c *compiler) reports(n *node, path string) []Report {
	if n.kind != kindMap {
		c.fail(n, path, "write junit: report.xml", "this must be a mapping of report types to files, it is %s", n.kind)
		return nil
	}
	known := keywords{"coverage_report": true}
	for _, t := range ReportTypes() {
		known[t] = true
	}
	for _, format := range coverageFormats() {
		delete(known, format)
	}
	c.check(n, path, known)
	var out []Report
	for _, f := range n.fields {
		here := join(path, f.key)
		switch {
		case f.value.kind == kindNull || !known[f.key]:
		case f.key == "coverage_report":
			if r, ok := c.coverageReport(f.value, here); ok {
				out = append(out, r)
			}
		case f.value.kind == kindString:
			out = append(out, Report{Type: f.key, Paths: []string{f.value.text}})
		default:
			paths, _ := c.texts(f.value, here)
			out = append(out, Report{Type: f.key, Paths: paths})
		}
	}
	return out
}

func (c *compiler) coverageReport(n *node, path string) (Report, bool) {
	if n.kind != kindMap {
		c.fail(n, path, "write {coverage_format: cobertura, path: coverage.xml}", "this must be a mapping, it is %s", n.kind)
		return Report{}, false
	}
	c.check(n, path, keywords{"coverage_format": true, "path": true})
	read := func(key string) *node {
		v := n.present(key)
		if v == nil {
			c.fail(n, path, "", "%s", fmt.Sprintf("the report has no `%s`", key))
		}
		return v
	}
	format, file := read("coverage_format"), read("path")
	if format == nil || file == nil {
		return Report{}, false
	}
	r := Report{Type: c.choice(format, join(path, "coverage_format"), coverageFormats())}
	name, ok := c.text(file, join(path, "path"))
	if ok && blank(name) {
		c.fail(file, join(path, "path"), "", "the path is empty")
	}
	r.Paths = []string{name}
	return r, true
}

// pagesFolder is what GitLab adds to the artifacts of the job `pages`.
const pagesFolder = "public"

// withPages returns the artifacts of the job `pages`.
func (a *Artifacts) withPages() *Artifacts {
	if a == nil {
		return &Artifacts{Paths: []string{pagesFolder}}
	}
	if slices.Contains(a.Paths, pagesFolder) {
		return a
	}
	own := *a
	own.Paths = append(slices.Clone(a.Paths), pagesFolder)
	return &own
}
