package usage

import (
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// version of the snapshot's form.
const version = 1

type (
	savedBook struct {
		Version  int            `json:"version"`
		Projects []savedAccount `json:"projects"` // the one heard of last in front
	}
	savedAccount struct {
		GitLab string           `json:"gitlab"`
		ID     int64            `json:"id"`
		Path   string           `json:"path"`
		Used   map[int64]int64  `json:"used,omitempty"`  // by step: slot-milliseconds
		Waits  map[int64]counts `json:"waits,omitempty"` // by hour
	}
	// counts are the classes of a histogram that are not empty.
	counts map[int]uint32
)

// Snapshot is a book at one moment. It has nothing in common with the book any more.
type Snapshot struct{ saved savedBook }

// Snapshot returns the book as it is, what runs counted up to now.
func (b *Book) Snapshot(now time.Time) Snapshot {
	for _, s := range b.running {
		s.of.spend(s.since, now)
		s.since = now
	}
	saved := savedBook{Version: version}
	for at := b.recent.Front(); at != nil; at = at.Next() {
		a := at.Value.(*account)
		a.turn(now)
		k := savedAccount{GitLab: a.project.GitLab, ID: a.project.ID, Path: a.path, Used: map[int64]int64{}, Waits: map[int64]counts{}}
		for n := a.step - int64(steps) + 1; n <= a.step; n++ {
			if used := a.used[n%int64(steps)]; used > 0 {
				k.Used[n] = int64(used * 1000)
			}
		}
		for n := a.hour - int64(hours) + 1; n <= a.hour; n++ {
			c := counts{}
			for class, count := range a.waits[n%int64(hours)] {
				if count > 0 {
					c[class] = count
				}
			}
			if len(c) > 0 {
				k.Waits[n] = c
			}
		}
		if len(k.Used) > 0 || len(k.Waits) > 0 {
			saved.Projects = append(saved.Projects, k)
		}
	}
	return Snapshot{saved}
}

// Encode returns the form for Restore.
func (s Snapshot) Encode() ([]byte, error) {
	body, err := json.Marshal(s.saved)
	if err != nil {
		return nil, fmt.Errorf("write down what was used: %w", err)
	}
	return body, nil
}

// Restore returns the book of a snapshot. What it does not understand is an error, and the book is empty.
func Restore(now time.Time, snapshot []byte) (*Book, error) {
	b := New()
	var saved savedBook
	if err := json.Unmarshal(snapshot, &saved); err != nil {
		return b, fmt.Errorf("read what was used before: %w", err)
	}
	if saved.Version != version {
		return b, fmt.Errorf("read what was used before: its form is %d, this version knows %d", saved.Version, version)
	}
	for _, k := range slices.Backward(saved.Projects) {
		a := b.account(Project{k.GitLab, k.ID})
		a.path = k.Path
		a.turn(now)
		for n, used := range k.Used {
			if n > a.step-int64(steps) && n <= a.step && used > 0 {
				a.used[n%int64(steps)] = float32(used) / 1000
			}
		}
		for n, c := range k.Waits {
			if n <= a.hour-int64(hours) || n > a.hour {
				continue
			}
			for class, count := range c {
				if class >= 0 && class < classes {
					a.waits[n%int64(hours)][class] = count
				}
			}
		}
	}
	return b, nil
}
