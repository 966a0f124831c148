package job

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/switchyard-ci/switchyard/job/git"
)

// settings are what a job's variables ask of the runner. Reading them is pure.
type settings struct {
	strategy       git.Strategy
	clonePath      string
	checkout       bool
	cleanFlags     []string
	fetchFlags     []string
	submodules     string
	attempts       int
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
}

const defaultAfterTimeout = 5 * time.Minute

// readSettings reads the variables by value; what cannot be understood keeps its default and gives a warning. keys are all
// variables' names, jobTimeout is the greatest meaningful timeout.
func readSettings(value func(string) string, keys []string, allowFetch bool, jobTimeout time.Duration) (s settings, warnings []string) {
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
	flags := func(name string, def ...string) []string {
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
	s.cleanFlags = flags("GIT_CLEAN_FLAGS", "-ffdx")
	s.fetchFlags = flags("GIT_FETCH_EXTRA_FLAGS", "--prune", "--quiet")
	if s.strategy == git.Fetch || s.strategy == git.Clone {
		if s.submodules = value("GIT_SUBMODULE_STRATEGY"); s.submodules == "none" {
			s.submodules = ""
		}
	}
	s.attempts = 1
	if raw := value("GET_SOURCES_ATTEMPTS"); raw != "" {
		n, err := strconv.Atoi(raw)
		if err != nil || n < 1 || n > 10 {
			warn("GET_SOURCES_ATTEMPTS: expected a number from 1 to 10, got %q, using the nearest", raw)
			n = min(max(n, 1), 10)
		}
		s.attempts = n
	}
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

	// gitlab-runner has timestamps by default; here a trace is what the job wrote unless it asks for them.
	s.timestamps = boolean("FF_TIMESTAMPS", false)
	s.sections = boolean("FF_SCRIPT_SECTIONS", false)
	s.checkExitCodes = boolean("FF_ENABLE_BASH_EXIT_CODE_CHECK", false)
	s.cleanUp = boolean("FF_ENABLE_JOB_CLEANUP", false)
	s.maskAllTokens = boolean("FF_MASK_ALL_DEFAULT_TOKENS", true)
	s.backOff = boolean("FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY", true)
	s.bundleURIs = boolean("FF_USE_GIT_BUNDLE_URIS", true)
	for _, key := range keys {
		if strings.HasPrefix(key, "FF_") && !slices.Contains(knownFlags[:], key) && boolean(key, false) {
			warn("%s: this feature flag is not supported and has no effect", key)
		}
	}
	return s, warnings
}

// knownFlags are the feature flags that are implemented, and those whose effect is always there or that are about what
// this program does not do in gitlab-runner's way.
var knownFlags = [...]string{
	"FF_TIMESTAMPS", "FF_SCRIPT_SECTIONS", "FF_ENABLE_BASH_EXIT_CODE_CHECK", "FF_ENABLE_JOB_CLEANUP",
	"FF_MASK_ALL_DEFAULT_TOKENS", "FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY", "FF_USE_GIT_BUNDLE_URIS",
	"FF_GIT_URLS_WITHOUT_TOKENS", "FF_POSIXLY_CORRECT_ESCAPES", "FF_SET_PERMISSIONS_BEFORE_CLEANUP",
	"FF_SKIP_NOOP_BUILD_STAGES", "FF_USE_NEW_BASH_EVAL_STRATEGY", "FF_USE_LEGACY_BASH_EVAL", "FF_USE_GIT_NATIVE_CLONE",
	"FF_USE_FASTZIP", "FF_USE_DIRECT_DOWNLOAD", "FF_USE_PARALLEL_ARTIFACT_TRANSFER", "FF_HASH_CACHE_KEYS",
	"FF_CLEAN_UP_FAILED_CACHE_EXTRACT", "FF_USE_ADAPTIVE_REQUEST_CONCURRENCY", "FF_USE_JOB_ROUTER", "FF_CONCRETE",
	"FF_USE_DYNAMIC_TRACE_FORCE_SEND_INTERVAL", "FF_ENABLE_JOB_INPUTS_INTERPOLATION", "FF_SECRET_RESOLVING_FAILS_IF_MISSING",
	"FF_EXPORT_HIGH_CARDINALITY_METRICS", "FF_LOG_IMAGES_CONFIGURED_FOR_JOB", "FF_DISABLE_AUTOMATIC_TOKEN_ROTATION",
	"FF_USE_GITALY_CORRELATION_ID", "FF_NETWORK_PER_BUILD", "FF_USE_POWERSHELL_PATH_RESOLVER", "FF_USE_POD_ACTIVE_DEADLINE_SECONDS",
	"FF_USE_WINDOWS_LEGACY_PROCESS_STRATEGY", "FF_USE_WINDOWS_JOB_OBJECT", "FF_DISABLE_POWERSHELL_STDIN",
}
