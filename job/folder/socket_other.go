//go:build unix && !linux

package folder

import "path/filepath"

// SocketPath is a path by which the control socket of the opened folder can be bound or connected to. Here it is as long
// as the folder's own path, which the system limits to about 100 bytes.
func (f *Folder) SocketPath() string { return filepath.Join(f.path, ControlSocket) }
