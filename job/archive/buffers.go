//go:build unix

package archive

import "sync"

const (
	// bufferBudget bounds the buffers of all that is read and not written yet, and those kept for later.
	bufferBudget   = 8 << 20
	smallestBuffer = 4 << 10
)

// buffers are byte slices of a few sizes that are used again. Unlike those of a sync.Pool they are no garbage when the
// garbage collector runs: that would double what packing needs.
type buffers struct {
	mu   sync.Mutex
	free [9][][]byte
	kept int
	lent int
}

// room returns the size of the buffer for n bytes, and the list that it is kept in. Some more than n fits: what does not
// compress grows a little.
func (b *buffers) room(n int) (size, list int) {
	fits := smallestBuffer
	for fits < n && list < len(b.free)-1 {
		fits, list = fits*2, list+1
	}
	fits = max(fits, n)
	return fits + fits/128 + 64, list
}

// get returns a buffer of n bytes length.
func (b *buffers) get(n int) []byte {
	size, list := b.room(n)
	b.mu.Lock()
	defer b.mu.Unlock()
	for kept := b.free[list]; len(kept) > 0; kept = b.free[list] {
		last := kept[len(kept)-1]
		b.free[list] = kept[:len(kept)-1]
		b.kept -= cap(last)
		if cap(last) >= size {
			b.lent += cap(last)
			return last[:n]
		}
	}
	b.lent += size
	if b.kept+b.lent > bufferBudget { // what is kept is of other sizes than what is needed now
		b.free, b.kept = [9][][]byte{}, 0
	}
	return make([]byte, n, size)
}

// put takes a buffer back. A nil one is none.
func (b *buffers) put(p []byte) {
	if p == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lent = max(b.lent-cap(p), 0) // one that has grown meanwhile was lent as a smaller one
	for list := len(b.free) - 1; list >= 0; list-- {
		fits := smallestBuffer << list
		if cap(p) < fits+fits/128+64 {
			continue
		}
		if b.kept+b.lent+cap(p) <= bufferBudget {
			b.free[list] = append(b.free[list], p[:0])
			b.kept += cap(p)
		}
		return
	}
}

// stack keeps things to be used again.
type stack[T any] struct {
	mu   sync.Mutex
	list []T
}

func (s *stack[T]) pop() (top T, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) == 0 {
		return top, false
	}
	top = s.list[len(s.list)-1]
	s.list = s.list[:len(s.list)-1]
	return top, true
}

func (s *stack[T]) push(v T) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, v)
}
