//go:build unix

package archive

import (
	"os"
	"sync/atomic"
)

// folder is an open folder that several goroutines hold: opening a file in it costs a quarter of opening it from the top.
type folder struct {
	*os.Root
	holders atomic.Int32
}

// newFolder returns root with one holder. The last one to let go closes it.
func newFolder(root *os.Root) *folder {
	f := &folder{Root: root}
	f.holders.Store(1)
	return f
}

func (f *folder) hold() *folder {
	f.holders.Add(1)
	return f
}

// release lets go of it. A nil folder is none.
func (f *folder) release() {
	if f != nil && f.holders.Add(-1) == 0 {
		_ = f.Close() // nothing is written through a folder's handle
	}
}
