package supervisor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/switchyard-ci/switchyard/job/folder"
)

// survey looks what a restart of the host has left of the trace of a job that ran on it, before a byte of that is sent. A
// result came after all of the trace was synced, a suffix too.
func (w *work) survey(started folder.Started) error {
	if !otherBoot(started.BootID) {
		return nil
	}
	switch _, err := w.folder.Result(); {
	case err == nil:
		return w.mendPrefix()
	case !errors.Is(err, folder.ErrNoResult): // of a newer version, perhaps
		return nil
	}
	switch _, err := os.Lstat(filepath.Join(w.dir, folderName, folder.SuffixFile)); {
	case err == nil:
		return nil
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("look for the end of the trace: %w", err)
	}
	lost, err := w.folder.CutUnproven()
	if err != nil {
		return fmt.Errorf("cut what the host may have lost of the trace: %w", err)
	}
	if lost > 0 {
		w.log.Warn("cut the end of a trace: it may not be what the job wrote before the host was restarted", "bytes", lost)
	}
	w.powerless = true
	return nil
}

// mendPrefix keeps the offsets behind the prefix what they were.
func (w *work) mendPrefix() error {
	mended, err := w.folder.MendPrefix()
	switch {
	case errors.Is(err, folder.ErrNoSpec):
		return nil
	case err != nil:
		return fmt.Errorf("mend what the host lost: %w", err)
	case mended:
		w.log.Warn("the begin of a trace is lost: the host was restarted before it was on the disk; spaces stand in its place")
	}
	return nil
}

// unsent is for a job that had not started when its agent was stopped: what a restart of the host may have spoilt of the
// begin of its trace is cut off.
func (w *work) unsent() error {
	if !otherBoot(w.Intent.BootID) {
		return nil
	}
	if _, err := w.folder.CutUnproven(); err != nil {
		return fmt.Errorf("cut what the host may have lost of the trace: %w", err)
	}
	return nil
}

// otherBoot says whether the host was restarted since id was its boot id. What is not known is no other one.
func otherBoot(id string) bool {
	now := bootID()
	return id != "" && now != "" && id != now
}

// epitaph prepares the trace of a job that its host may have taken with it for the agent's words, and returns what is to be
// added to them. They begin where the control plane has nothing yet: it may have more of the trace than is left here. That
// stays, and is made up here with bytes that nobody asks for. It waits for the control plane, without which the result could
// not go anywhere; ok is false if the job is not wanted any more.
func (w *work) epitaph() (doubt string, ok bool) {
	if !w.powerless {
		return "", true
	}
	has := w.config.Traces.Await(w.life, w.Intent.Ref())
	if w.life.Err() != nil {
		return "", false
	}
	padded := false
	if limit, _ := w.outputLimit(); has <= limit+notices { // or it is not true
		var err error
		if padded, err = w.folder.PadTrace(has); err != nil {
			w.log.Error("cannot make up for what the host lost of a trace", "err", err)
		}
	}
	if padded || w.env == nil || w.here() || w.env.Err() != nil {
		return "; the end of its output may be missing, because it had not reached the disk", true
	}
	return "", true // its copy is whole again
}

// notices is how much longer than its limit a trace may be: it ends with what the job has to say about that.
const notices = 4 << 10
