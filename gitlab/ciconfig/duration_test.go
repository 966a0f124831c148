package ciconfig

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"42":                  42 * time.Second,
		"3600":                time.Hour,
		"42 seconds":          42 * time.Second,
		"3 mins 4 sec":        184 * time.Second,
		"2 hrs 20 min":        140 * time.Minute,
		"2h20min":             140 * time.Minute,
		"1h 30m":              90 * time.Minute,
		"90 minutes":          90 * time.Minute,
		"6 mos 1 day":         181 * 24 * time.Hour,
		"47 yrs 6 mos and 4d": 47*31_557_600*time.Second + 184*24*time.Hour,
		"3 weeks and 2 days":  23 * 24 * time.Hour,
		"1 hour, 2 minutes":   62 * time.Minute,
		"1.5 hours":           90 * time.Minute,
		".5h":                 30 * time.Minute,
		"1 hour 30":           time.Hour + 30*time.Second,
		"day":                 24 * time.Hour,
		"minute 30 sec":       90 * time.Second,
		"1:30":                90 * time.Second,
		"1:30:00":             90 * time.Minute,
		"1:00:00:00":          24 * time.Hour,
		"1H":                  time.Hour,
	} {
		got, err := ParseDuration(text)
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "0", "0s", "soon", "1 parsec", "1,5 h", "-", "ten minutes", "5 10 minutes", "1h later", "99999999999999999 years"} {
		_, err := ParseDuration(text)
		require.Error(t, err, text)
	}
}
