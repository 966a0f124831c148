package trace

import (
	"sync"
	"time"
)

const (
	// checkpointBytes and checkpointTime are after how many bytes, and how long after the first of them, a checkpoint is
	// written.
	checkpointBytes = 256 << 10
	checkpointTime  = time.Second
)

// Checkpoints decides when the length and checksum of a growing trace are written down: at each 256 KiB, and a second
// after bytes that are not covered yet. So a trace whose job is silent is covered to its end, and a job that ends within a
// second needs nothing. Methods may be called concurrently.
type Checkpoints struct {
	mu      sync.Mutex
	write   func(length int64, crc uint32) error
	length  int64
	crc     uint32
	written int64 // the last checkpoint's length
	timer   *time.Timer
	armed   bool
	over    bool
}

// NewCheckpoints calls write for each checkpoint, one call at a time, until Close or its first error.
func NewCheckpoints(write func(length int64, crc uint32) error) *Checkpoints {
	return &Checkpoints{write: write}
}

// Grown says what the trace file's length and the trace's checksum are now.
func (c *Checkpoints) Grown(length int64, crc uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.length, c.crc = length, crc
	switch {
	case c.over:
	case length-c.written >= checkpointBytes:
		c.note()
	case c.armed:
	case c.timer == nil:
		c.armed = true
		c.timer = time.AfterFunc(checkpointTime, c.due)
	default:
		c.armed = true
		c.timer.Reset(checkpointTime)
	}
}

func (c *Checkpoints) due() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.armed = false
	if !c.over && c.length > c.written {
		c.note()
	}
}

// note writes a checkpoint; mu must be held.
func (c *Checkpoints) note() {
	c.written = c.length
	c.over = c.write(c.length, c.crc) != nil
}

// Close ends the writing; write is not called any more.
func (c *Checkpoints) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.timer != nil {
		c.timer.Stop()
	}
}
