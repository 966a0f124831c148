package pull

import (
	"fmt"
	"io"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/jsonstream"
)

// maxLayers is more than an image can have.
const maxLayers = 1024

// progress makes a few lines of the thousands of messages that a pull consists of.
type progress struct {
	trace  io.Writer
	every  time.Duration
	began  time.Time
	last   time.Time // of the last line
	layers map[string]*layer
	shown  string
}

// layer is how far one layer is.
type layer struct {
	loaded, total int64
	complete      bool // downloaded, or here before
	extracted     bool
	old           bool
}

func newProgress(trace io.Writer, every time.Duration) *progress {
	now := time.Now()
	return &progress{trace: trace, every: every, began: now, last: now, layers: make(map[string]*layer)}
}

// message takes one message of the engine. Its words have been the same since Docker 1.8.
func (p *progress) message(m jsonstream.Message) {
	if m.ID == "" {
		return
	}
	l := p.layers[m.ID]
	if l == nil {
		switch m.Status {
		case "Pulling fs layer", "Waiting", "Downloading", "Already exists", "Download complete", "Extracting", "Pull complete":
		default:
			return // about a tag, not a layer
		}
		if len(p.layers) >= maxLayers {
			return
		}
		l = &layer{}
		p.layers[m.ID] = l
	}
	switch m.Status {
	case "Downloading":
		if m.Progress != nil {
			l.loaded, l.total = m.Progress.Current, max(m.Progress.Total, m.Progress.Current)
		}
	case "Verifying Checksum", "Download complete":
		l.loaded, l.complete = l.total, true
	case "Already exists":
		l.complete, l.extracted, l.old = true, true, true
	case "Pull complete":
		l.loaded, l.complete, l.extracted = l.total, true, true
	}
	if now := time.Now(); now.Sub(p.last) >= p.every {
		p.last = now
		p.line()
	}
}

// line says how far the pull is, if that has changed.
func (p *progress) line() {
	var complete, extracted int
	var loaded, total int64
	for _, l := range p.layers {
		loaded, total = loaded+l.loaded, total+l.total
		if l.complete {
			complete++
		}
		if l.extracted {
			extracted++
		}
	}
	text := fmt.Sprintf("  %d of %d layers downloaded (%s of %s), %d extracted",
		complete, len(p.layers), units.HumanSize(float64(loaded)), units.HumanSize(float64(total)), extracted)
	if text != p.shown {
		p.shown = text
		say(p.trace, "%s", text)
	}
}

// done says what was pulled, if anything was.
func (p *progress) done() {
	var fresh int
	var size int64
	for _, l := range p.layers {
		if !l.old {
			fresh++
			size += l.total
		}
	}
	if fresh > 0 {
		say(p.trace, "  Pulled %d of %d layers (%s) in %.1f s", fresh, len(p.layers), units.HumanSize(float64(size)), time.Since(p.began).Seconds())
	}
}
