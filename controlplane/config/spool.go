package config

import (
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/switchyard-ci/switchyard/internal/yamlform"
)

// Spool limits what the spool of traces takes of its disk. A limit that the file leaves to the control plane is 0.
type Spool struct {
	MaxSize, MinFree int64 // bytes
}

const (
	// leastSpool is the least that makes sense: a few traces of the usual limit.
	leastSpool = 16 << 20
	mostSpool  = 1 << 50
	sizeHint   = "write a number with its unit, for example 500MiB or 20GiB"
)

func (r *reader) spool(n *yaml.Node, at string) (s Spool) {
	r.Mapping(n, at, yamlform.Fields{
		"max_size": func(n *yaml.Node, p string) { s.MaxSize = r.size(n, p, leastSpool, mostSpool) },
		"min_free": func(n *yaml.Node, p string) { s.MinFree = r.size(n, p, 1, mostSpool) },
	})
	return s
}

// sizeUnits are those of bytes, by what is written behind the number.
var sizeUnits = map[string]int64{"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}

// size reads a number of bytes with its unit; 0 if it is wrong.
func (r *reader) size(n *yaml.Node, at string, least, most int64) int64 {
	n = yamlform.Resolve(n)
	text := strings.TrimRight(n.Value, "BKMGTi")
	unit, known := sizeUnits[n.Value[len(text):]]
	count, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	switch {
	case n.Kind != yaml.ScalarNode || err != nil || !known:
		r.Problem(n, at, "must be a size with its unit, not "+yamlform.Kind(n), sizeHint)
	case count < 0 || count > most/unit || count*unit < least:
		r.Problem(n, at, fmt.Sprintf("%s is not between %d and %d bytes", n.Value, least, most), sizeHint)
	default:
		return count * unit
	}
	return 0
}
