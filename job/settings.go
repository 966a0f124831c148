package job

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// settings are what a job's variables ask of the runner. Reading them is pure.
type settings struct {
	// attempts are those of get_sources, restore_cache, download_artifacts and of starting a script.
	attempts, cacheAttempts, artifactAttempts, sectionAttempts int

	debugTrace     bool
	ignoreAfter    bool // AFTER_SCRIPT_IGNORE_ERRORS
	scriptTimeout  time.Duration
	afterTimeout   time.Duration
	timestamps     bool
	sections       bool
	checkExitCodes bool
	maskAllTokens  bool
	backOff        bool
	skipEmpty      bool
}

const defaultAfterTimeout = 5 * time.Minute

// readSettings reads the variables by value; what cannot be understood keeps its default and gives a warning. flags are the
// feature flags' values, jobTimeout is the greatest meaningful timeout.
func readSettings(value func(string) string, flags map[string]bool, jobTimeout time.Duration) (s settings, warnings []string) {
	warn := func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) }

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
	s.maskAllTokens = flags["FF_MASK_ALL_DEFAULT_TOKENS"]
	s.backOff = flags["FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY"]
	s.skipEmpty = flags["FF_SKIP_NOOP_BUILD_STAGES"]
	return s, warnings
}
