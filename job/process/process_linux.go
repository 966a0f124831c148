package process

import (
	"bytes"
	"os"
	"slices"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func adoptOrphans() error {
	return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
}

// awaitEnd waits until a child has ended. It only looks: the child stays a zombie, and its pid taken, until it is reaped
// under the group's lock.
func awaitEnd() (pid int, status syscall.WaitStatus, reaped bool, err error) {
	// struct siginfo: si_pid is the first field after signo, errno and code, aligned to a pointer.
	var info [128]byte
	_, _, errno := syscall.Syscall6(syscall.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&info)),
		unix.WEXITED|unix.WNOWAIT, 0, 0)
	if errno != 0 {
		return 0, 0, false, errno
	}
	const word = unsafe.Sizeof(uintptr(0))
	const at = (12 + word - 1) &^ (word - 1)
	return int(*(*int32)(unsafe.Pointer(&info[at]))), 0, false, nil
}

// tellDescendants sends s to all descendants of this process, except those in told, and notes them there. started are
// children that get it by process group if /proc cannot be read.
func tellDescendants(started []int, s syscall.Signal, told map[entry]bool) {
	found, ok := descendants()
	if !ok {
		tellGroups(started, s, told)
		return
	}
	for _, p := range found {
		p.parent = 0 // it may change
		if !told[p] {
			p.signal(s)
			if told != nil {
				told[p] = true
			}
		}
	}
}

// signal sends s to the process if it is still the same one.
func (e entry) signal(s syscall.Signal) {
	fd, err := unix.PidfdOpen(e.pid, 0)
	if err != nil {
		if err == unix.ENOSYS || err == unix.EPERM {
			_ = syscall.Kill(e.pid, s)
		}
		return
	}
	defer func() { _ = unix.Close(fd) }()
	now, ok := readStat(e.pid)
	if !ok || now.start != e.start {
		return
	}
	_ = unix.PidfdSendSignal(fd, s, nil, 0)
	if s == syscall.SIGTERM {
		// A stopped process would not see SIGTERM.
		_ = unix.PidfdSendSignal(fd, syscall.SIGCONT, nil, 0)
	}
}

// descendants lists the living processes below this one, parents before their children.
func descendants() ([]entry, bool) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, false
	}
	names, err := dir.Readdirnames(-1)
	_ = dir.Close()
	if err != nil {
		return nil, false
	}
	children := map[int][]entry{}
	seen := false
	self := os.Getpid()
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if e, ok := readStat(pid); ok {
			children[e.parent] = append(children[e.parent], e)
			seen = seen || pid == self
		}
	}
	if !seen {
		return nil, false // not our /proc
	}
	all := slices.Clone(children[self])
	for i := 0; i < len(all); i++ {
		all = append(all, children[all[i].pid]...)
	}
	return all, true
}

func readStat(pid int) (entry, bool) {
	var buf [1024]byte
	fd, err := syscall.Open("/proc/"+strconv.Itoa(pid)+"/stat", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		return entry{}, false
	}
	n, err := syscall.Read(fd, buf[:])
	_ = syscall.Close(fd)
	if err != nil || n <= 0 {
		return entry{}, false
	}
	return parseStat(pid, buf[:n])
}

// parseStat reads "pid (name) state ppid ... starttime": the name may hold anything, so it is skipped from its end.
func parseStat(pid int, line []byte) (entry, bool) {
	end := bytes.LastIndexByte(line, ')')
	if end < 0 {
		return entry{}, false
	}
	fields := bytes.Fields(line[end+1:])
	if len(fields) < 20 || fields[0][0] == 'Z' || fields[0][0] == 'X' {
		return entry{}, false
	}
	parent, err := strconv.Atoi(string(fields[1]))
	if err != nil {
		return entry{}, false
	}
	start, err := strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return entry{}, false
	}
	name := ""
	if begin := bytes.IndexByte(line, '('); begin >= 0 {
		name = string(line[begin+1 : end])
	}
	return entry{pid: pid, parent: parent, start: start, name: name}, true
}
