package main

import (
	"fmt"

	"github.com/docker/go-units"

	"github.com/switchyard-ci/switchyard/agent"
)

// spoolFile is the section spool: what traces may take of the disk, as sizes like "2g".
type spoolFile struct {
	MaxSize string `yaml:"max_size"`
	MinFree string `yaml:"min_free"`
}

// limits reads the sizes.
func (s spoolFile) limits() (l agent.Spool, err error) {
	for _, key := range []struct {
		name, text string
		to         *int64
	}{{"max_size", s.MaxSize, &l.MaxSize}, {"min_free", s.MinFree, &l.MinFree}} {
		if key.text == "" {
			continue
		}
		if *key.to, err = units.RAMInBytes(key.text); err != nil || *key.to <= 0 {
			return l, fmt.Errorf("spool.%s: %q is no size: give a number with b, k, m or g, for example 2g", key.name, key.text)
		}
	}
	return l, nil
}
