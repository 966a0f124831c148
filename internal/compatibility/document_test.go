package compatibility

import (
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// document is what the tests want of the page.
type document struct {
	rows     []row
	messages []message
}

// row is one of a table with a column "state".
type row struct {
	line    int
	section string // the nearest heading of second level
	below   string // the nearest heading of third level, below it; empty without one
	name    string // the first text in code quotes of the first cell, else the cell
	state   string
	cells   []string
}

func (r row) note() string { return r.cells[len(r.cells)-1] }

// message is a quotation of the code: in a row whose state is refused what its note begins with, anywhere else what comes after
// the word "message".
type message struct {
	line int
	text string
}

// names are those of the rows below a heading of second level.
func (d document) names(section string) (names []string) {
	for _, r := range d.rows {
		if r.section == section {
			names = append(names, r.name)
		}
	}
	return names
}

// section has the rows below a heading of second or third level, by name.
func (d document) section(heading string) map[string]row {
	rows := make(map[string]row)
	for _, r := range d.rows {
		if r.section == heading || r.below == heading {
			rows[r.name] = r
		}
	}
	return rows
}

var (
	code    = regexp.MustCompile("`([^`]+)`")
	quoting = regexp.MustCompile("(?i)\\bmessage\\s+`([^`]+)`")
	between = regexp.MustCompile(`\s*\n\s*`)
)

func parse(text string) document {
	var d document
	var section, below string
	table := false
	for i, line := range strings.Split(text, "\n") {
		switch {
		case strings.HasPrefix(line, "## "):
			section, below = strings.TrimPrefix(line, "## "), ""
		case strings.HasPrefix(line, "### "):
			below = strings.TrimPrefix(line, "### ")
		case !strings.HasPrefix(line, "|"):
			table = false
		case strings.HasPrefix(line, "|---"):
		default:
			cells := strings.Split(strings.Trim(line, "|"), "|")
			for j := range cells {
				cells[j] = strings.TrimSpace(cells[j])
			}
			if !table {
				table = len(cells) > 1 && cells[1] == "state"
				continue
			}
			r := row{line: i + 1, section: section, below: below, name: cells[0], cells: cells}
			if len(cells) > 1 {
				r.state = cells[1]
			}
			if m := code.FindStringSubmatch(cells[0]); m != nil && strings.HasPrefix(cells[0], "`") {
				r.name = m[1]
			}
			if m := code.FindStringSubmatchIndex(r.note()); r.state == "refused" && m != nil && m[0] == 0 {
				d.messages = append(d.messages, message{r.line, r.note()[m[2]:m[3]]})
			}
			d.rows = append(d.rows, r)
		}
	}
	for _, m := range quoting.FindAllStringSubmatchIndex(text, -1) {
		line := 1 + strings.Count(text[:m[0]], "\n")
		d.messages = append(d.messages, message{line, between.ReplaceAllString(text[m[2]:m[3]], " ")})
	}
	return d
}

func TestParse(t *testing.T) {
	d := parse("| state | meaning |\n|---|---|\n| works | well |\n\n## One\n\nA message\n`is\nquoted` here.\n\n" +
		"| a | state | note |\n|---|---|---|\n| `x`, more | works | |\n\n### Two\n\n| a | state | note |\n|---|---|---|\n" +
		"| y `z` | refused | `no way` |\n| w | differs | Message `so`, message `or so` |\n")
	require.Equal(t, []string{"x", "y `z`", "w"}, d.names("One"))
	require.Len(t, d.section("Two"), 2)
	require.Equal(t, []message{{19, "no way"}, {7, "is quoted"}, {20, "so"}, {20, "or so"}}, d.messages)
	require.Equal(t, "refused", d.rows[1].state)
}
