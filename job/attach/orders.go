//go:build unix

package attach

import (
	"bufio"
	"io"
	"sync"

	"github.com/switchyard-ci/switchyard/job/folder"
)

// orders passes lines on to the job. They wait until it is connected to.
type orders struct {
	once  sync.Once
	ready chan struct{}
	w     *folder.Follower // nil: there is no job to order any more
}

func newOrders() *orders { return &orders{ready: make(chan struct{})} }

func (o *orders) to(w *folder.Follower) {
	o.once.Do(func() {
		o.w = w
		close(o.ready)
	})
}

func (o *orders) close() { o.to(nil) }

// read calls ended when nothing more comes.
func (o *orders) read(in io.Reader, ended func()) {
	defer ended()
	lines := bufio.NewReaderSize(in, folder.MaxLine+1)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return
		}
		order, err := folder.ParseOrder(line[:len(line)-1])
		if err != nil {
			continue // of a later version
		}
		if <-o.ready; o.w != nil {
			_ = o.w.Send(order) // gone, or closed: then it has ended anyway
		}
	}
}
