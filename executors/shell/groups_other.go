//go:build unix && !linux

package shell

import (
	"context"
	"errors"
)

// Limits bound all processes of one job together. They are for Linux.
type Limits struct {
	Memory int64
	CPUs   float64
}

type groups struct{}

func findGroups(c Config) (groups, error) {
	if c.Limits != (Limits{}) {
		return groups{}, errors.New("they can be kept on Linux only: remove them")
	}
	return groups{}, nil
}

func (groups) names(context.Context) ([]string, error)             { return nil, nil }
func (groups) any() bool                                           { return false }
func (groups) outlive() bool                                       { return false }
func (groups) add(context.Context, string, int) error              { return nil }
func (groups) kill(context.Context, string) error                  { return nil }
func (groups) remove(context.Context, string) error                { return nil }
func (groups) sweep(context.Context, func(name string) bool) error { return nil }
func (groups) outOfMemory(string) bool                             { return false }
