package postgresql

import "syscall"

// dieWithParent has the kernel end the program, at once but in order, when this process ends.
func dieWithParent(attr *syscall.SysProcAttr) { attr.Pdeathsig = syscall.SIGQUIT }
