package folder

import "strconv"

// SocketPath is a path by which the control socket of the opened folder can be bound or connected to, however long the
// folder's own path is. It is valid in this process until Close.
func (f *Folder) SocketPath() string {
	return "/proc/self/fd/" + strconv.Itoa(int(f.dir.Fd())) + "/" + ControlSocket
}
