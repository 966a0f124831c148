package usage

import (
	"math"
	"time"
)

const (
	// shortest is the upper end of a histogram's first class; each of the next ends at √2 times as much. The last one has
	// no end: it begins at about 28 h.
	shortest = 50 * time.Millisecond
	classes  = 43
)

// histogram counts durations by classes.
type histogram [classes]uint32

func classOf(d time.Duration) int {
	if d <= shortest {
		return 0
	}
	return min(int(math.Ceil(2*math.Log2(float64(d)/float64(shortest))-1e-9)), classes-1)
}

// end is where a class ends.
func end(class int) time.Duration {
	return time.Duration(float64(shortest) * math.Pow(2, float64(class)/2))
}

func (h *histogram) add(d time.Duration) { h[classOf(d)]++ }

func (h *histogram) join(other *histogram) {
	for i, n := range other {
		h[i] += n
	}
}

func (h *histogram) total() int {
	n := 0
	for _, count := range h {
		n += int(count)
	}
	return n
}

// quantile returns the end of the class in which the q-th part lies; 0 if nothing was counted.
func (h *histogram) quantile(q float64) time.Duration {
	total := h.total()
	if total == 0 {
		return 0
	}
	rank := max(int(math.Ceil(q*float64(total))), 1)
	for class, count := range h {
		if rank -= int(count); rank <= 0 {
			return end(class).Round(time.Millisecond)
		}
	}
	return end(classes - 1)
}
