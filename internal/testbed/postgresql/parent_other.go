//go:build unix && !linux

package postgresql

import "syscall"

func dieWithParent(*syscall.SysProcAttr) {}
