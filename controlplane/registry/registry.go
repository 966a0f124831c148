// Package registry holds what is administered: the runners and which agents may serve them.
package registry

import (
	"log/slog"
	"maps"
	"slices"
	"strings"
)

// Runner is a registration in GitLab with the way in which its jobs are executed. All agents that its selector matches
// are interchangeable for its jobs.
type Runner struct {
	Name        string // unique in the fleet
	URL         string // of the GitLab, http or https, without a slash at its end
	Token       string // secret
	CAFile      string // PEM of certificates that are trusted in addition to the system's; may be empty
	CertFile    string // PEM of a client certificate for that GitLab, and of its key; both or neither
	KeyFile     string
	Executor    string
	Limit       int   // jobs at once; 0 for no limit
	OutputLimit int64 // bytes of trace per job
	Selector    Selector
	Labels      map[string]string // shown in GitLab's list of runners; nothing depends on them
	Settings    Settings
}

// ShortToken returns the short form of the runner's configured token; see the function of that name.
func (r Runner) ShortToken() string { return ShortToken(r.Token) }

// ShortToken returns what GitLab shows of a token and what is part of job paths: up to nine characters after the prefix
// that says what kind of token it is.
func ShortToken(token string) string {
	for _, prefix := range []string{"glrt-", "glrtr-", "glcbt-"} {
		if rest, ok := strings.CutPrefix(token, prefix); ok {
			token = rest
			break
		}
	}
	for _, kind := range []string{"t1_", "t2_", "t3_"} {
		if rest, ok := strings.CutPrefix(token, kind); ok {
			token = rest
			break
		}
	}
	if len(token) > 9 && strings.HasPrefix(token, "GR") && isHex(token[2:9]) {
		token = token[9:]
	}
	return token[:min(len(token), 9)]
}

func isHex(s string) bool {
	return strings.Trim(s, "0123456789abcdefABCDEF") == ""
}

// LogValue keeps the token out of logs.
func (r Runner) LogValue() slog.Value {
	return slog.GroupValue(slog.String("name", r.Name), slog.String("url", r.URL), slog.String("executor", r.Executor),
		slog.String("token", r.ShortToken()+"…"), slog.String("agents", r.Selector.String()))
}

// Selector says which agents may serve a runner: those that have all of its labels with these values. An empty one
// matches every agent.
type Selector map[string]string

// Matches says whether an agent with these labels may serve the runner.
func (s Selector) Matches(labels map[string]string) bool {
	for key, value := range s {
		if have, ok := labels[key]; !ok || have != value {
			return false
		}
	}
	return true
}

// String is "key=value,…", ordered by key; it is the same for equal selectors.
func (s Selector) String() string {
	pairs := make([]string, 0, len(s))
	for _, key := range slices.Sorted(maps.Keys(s)) {
		pairs = append(pairs, key+"="+s[key])
	}
	return strings.Join(pairs, ",")
}
