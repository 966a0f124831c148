package tokens

import "time"

const (
	// lifePart of a token's life has passed when it is replaced (gitlab-runner's TokenResetIntervalFactor).
	lifePart = 0.75
	// earlyPart is the most of it by which chance brings that forward, so that tokens made together part.
	earlyPart = 0.02
)

// due returns when a token with that life is to be replaced; dice is in [0, 1). Zero: never, because it does not expire,
// or because it had expired before it was obtained: then one of the clocks is wrong and haste would make it worse.
func due(obtained, expires time.Time, dice float64) time.Time {
	life := expires.Sub(obtained)
	if expires.IsZero() || life <= 0 {
		return time.Time{}
	}
	return obtained.Add(time.Duration((lifePart - earlyPart*dice) * float64(life)))
}
