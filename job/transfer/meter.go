package transfer

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
)

// Frequency reads TRANSFER_METER_FREQUENCY: 0 if the meter is off, otherwise at least a second. ok is false for what is no
// duration.
func Frequency(value string) (d time.Duration, ok bool) {
	if value = strings.TrimSpace(value); value == "" {
		return 0, true
	}
	d, err := time.ParseDuration(value)
	if err != nil {
		return 0, false
	}
	if d <= 0 {
		return 0, true
	}
	return max(d, time.Second), true
}

// Meter counts the bytes of a transfer and shows them now and then. A nil Meter counts nothing.
type Meter struct {
	n          atomic.Int64
	stop, done chan struct{}
}

// StartMeter begins to show label and what was counted, of total bytes if that is more than 0. It returns nil if every is 0.
// show is called by one goroutine at a time, which Stop ends.
func StartMeter(label string, total int64, every time.Duration, show func(text string)) *Meter {
	if every <= 0 {
		return nil
	}
	m := &Meter{stop: make(chan struct{}), done: make(chan struct{})}
	begin := time.Now()
	line := func() string {
		n := m.n.Load()
		text := label + " " + size(n)
		if total > 0 {
			text += "/" + size(total)
		}
		return "\r" + text + " (" + rate(n, time.Since(begin)) + ")                "
	}
	go func() {
		defer close(m.done)
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			show(line())
			select {
			case <-ticker.C:
			case <-m.stop:
				show(line() + "\n")
				return
			}
		}
	}()
	return m
}

// Add counts n bytes; it may be called concurrently.
func (m *Meter) Add(n int) {
	if m != nil {
		m.n.Add(int64(n))
	}
}

// Stop shows the last count. It is called once.
func (m *Meter) Stop() {
	if m != nil {
		close(m.stop)
		<-m.done
	}
}

// Reader counts what is read of r.
func (m *Meter) Reader(r io.Reader) io.Reader {
	if m == nil {
		return r
	}
	return &metered{r, m}
}

type metered struct {
	io.Reader
	m *Meter
}

func (r *metered) Read(b []byte) (int, error) {
	n, err := r.Reader.Read(b)
	r.m.Add(n)
	return n, err
}

// size and rate have gitlab-runner's forms.
func size(n int64) string { return scaled(n, 2) + "B" }

func rate(n int64, d time.Duration) string {
	return scaled(int64(float64(n)/max(d.Seconds(), 1e-9)), 1) + "B/s"
}

func scaled(n int64, decimals int) string {
	if n < 1000 {
		return strconv.FormatInt(n, 10) + " "
	}
	v := float64(n)
	for i, prefix := range "KMGTPE" {
		if v /= 1000; v < 1000 || i == 5 {
			return fmt.Sprintf("%.*f %c", decimals, v, prefix)
		}
	}
	return ""
}
