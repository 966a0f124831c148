//go:build unix

package liveview

import (
	"os"
	"syscall"
)

// terminalSignals are sent when the terminal has another size, and when the user suspends the process.
var terminalSignals = []os.Signal{syscall.SIGWINCH, syscall.SIGTSTP}

func suspends(s os.Signal) bool { return s == syscall.SIGTSTP }

// suspend stops the process as SIGTSTP would have done, and returns when it is continued.
func suspend() { _ = syscall.Kill(syscall.Getpid(), syscall.SIGSTOP) }
