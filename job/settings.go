package job

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/job/git"
)

// settings are what a job's variables ask of the runner. Reading them is pure.
type settings struct {
	strategy   git.Strategy
	clonePath  string
	checkout   bool
	cleanFlags []string
	fetchFlags []string
	submodules string
	// attempts are those of get_sources, restore_cache, download_artifacts and of starting a script.
	attempts, cacheAttempts, artifactAttempts, sectionAttempts int

	debugTrace     bool
	ignoreAfter    bool // AFTER_SCRIPT_IGNORE_ERRORS
	scriptTimeout  time.Duration
	afterTimeout   time.Duration
	timestamps     bool
	sections       bool
	checkExitCodes bool
	cleanUp        bool
	maskAllTokens  bool
	backOff        bool
	bundleURIs     bool
	skipEmpty      bool
}

const defaultAfterTimeout = 5 * time.Minute

// readSettings reads the variables by value; what cannot be understood keeps its default and gives a warning. flags are the
// feature flags' values, jobTimeout is the greatest meaningful timeout.
func readSettings(value func(string) string, flags map[string]bool, allowFetch bool, jobTimeout time.Duration) (s settings, warnings []string) {
	warn := func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }

	fallback := git.Clone
	if allowFetch {
		fallback = git.Fetch
	}
	switch v := git.Strategy(value("GIT_STRATEGY")); v {
	case "":
		s.strategy = fallback
	case git.Clone, git.Fetch, git.None, git.Empty:
		s.strategy = v
	default:
		s.strategy = fallback
		warn("GIT_STRATEGY: expected either 'clone', 'fetch', 'none' or 'empty', got %q, using default value '%s'", v, fallback)
	}
	boolean := func(name string, def bool) bool {
		raw := value(name)
		if raw == "" {
			return def
		}
		v, err := strconv.ParseBool(raw)
		if err != nil {
			warn("%s: expected bool, got %q, using default value: %t", name, raw, def)
			return def
		}
		return v
	}
	words := func(name string, def ...string) []string {
		switch raw := value(name); raw {
		case "":
			return def
		case "none":
			return nil
		default:
			return strings.Fields(raw)
		}
	}
	s.clonePath = value("GIT_CLONE_PATH")
	s.checkout = boolean("GIT_CHECKOUT", true)
	s.cleanFlags = words("GIT_CLEAN_FLAGS", "-ffdx")
	s.fetchFlags = words("GIT_FETCH_EXTRA_FLAGS", "--prune", "--quiet")
	if s.strategy == git.Fetch || s.strategy == git.Clone {
		if s.submodules = value("GIT_SUBMODULE_STRATEGY"); s.submodules == "none" {
			s.submodules = ""
		}
	}
	attempts := func(name string) int {
		raw := value(name)
		if raw == "" {
			return 1
		}
		n, err := strconv.Atoi(raw)
		if err != nil || n < 1 || n > 10 {
			warn("%s: expected a number from 1 to 10, got %q, using the nearest", name, raw)
			n = min(max(n, 1), 10)
		}
		return n
	}
	s.attempts = attempts("GET_SOURCES_ATTEMPTS")
	s.cacheAttempts = attempts("RESTORE_CACHE_ATTEMPTS")
	s.artifactAttempts = attempts("ARTIFACT_DOWNLOAD_ATTEMPTS")
	s.sectionAttempts = attempts("EXECUTOR_JOB_SECTION_ATTEMPTS")
	s.debugTrace = boolean("CI_DEBUG_TRACE", false)
	s.ignoreAfter = boolean("AFTER_SCRIPT_IGNORE_ERRORS", true)

	duration := func(name string, def time.Duration) time.Duration {
		raw := strings.TrimSpace(value(name))
		if raw == "" {
			return def
		}
		d, err := time.ParseDuration(raw)
		switch {
		case err != nil:
			warn("Ignoring malformed %s timeout: %v", name, raw)
		case d < 0:
			warn("Ignoring relative %s timeout: %v", name, raw)
		case d > jobTimeout:
			warn("%s timeout: %v is longer than job timeout. Setting to job timeout", name, raw)
		case d > 0:
			return d
		}
		return def
	}
	s.scriptTimeout = duration("RUNNER_SCRIPT_TIMEOUT", 0)
	s.afterTimeout = duration("RUNNER_AFTER_SCRIPT_TIMEOUT", defaultAfterTimeout)

	s.timestamps = flags["FF_TIMESTAMPS"]
	s.sections = flags["FF_SCRIPT_SECTIONS"]
	s.checkExitCodes = flags["FF_ENABLE_BASH_EXIT_CODE_CHECK"]
	s.cleanUp = flags["FF_ENABLE_JOB_CLEANUP"]
	s.maskAllTokens = flags["FF_MASK_ALL_DEFAULT_TOKENS"]
	s.backOff = flags["FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY"]
	s.bundleURIs = flags["FF_USE_GIT_BUNDLE_URIS"]
	s.skipEmpty = flags["FF_SKIP_NOOP_BUILD_STAGES"]
	return s, warnings
}
