//go:build unix

package archive

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
)

// state is how far a pattern has come in a folder.
type state struct {
	alive bool
	times int // how often the folder and those above it have matched: all that is in it is meant as often
}

// walk goes through the project folder once for all patterns, and only where one of them can match.
func (s *selection) walk(ctx context.Context) error {
	if len(s.patterns) == 0 {
		return nil
	}
	states := make([]state, len(s.patterns))
	for i, p := range s.patterns {
		states[i] = state{alive: p.match != "."}
		if p.matchesRoot() {
			states[i].times = 1
			if !s.excluded(".", 1) {
				p.found++
			}
		}
	}
	return s.folder(ctx, s.root, "", 0, states)
}

// child is what is in a folder.
type child struct {
	name string
	kind fs.FileMode
}

// folder looks at what is in the folder name, open as in, depth names below the project folder.
func (s *selection) folder(ctx context.Context, in *os.Root, name string, depth int, states []state) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if s.looking != nil {
		s.looking(name)
	}
	children, err := s.children(in, depth, states)
	if err != nil {
		if name == "" {
			return err
		}
		s.trouble = append(s.trouble, Message{Warning: true, Text: fmt.Sprintf("%s: %v", name, err)})
		return nil
	}
	below := make([]state, len(states))
	for _, c := range children {
		full := path.Join(name, c.name)
		chosen, descend := s.look(c, full, depth, states, below)
		switch {
		case !descend:
			continue
		case c.kind.IsDir():
		case c.kind&fs.ModeSymlink == 0:
			continue
		default:
			if info, err := s.root.Stat(full); err != nil || !info.IsDir() {
				continue
			}
			if chosen {
				s.trouble = append(s.trouble, Message{Warning: true, Text: full + ": archived as a link, without what is below it"})
				continue
			}
		}
		if err := s.into(ctx, in, c, full, depth+1, below); err != nil {
			return err
		}
	}
	return nil
}

func (s *selection) into(ctx context.Context, in *os.Root, c child, full string, depth int, states []state) error {
	var sub *os.Root
	var err error
	if c.kind.IsDir() {
		sub, err = in.OpenRoot(c.name)
	} else {
		sub, err = s.root.OpenRoot(full) // a link may lead to anywhere in the project
	}
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			s.trouble = append(s.trouble, Message{Warning: true, Text: fmt.Sprintf("%s: %v", full, err)})
		}
		return nil
	}
	defer func() { _ = sub.Close() }() // nothing is written through it
	return s.folder(ctx, sub, full, depth, states)
}

// look decides about one child. It fills in below, the states within it, and tells whether it is chosen and whether to
// look into it.
func (s *selection) look(c child, full string, depth int, states, below []state) (chosen, descend bool) {
	link := c.kind&fs.ModeSymlink != 0
	matched := 0
	for i, p := range s.patterns {
		was := states[i]
		now := state{alive: was.alive && p.alive(c.name, depth), times: was.times}
		if now.alive && p.matches(full, c.kind.IsDir()) {
			now.times++
		}
		below[i] = now
		matched += now.times
	}
	if matched > 0 && !s.excluded(full, matched) {
		chosen = true
		s.names = append(s.names, full)
		for i, p := range s.patterns {
			p.found += below[i].times
		}
	}
	for i, p := range s.patterns {
		if link {
			below[i] = state{alive: below[i].alive && depth < p.deep && p.goesOn(depth)}
		} else {
			below[i].alive = below[i].alive && p.goesOn(depth)
		}
		descend = descend || below[i].alive || below[i].times > 0
	}
	return chosen, descend
}

// children lists what is in a folder: all of it, or only what the patterns name if they do.
func (s *selection) children(in *os.Root, depth int, states []state) ([]child, error) {
	var literals []string
	for i, p := range s.patterns {
		if states[i].times > 0 {
			return list(in)
		}
		if !states[i].alive {
			continue
		}
		name, ok := p.literal(depth)
		if !ok {
			return list(in)
		}
		literals = append(literals, name)
	}
	slices.Sort(literals)
	var children []child
	for _, name := range slices.Compact(literals) {
		if info, err := in.Lstat(name); err == nil { // else it is not there, or impossible as a name
			children = append(children, child{name, info.Mode().Type()})
		}
	}
	return children, nil
}

func list(in *os.Root) ([]child, error) {
	f, err := in.Open(".")
	if err != nil {
		return nil, err
	}
	entries, err := f.ReadDir(-1)
	_ = f.Close() // it was only read
	children := make([]child, len(entries))
	for i, e := range entries {
		children[i] = child{e.Name(), e.Type()}
	}
	return children, err
}
