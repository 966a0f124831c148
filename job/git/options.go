package git

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Strategy says how sources are got (GIT_STRATEGY).
type Strategy string

// The strategies.
const (
	Fetch Strategy = "fetch" // keep the working copy that is there and fetch into it
	Clone Strategy = "clone" // begin with an empty folder
	None  Strategy = "none"  // leave the folder as it is
	Empty Strategy = "empty" // begin with an empty folder and leave it so
)

// SubmoduleStrategy says which submodules are got (GIT_SUBMODULE_STRATEGY).
type SubmoduleStrategy string

// The strategies for submodules; the zero value is NoSubmodules too.
const (
	NoSubmodules        SubmoduleStrategy = "none"
	NormalSubmodules    SubmoduleStrategy = "normal"    // those of the project
	RecursiveSubmodules SubmoduleStrategy = "recursive" // theirs as well
)

// Options are what a job's variables ask of its sources, with gitlab-runner's names and defaults.
type Options struct {
	Strategy Strategy
	Checkout bool // GIT_CHECKOUT
	// CleanFlags are those of git clean (GIT_CLEAN_FLAGS); nil means that it is not run.
	CleanFlags []string
	FetchFlags []string // GIT_FETCH_EXTRA_FLAGS
	// CloneFlags are GIT_CLONE_EXTRA_FLAGS; only NativeClone has a use for them.
	CloneFlags []string
	// ClonePath is GIT_CLONE_PATH as it stands in the variable; see [ClonePath].
	ClonePath string

	Submodules SubmoduleStrategy
	// SubmodulePaths are pathspecs that choose among the submodules; none chooses all.
	SubmodulePaths       []string
	SubmoduleDepth       int // 0: all history
	SubmoduleUpdateFlags []string
	// ForceHTTPS fetches submodules that have SSH addresses at this GitLab by HTTP (GIT_SUBMODULE_FORCE_HTTPS).
	ForceHTTPS bool

	// SkipLFS: large files stay pointers (GIT_LFS_SKIP_SMUDGE).
	SkipLFS bool

	NativeClone bool // FF_USE_GIT_NATIVE_CLONE
	BundleURIs  bool // FF_USE_GIT_BUNDLE_URIS
	Correlate   bool // FF_USE_GITALY_CORRELATION_ID: CorrelationID is sent
	CleanUp     bool // FF_ENABLE_JOB_CLEANUP: Sources.CleanUp is to be called when the job has ended

	Server Server
}

// Server is what a job is told about its GitLab: where SSH addresses lead and what the project is called.
type Server struct {
	URL         string // CI_SERVER_URL
	Host        string // CI_SERVER_HOST
	SSHHost     string // CI_SERVER_SHELL_SSH_HOST
	SSHPort     string // CI_SERVER_SHELL_SSH_PORT
	ProjectPath string // CI_PROJECT_PATH
}

// ReadOptions reads the variables by value. gitDepth is the payload's git_info.depth, allowFetch its allow_git_fetch. What
// cannot be understood keeps its default and is told to warn, as in gitlab-runner; an error names a variable without
// which it is not known what the job wants.
//
// FF_GIT_URLS_WITHOUT_TOKENS has no field: URLs never hold tokens here.
func ReadOptions(value func(string) string, allowFetch bool, gitDepth int, warn func(string)) (Options, error) {
	v := reader{value: value, warn: warn}
	o := Options{
		Strategy:    v.strategy(allowFetch),
		CleanFlags:  v.flags("GIT_CLEAN_FLAGS", "-ffdx"),
		FetchFlags:  v.flags("GIT_FETCH_EXTRA_FLAGS", "--prune", "--quiet"),
		CloneFlags:  v.flags("GIT_CLONE_EXTRA_FLAGS"),
		ClonePath:   value("GIT_CLONE_PATH"),
		SkipLFS:     v.boolean("GIT_LFS_SKIP_SMUDGE", false),
		NativeClone: v.boolean("FF_USE_GIT_NATIVE_CLONE", false),
		BundleURIs:  v.boolean("FF_USE_GIT_BUNDLE_URIS", true),
		Correlate:   v.boolean("FF_USE_GITALY_CORRELATION_ID", true),
		CleanUp:     v.boolean("FF_ENABLE_JOB_CLEANUP", false),
		Submodules:  NoSubmodules,
		Server: Server{
			URL: value("CI_SERVER_URL"), Host: value("CI_SERVER_HOST"), ProjectPath: value("CI_PROJECT_PATH"),
			SSHHost: value("CI_SERVER_SHELL_SSH_HOST"), SSHPort: value("CI_SERVER_SHELL_SSH_PORT"),
		},
	}
	if o.Strategy == None || o.Strategy == Empty {
		return o, nil
	}
	o.Checkout = v.boolean("GIT_CHECKOUT", true)
	if len(o.CloneFlags) > 0 && (!o.NativeClone || o.Strategy != Clone) {
		warn("GIT_CLONE_EXTRA_FLAGS: has no effect without GIT_STRATEGY 'clone' and FF_USE_GIT_NATIVE_CLONE 'true'")
	}
	switch s := SubmoduleStrategy(value("GIT_SUBMODULE_STRATEGY")); s {
	case "", NoSubmodules:
		return o, nil
	case NormalSubmodules, RecursiveSubmodules:
		o.Submodules = s
	default:
		return o, fmt.Errorf("GIT_SUBMODULE_STRATEGY: expected either 'normal', 'recursive' or 'none', got %q", s)
	}
	o.SubmodulePaths = strings.Fields(value("GIT_SUBMODULE_PATHS"))
	if slices.Contains(o.SubmodulePaths, ":(exclude)") {
		return o, fmt.Errorf("GIT_SUBMODULE_PATHS: %q has a bare :(exclude): write the path right behind it, as in :(exclude)some/path",
			value("GIT_SUBMODULE_PATHS"))
	}
	o.SubmoduleDepth = v.depth("GIT_SUBMODULE_DEPTH", gitDepth)
	o.SubmoduleUpdateFlags = strings.Fields(value("GIT_SUBMODULE_UPDATE_FLAGS"))
	o.ForceHTTPS = v.boolean("GIT_SUBMODULE_FORCE_HTTPS", false)
	return o, nil
}

type reader struct {
	value func(string) string
	warn  func(string)
}

func (r reader) strategy(allowFetch bool) Strategy {
	fallback := Clone
	if allowFetch {
		fallback = Fetch
	}
	switch v := Strategy(r.value("GIT_STRATEGY")); v {
	case "":
		return fallback
	case Clone, Fetch, None, Empty:
		return v
	default:
		r.warn(fmt.Sprintf("GIT_STRATEGY: expected either 'clone', 'fetch', 'none' or 'empty', got %q, using default value '%s'", v, fallback))
		return fallback
	}
}

func (r reader) boolean(name string, def bool) bool {
	raw := r.value(name)
	if raw == "" {
		return def
	}
	v, err := strconv.ParseBool(raw)
	if err != nil {
		r.warn(fmt.Sprintf("%s: expected bool, got %q, using default value: %t", name, raw, def))
		return def
	}
	return v
}

func (r reader) depth(name string, def int) int {
	raw := r.value(name)
	if raw == "" {
		return def
	}
	v, err := strconv.Atoi(raw)
	if err != nil {
		r.warn(fmt.Sprintf("%s: expected int, got %q, using default value: %d", name, raw, def))
		return def
	}
	return max(v, 0)
}

func (r reader) flags(name string, def ...string) []string {
	switch raw := r.value(name); raw {
	case "":
		return def
	case "none":
		return nil
	default:
		return strings.Fields(raw)
	}
}

// ClonePath returns the project folder that GIT_CLONE_PATH names: a folder within buildsDir, which is absolute.
func ClonePath(buildsDir, value string) (string, error) {
	refuse := func(why string) (string, error) {
		return "", fmt.Errorf("the GIT_CLONE_PATH=%q has to be within %q: %w (begin it with $CI_BUILDS_DIR/)", value, buildsDir, errors.New(why))
	}
	if strings.IndexByte(value, 0) >= 0 {
		return refuse("it holds a zero byte")
	}
	if !filepath.IsAbs(value) {
		return refuse("it is not an absolute path")
	}
	switch rel, err := filepath.Rel(buildsDir, value); {
	case err != nil || rel == ".." || strings.HasPrefix(rel, "../"):
		return refuse("it leads elsewhere")
	case rel == ".":
		return refuse("it is that folder itself")
	}
	return filepath.Clean(value), nil
}
