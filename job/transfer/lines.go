package transfer

import "sync"

// Lines is where a stage's words for the trace go, each call one line without its end. Functions may be nil.
type Lines struct {
	// Notice says what is done now (gitlab-runner: green), Say is an ordinary line.
	Notice, Say func(text string)
	// Warn and Fail are lines that gitlab-runner begins with WARNING: and ERROR:; the prefix is not in the text.
	Warn, Fail func(text string)
	// Progress is raw text: it begins with a carriage return and has a line's end only if it is the last of its kind. It
	// is for TRANSFER_METER_FREQUENCY and should reach the trace at once.
	Progress func(text string)
}

// Serial returns lines of which one is said at a time, whoever says them.
func (l Lines) Serial() Lines {
	var mu sync.Mutex
	one := func(f func(string)) func(string) {
		if f == nil {
			return func(string) {}
		}
		return func(text string) {
			mu.Lock()
			defer mu.Unlock()
			f(text)
		}
	}
	return Lines{Notice: one(l.Notice), Say: one(l.Say), Warn: one(l.Warn), Fail: one(l.Fail), Progress: one(l.Progress)}
}
