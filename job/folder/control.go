package folder

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// MaxLine limits a line of the control protocol in bytes, without its newline.
const MaxLine = 16 << 10

// Event is one line that a job says on its control socket.
type Event struct {
	Kind EventKind
	// Stage is GitLab's name of the stage that began (EventStage).
	Stage string
	// TraceLength is the length of the trace file in bytes (EventTrace); the whole trace is longer by the prefix.
	TraceLength int64
	// Ask is what the job asks (EventAsk).
	Ask CacheRequest
}

// EventKind says what an Event is about.
type EventKind int

// The events. EventResult: result.json is in place. A reader of a later format may see others; they are skipped.
const (
	EventStage EventKind = iota + 1
	EventTrace
	EventResult
	EventAsk
)

// Greeting is the first line that a job writes on its control socket.
func Greeting() []byte { return fmt.Appendf(nil, "switchyard-job %d\n", Version) }

// AppendEvent appends e's line.
func AppendEvent(b []byte, e Event) []byte {
	switch e.Kind {
	case EventStage:
		b = append(append(b, "stage "...), e.Stage...)
	case EventTrace:
		b = strconv.AppendInt(append(b, "trace "...), e.TraceLength, 10)
	case EventResult:
		b = append(b, "result"...)
	case EventAsk:
		b = appendJSON(append(b, "ask "...), e.Ask)
	}
	return append(b, '\n')
}

// Order is one line that is said to a job.
type Order struct {
	Kind OrderKind
	// Lease is the dead man's limit (OrderLease), counted from when the job reads it; it is never 0.
	Lease time.Duration
	// Answer is what the job asked for (OrderAnswer).
	Answer CacheAnswer
}

// OrderKind says what an Order asks for.
type OrderKind int

// The orders; see ControlSocket.
const (
	OrderCancelGraceful OrderKind = iota + 1
	OrderCancelKill
	OrderLease
	OrderAnswer
)

// AppendOrder appends o's line.
func AppendOrder(b []byte, o Order) []byte {
	switch o.Kind {
	case OrderCancelGraceful:
		b = append(b, "cancel graceful"...)
	case OrderCancelKill:
		b = append(b, "cancel kill"...)
	case OrderLease:
		b = strconv.AppendInt(append(b, "lease "...), max(1, o.Lease.Milliseconds()), 10)
	case OrderAnswer:
		b = appendJSON(append(b, "answer "...), o.Answer)
	}
	return append(b, '\n')
}

// ParseOrder reads a line without its newline. Orders that this version does not know are an error.
func ParseOrder(line []byte) (Order, error) {
	switch string(line) {
	case "cancel graceful":
		return Order{Kind: OrderCancelGraceful}, nil
	case "cancel kill":
		return Order{Kind: OrderCancelKill}, nil
	}
	if text, ok := strings.CutPrefix(string(line), "lease "); ok {
		ms, err := strconv.ParseInt(text, 10, 64)
		const most = int64(1<<63-1) / int64(time.Millisecond)
		if err != nil || ms < 1 || ms > most {
			return Order{}, fmt.Errorf("lease %q is not a positive number of milliseconds", text)
		}
		return Order{Kind: OrderLease, Lease: time.Duration(ms) * time.Millisecond}, nil
	}
	if text, ok := bytes.CutPrefix(line, []byte("answer ")); ok {
		a, err := parseAnswer(text)
		return Order{Kind: OrderAnswer, Answer: a}, err
	}
	return Order{}, fmt.Errorf("unknown order %q", line)
}

// parseEvent reads a line; ok is false for events that this version does not know.
func parseEvent(line []byte) (e Event, ok bool, err error) {
	word, rest, _ := bytes.Cut(line, []byte{' '})
	switch string(word) {
	case "stage":
		return Event{Kind: EventStage, Stage: string(rest)}, true, nil
	case "trace":
		n, err := strconv.ParseInt(string(rest), 10, 64)
		if err != nil || n < 0 {
			return Event{}, false, fmt.Errorf("trace length %q is not a number of bytes", rest)
		}
		return Event{Kind: EventTrace, TraceLength: n}, true, nil
	case "result":
		return Event{Kind: EventResult}, true, nil
	case "ask":
		r, err := ParseCacheRequest(rest)
		return Event{Kind: EventAsk, Ask: r}, err == nil, err
	}
	return Event{}, false, nil
}

func checkGreeting(line []byte) error {
	text, ok := bytes.CutPrefix(line, []byte("switchyard-job "))
	if !ok {
		return errors.New("control socket: what answers is not switchyard-job")
	}
	version, err := strconv.Atoi(string(text))
	if err != nil {
		return fmt.Errorf("control socket: format version %q is not a number", text)
	}
	if version > Version {
		return &VersionError{File: ControlSocket, Found: version}
	}
	return nil
}
