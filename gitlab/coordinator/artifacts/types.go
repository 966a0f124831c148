// Package artifacts keeps what jobs upload: the archives of their files and their reports. It knows the types that
// GitLab knows, their formats and names (Enums::Ci::JobArtifact), receives files onto the disk and lists what is in an
// archive. Who may upload and download is the coordinator's to say.
package artifacts

import (
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// The formats of uploads.
const (
	Zip  = "zip"
	Gzip = "gzip"
	Raw  = "raw"
)

// The types of uploads that mean something to the coordinator; the others are reports that it keeps.
const (
	Archive = "archive"
	Dotenv  = "dotenv"
)

// kind is what GitLab knows of a type.
type kind struct{ format, name string }

var kinds = map[string]kind{
	Archive:    {Zip, ""},
	"metadata": {Gzip, ""},
	"trace":    {Raw, ""},

	"accessibility":          {Raw, "gl-accessibility.json"},
	"annotations":            {Gzip, "gl-annotations.json"},
	"api_fuzzing":            {Raw, "gl-api-fuzzing-report.json"},
	"browser_performance":    {Raw, "browser-performance.json"},
	"cluster_applications":   {Gzip, "gl-cluster-applications.json"},
	"cluster_image_scanning": {Raw, "gl-cluster-image-scanning-report.json"},
	"cobertura":              {Gzip, "cobertura-coverage.xml"},
	"codequality":            {Raw, "gl-code-quality-report.json"},
	"container_scanning":     {Raw, "gl-container-scanning-report.json"},
	"coverage_fuzzing":       {Raw, "gl-coverage-fuzzing.json"},
	"cyclonedx":              {Gzip, "gl-sbom.cdx.json"},
	"dast":                   {Raw, "gl-dast-report.json"},
	"dependency_scanning":    {Raw, "gl-dependency-scanning-report.json"},
	Dotenv:                   {Gzip, ".env"},
	"jacoco":                 {Gzip, "jacoco-coverage.xml"},
	"junit":                  {Gzip, "junit.xml"},
	"license_scanning":       {Raw, "gl-license-scanning-report.json"},
	"load_performance":       {Raw, "load-performance.json"},
	"lsif":                   {Zip, "lsif.json"},
	"metrics":                {Gzip, "metrics.txt"},
	"metrics_referee":        {Gzip, ""},
	"network_referee":        {Gzip, ""},
	"performance":            {Raw, "performance.json"},
	"repository_xray":        {Gzip, "gl-repository-xray.json"},
	"requirements":           {Raw, "requirements.json"},
	"requirements_v2":        {Raw, "requirements_v2.json"},
	"sarif":                  {Raw, "gl-sarif-report.sarif"},
	"sast":                   {Raw, "gl-sast-report.json"},
	"scip":                   {Zip, "index.scip"},
	"secret_detection":       {Raw, "gl-secret-detection-report.json"},
	"terraform":              {Raw, "tfplan.json"},
}

// KnownType says whether GitLab has the type.
func KnownType(t string) bool { return kinds[t].format != "" }

// KnownFormat says whether GitLab has the format.
func KnownFormat(f string) bool { return slices.Contains([]string{Zip, Gzip, Raw}, f) }

// FormatOf is the only format in which a type may be uploaded; empty for an unknown type.
func FormatOf(t string) string { return kinds[t].format }

// ReportName is the name that a report of the type has when it is uploaded; empty for what is no report.
func ReportName(t string) string { return kinds[t].name }

// Artifact is a file that was uploaded.
type Artifact struct {
	Type, Format string
	Name         string // of the file, as the runner named it
	Size         int64  // bytes
	SHA256       string // in hexadecimal digits
	// Access says who may download it apart from the jobs of its project: all, developer, maintainer or none.
	Access    string
	CreatedAt time.Time
	ExpiresAt time.Time // zero: never
	// ExposedAs is the name that `expose_as` gives the archive.
	ExposedAs string

	// Path is where it is; it may be gone when its time is over.
	Path string
}

// Expired says whether its time is over.
func (a *Artifact) Expired(now time.Time) bool {
	return !a.ExpiresAt.IsZero() && !now.Before(a.ExpiresAt)
}

var notInAName = regexp.MustCompile(`[^\pL\pN_.+-]`)

// CleanName is the last part of a file's name with the characters that GitLab leaves in it (CarrierWave::SanitizedFile).
func CleanName(name string) string {
	name = path.Base(strings.ReplaceAll(strings.ToValidUTF8(name, "_"), `\`, "/"))
	name = notInAName.ReplaceAllString(name, "_")
	if strings.Trim(name, ".") == "" {
		return "_" + name
	}
	const longest = 255
	if len(name) > longest {
		name = strings.ToValidUTF8(name[len(name)-longest:], "")
	}
	return name
}
