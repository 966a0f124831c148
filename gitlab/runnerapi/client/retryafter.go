package client

import (
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxRetryAfter caps what a header may ask for: a wrong clock or a broken proxy must not silence a runner for days.
const maxRetryAfter = 5 * time.Minute

// retryAfter reads how long the server wants to be left alone: RateLimit-ResetTime (a date; GitLab), else Retry-After
// (seconds or a date). Dates are compared with the server's own clock if it sent it. 0 means that it did not say.
func retryAfter(h http.Header, now time.Time) time.Duration {
	if date, err := http.ParseTime(h.Get("Date")); err == nil {
		now = date
	}
	wait := time.Duration(0)
	if t, err := http.ParseTime(h.Get("Ratelimit-Resettime")); err == nil {
		wait = t.Sub(now)
	}
	if v := h.Get("Retry-After"); v != "" && wait <= 0 {
		if seconds, err := strconv.ParseInt(v, 10, 64); err == nil {
			wait = time.Duration(min(seconds, int64(maxRetryAfter/time.Second))) * time.Second
		} else if t, err := http.ParseTime(v); err == nil {
			wait = t.Sub(now)
		}
	}
	return min(max(wait, 0), maxRetryAfter)
}

// seconds reads a header of whole seconds; 0 if it is missing, odd or negative, at most limit.
func seconds(v string, limit time.Duration) time.Duration {
	n, err := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
	if err != nil || n <= 0 {
		return 0
	}
	return time.Duration(min(n, int64(limit/time.Second))) * time.Second
}
