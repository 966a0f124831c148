package ciconfig

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var (
	durationNumber = regexp.MustCompile(`[0-9]*\.?[0-9]+`)
	durationClock  = regexp.MustCompile(`^[0-9]+:[0-9]+(?::[0-9]+){0,4}(?:\.[0-9]*)?$`)
)

// durationUnits are GitLab's (ChronicDuration): a month has 30 days, a year 365.25.
func durationUnit(word string) (seconds float64, ok bool) {
	switch word {
	case "seconds", "second", "secs", "sec", "s":
		return 1, true
	case "minutes", "minute", "mins", "min", "m":
		return 60, true
	case "hours", "hour", "hrs", "hr", "h":
		return 3600, true
	case "days", "day", "dy", "d":
		return 24 * 3600, true
	case "weeks", "week", "wks", "wk", "w":
		return 7 * 24 * 3600, true
	case "months", "month", "mos", "mo":
		return 30 * 24 * 3600, true
	case "years", "year", "yrs", "yr", "y":
		return 31_557_600, true
	}
	return 0, false
}

// ParseDuration reads a duration as GitLab writes them: "1h 30m", "90 minutes", "3600" (seconds), "1:30:00",
// "3 weeks and 2 days". Words that are neither a unit nor "and", "with" or "plus" are an error, and so is 0.
func ParseDuration(text string) (time.Duration, error) {
	s := strings.ToLower(text)
	if clock := strings.ReplaceAll(s, " ", ""); durationClock.MatchString(clock) {
		return checkDuration(text, clockSeconds(clock))
	}
	words := strings.Fields(durationNumber.ReplaceAllString(s, " $0 "))
	var sum float64
	for i := 0; i < len(words); i++ {
		word := strings.Trim(words[i], ",")
		if durationNumber.MatchString(word) {
			n, err := strconv.ParseFloat(word, 64)
			if err != nil {
				return 0, fmt.Errorf("%q is not a duration: %q is not a number", text, word)
			}
			factor := 1.0 // the last number may go without a unit
			if i+1 < len(words) {
				next := strings.Trim(words[i+1], ",")
				unit, ok := durationUnit(next)
				switch {
				case ok:
				case durationNumber.MatchString(next) || joinsDurations(next):
					return 0, fmt.Errorf("%q is not a duration: %s has no unit", text, word)
				default:
					return 0, fmt.Errorf("%q is not a duration: %q is no unit of time", text, next)
				}
				factor = unit
				i++
			}
			sum += n * factor
			continue
		}
		unit, ok := durationUnit(word)
		switch {
		case ok && i == 0: // "day" is "1 day"
			sum += unit
		case ok || joinsDurations(word):
		default:
			return 0, fmt.Errorf("%q is not a duration: %q is no unit of time", text, word)
		}
	}
	return checkDuration(text, sum)
}

func joinsDurations(word string) bool { return word == "and" || word == "with" || word == "plus" }

// clockSeconds reads "h:m:s"; further parts to the left are days, months and years.
func clockSeconds(clock string) float64 {
	weights := []float64{1, 60, 3600, 24 * 3600, 30 * 24 * 3600, 31_557_600}
	parts := strings.Split(clock, ":")
	var sum float64
	for i, part := range parts {
		n, err := strconv.ParseFloat(strings.TrimSuffix(part, "."), 64)
		if err != nil {
			return 0
		}
		sum += n * weights[len(parts)-1-i]
	}
	return sum
}

func checkDuration(text string, seconds float64) (time.Duration, error) {
	if seconds <= 0 || seconds > math.MaxInt64/1e9/2 {
		return 0, fmt.Errorf("%q is not a duration", text)
	}
	return time.Duration(math.Round(seconds * 1e9)), nil
}

const (
	maxTimeout = 2_629_746 * time.Second // a month, GitLab's Project::MAX_BUILD_TIMEOUT
	maxStartIn = 7 * 24 * time.Hour
	// maxDuration is the longest that ParseDuration returns.
	maxDuration = math.MaxInt64
)

// duration reads a duration of at most limit.
func (c *compiler) duration(n *node, path string, limit time.Duration, name string) time.Duration {
	const hint = `write it as "1h 30m", "90 minutes" or "3600" (seconds)`
	if n.kind != kindString {
		c.fail(n, path, hint, "a duration must be a string, this is %s", n.kind)
		return 0
	}
	d, err := ParseDuration(n.text)
	if err != nil {
		c.fail(n, path, hint, "%s", err)
		return 0
	}
	if d > limit {
		c.fail(n, path, "", "%q is longer than %s, the most that GitLab allows", n.text, name)
		return 0
	}
	return d
}
