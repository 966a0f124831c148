package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/switchyard-ci/switchyard/internal/durable"
)

// launchedFile says that the job was given to an environment whose files are out of this host's reach: from then on only
// that environment knows whether it started. It is on the disk for good before that happens.
const launchedFile = "launched.json"

// launched is the content of launchedFile.
type launched struct {
	// BootID is the host's: what was copied after it, and not synced, may be lost or damaged when the host has another.
	BootID string `json:"boot_id"`
	// Lost: after a restart of the host the copy was dropped and begun anew.
	Lost bool `json:"lost,omitempty"`
}

// writeLaunched is done once for a job and boot.
func writeLaunched(dir string) error {
	if known, err := readLaunched(dir); err == nil && known.BootID == bootID() {
		return nil
	}
	return launched{BootID: bootID()}.write(dir)
}

func (l launched) write(dir string) error {
	b, err := json.Marshal(l)
	if err == nil {
		err = durable.WriteFile(filepath.Join(dir, launchedFile), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write down that the job starts: %w", err)
	}
	return nil
}

// readLaunched returns os.ErrNotExist if the job was not given to anyone.
func readLaunched(dir string) (launched, error) {
	var l launched
	return l, readJSON(filepath.Join(dir, launchedFile), &l)
}

// distrust drops what was copied of a trace before the host was restarted, unless its result is there: that came after
// all of it was synced. The environment has it still, but for the prefix.
func (w *work) distrust(l launched) error {
	if l.BootID == bootID() {
		w.powerless = l.Lost
		return nil
	}
	if err := w.mendPrefix(); err != nil {
		return err
	}
	if w.ownResult() != nil {
		return nil
	}
	trace, err := w.folder.MirrorTrace(true)
	if err != nil {
		return fmt.Errorf("drop what the host lost: %w", err)
	}
	w.powerless = true
	return errors.Join(trace.Close(), launched{BootID: bootID(), Lost: true}.write(w.dir))
}

// bootID tells this run of the kernel from others; empty where there is no such thing.
func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
