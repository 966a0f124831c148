package job

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/switchyard-ci/switchyard/gitlab/runnerapi"
)

// flag is one of gitlab-runner's feature flags (helpers/featureflags/flags.go there).
type flag struct {
	name string
	// value is the default, or the only value if fixed says why there is no other.
	value bool
	fixed string
}

// Why a flag cannot be changed.
const (
	better     = "it is always so here"
	notHere    = "this runner does not work in that way"
	notThisJob = "it does not concern jobs"
	windows    = "this runner has no Windows shells"
	pods       = "only the kubernetes executor has pods"
)

// flags are all that gitlab-runner has. Scripts see their values, as they do there.
var flags = [...]flag{
	{name: "FF_CLEAN_UP_FAILED_CACHE_EXTRACT"},
	{name: "FF_CONCRETE", fixed: notHere},
	{name: "FF_DISABLE_AUTOMATIC_TOKEN_ROTATION", fixed: notThisJob},
	{name: "FF_DISABLE_POWERSHELL_STDIN", fixed: windows},
	{name: "FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR", fixed: "files are made writable for the image's user instead of being given to it"},
	{name: "FF_DISABLE_UMASK_FOR_KUBERNETES_EXECUTOR", fixed: "files are made writable for the image's user instead of being given to it"},
	{name: "FF_ENABLE_BASH_EXIT_CODE_CHECK"},
	{name: "FF_ENABLE_JOB_CLEANUP"},
	{name: "FF_ENABLE_JOB_INPUTS_INTERPOLATION", fixed: "jobs with inputs are refused"},
	{name: "FF_EXPORT_HIGH_CARDINALITY_METRICS", fixed: notThisJob},
	{name: "FF_GIT_URLS_WITHOUT_TOKENS", value: true, fixed: better},
	{name: "FF_HASH_CACHE_KEYS"},
	{name: "FF_KUBERNETES_HONOR_ENTRYPOINT", value: true, fixed: better},
	{name: "FF_LOG_IMAGES_CONFIGURED_FOR_JOB", fixed: notThisJob},
	{name: "FF_MASK_ALL_DEFAULT_TOKENS", value: true},
	{name: "FF_NETWORK_PER_BUILD", value: true, fixed: better},
	{name: "FF_POSIXLY_CORRECT_ESCAPES", value: true, fixed: better},
	{name: "FF_PRINT_POD_EVENTS", fixed: pods},
	{name: "FF_RESOLVE_FULL_TLS_CHAIN", fixed: notThisJob},
	{name: "FF_SCRIPT_SECTIONS"},
	{name: "FF_SCRIPT_TO_STEP_MIGRATION", fixed: notHere},
	{name: "FF_SECRET_RESOLVING_FAILS_IF_MISSING", value: true, fixed: "jobs with secrets are refused"},
	{name: "FF_SET_PERMISSIONS_BEFORE_CLEANUP", value: true, fixed: better},
	{name: "FF_SKIP_NOOP_BUILD_STAGES", value: true},
	{name: "FF_SUSPENDABLE_ENVIRONMENTS", fixed: notHere},
	{name: "FF_TIMESTAMPS"}, // gitlab-runner's default is true; here a trace is what the job wrote unless it asks for more
	{name: "FF_USE_ADAPTIVE_REQUEST_CONCURRENCY", value: true, fixed: notThisJob},
	{name: "FF_USE_ADVANCED_POD_SPEC_CONFIGURATION", fixed: pods},
	{name: "FF_USE_DIRECT_DOWNLOAD", value: true},
	{name: "FF_USE_DOCKER_AUTOSCALER_DIAL_STDIO", value: true, fixed: notThisJob},
	{name: "FF_USE_DUMB_INIT_WITH_KUBERNETES_EXECUTOR", value: true, fixed: better},
	{name: "FF_USE_DYNAMIC_TRACE_FORCE_SEND_INTERVAL", fixed: notThisJob},
	{name: "FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY", value: true},
	{name: "FF_USE_FASTZIP", value: true, fixed: better},
	{name: "FF_USE_FLEETING_ACQUIRE_HEARTBEATS", fixed: notThisJob},
	{name: "FF_USE_GITALY_CORRELATION_ID", fixed: "the request that brought the job is the control plane's"},
	{name: "FF_USE_GIT_BUNDLE_URIS", value: true},
	{name: "FF_USE_GIT_NATIVE_CLONE"},
	{name: "FF_USE_GIT_PROACTIVE_AUTH", value: true, fixed: better},
	{name: "FF_USE_INIT_WITH_DOCKER_EXECUTOR", value: true, fixed: better},
	{name: "FF_USE_JOB_ROUTER", fixed: notThisJob},
	{name: "FF_USE_LEGACY_GCS_CACHE_ADAPTER", fixed: notHere},
	{name: "FF_USE_LEGACY_KUBERNETES_EXECUTION_STRATEGY", fixed: notHere},
	{name: "FF_USE_LEGACY_S3_CACHE_ADAPTER", fixed: notHere},
	{name: "FF_USE_NEW_BASH_EVAL_STRATEGY", value: true, fixed: better},
	{name: "FF_USE_PARALLEL_ARTIFACT_TRANSFER"},
	{name: "FF_USE_PARALLEL_CACHE_TRANSFER"},
	{name: "FF_USE_POD_ACTIVE_DEADLINE_SECONDS", value: true, fixed: better},
	{name: "FF_USE_POWERSHELL_PATH_RESOLVER", fixed: windows},
	{name: "FF_USE_WINDOWS_JOB_OBJECT", fixed: windows},
	{name: "FF_USE_WINDOWS_LEGACY_PROCESS_STRATEGY", fixed: windows},
	{name: "FF_WAIT_FOR_POD_TO_BE_REACHABLE", fixed: pods},
}

// FeatureFlag is one of gitlab-runner's feature flags, as jobs have it here.
type FeatureFlag struct {
	Name string
	// Default is the value without anybody's wish, or the only one if Fixed says why there is no other.
	Default bool
	Fixed   string
}

// FeatureFlags are all that are known, by name.
func FeatureFlags() []FeatureFlag {
	list := make([]FeatureFlag, len(flags))
	for i, f := range flags {
		list[i] = FeatureFlag{Name: f.name, Default: f.value, Fixed: f.fixed}
	}
	return list
}

// resolveFlags finds each flag's value: the runner's settings win over the job's variables, which win over the default.
// What was asked for and is not to be had is a warning. The job's variables without flags are returned with the flags'
// values before them.
func resolveFlags(job []runnerapi.Variable, runner map[string]bool) (resolved map[string]bool, variables []runnerapi.Variable, warnings []string) {
	asked := map[string]string{}
	rest := make([]runnerapi.Variable, 0, len(job))
	for _, v := range job {
		if strings.HasPrefix(v.Key, "FF_") {
			asked[v.Key] = v.Value
			if known(v.Key) {
				continue
			}
		}
		rest = append(rest, v)
	}
	resolved = make(map[string]bool, len(flags))
	variables = make([]runnerapi.Variable, 0, len(flags)+len(rest))
	for _, f := range flags {
		value := f.value
		if raw, ok := asked[f.name]; ok && raw != "" {
			v, err := strconv.ParseBool(raw)
			if err != nil {
				warnings = append(warnings, fmt.Sprintf("%s: expected bool, got %q, using default value: %t", f.name, raw, f.value))
			} else {
				value = v
			}
		}
		if v, ok := runner[f.name]; ok {
			value = v
		}
		if f.fixed != "" && value != f.value {
			warnings = append(warnings, fmt.Sprintf("%s=%t has no effect: %s", f.name, value, f.fixed))
			value = f.value
		}
		resolved[f.name] = value
		variables = append(variables, runnerapi.Variable{Key: f.name, Value: strconv.FormatBool(value), Public: true, Raw: true})
	}
	for _, key := range unknownFlags(asked, runner) {
		warnings = append(warnings, key+": this feature flag is not supported and has no effect")
	}
	return resolved, append(variables, rest...), warnings
}

// unknownFlags are those that somebody switched on and nobody here knows, sorted.
func unknownFlags(asked map[string]string, runner map[string]bool) []string {
	var keys []string
	for key, raw := range asked {
		if on, err := strconv.ParseBool(raw); !known(key) && (err != nil || on) && raw != "" {
			keys = append(keys, key)
		}
	}
	for key, on := range runner {
		if on && !known(key) && !slices.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

func known(key string) bool {
	return slices.ContainsFunc(flags[:], func(f flag) bool { return f.name == key })
}
