package policy

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What the user's page and the front page tell people to write is a policy that can be used.
func TestThePagesTellWhatCanBeUsed(t *testing.T) {
	page, err := os.ReadFile("../../docs/fair-usage.md")
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(page), "| I want … |")
	require.True(t, ok)
	table, rest, ok := strings.Cut(rest, "\n\n")
	require.True(t, ok)
	span := regexp.MustCompile("`([a-z]+: [^`]+)`")
	rows := 0
	for row := range strings.SplitSeq(table, "\n") {
		var text strings.Builder
		for _, m := range span.FindAllStringSubmatch(row, -1) {
			text.WriteString(m[1] + "\n")
		}
		if text.Len() == 0 {
			continue
		}
		rows++
		_, warnings, err := Parse("policy.yaml", []byte(text.String()))
		require.NoError(t, err, row)
		require.Empty(t, warnings, row)
	}
	require.GreaterOrEqual(t, rows, 14)

	front, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	_, example, ok := strings.Cut(string(front), "## Fair usage\n")
	require.True(t, ok)
	for _, text := range []string{example, rest} {
		_, block, ok := strings.Cut(text, "```yaml\n")
		require.True(t, ok)
		block, _, _ = strings.Cut(block, "```")
		_, warnings, err := Parse("policy.yaml", []byte(block))
		require.NoError(t, err, block)
		require.Empty(t, warnings, block)
	}

	// Every key has a row.
	for key := range strings.FieldsSeq(`share projects groups nodes[] nodes[].path nodes[].gitlab nodes[].classes classes class_patience rules[] rules[].name
		rules[].when rules[].class rules[].priority ageing runners[] runners[].name runners[].group runners[].hold runners[].claim_ahead.jobs
		runners[].claim_ahead.for placement[] placement[].runners placement[].strategy placement[].warm placement[].warm_wait credit half_life
		first_guess weight guaranteed soft_quota hard_quota paused`) {
		require.Regexp(t, "(?m)^\\|.*`"+regexp.QuoteMeta(key)+"`", rest)
	}
}
