//go:build unix

// Package serve runs programs for a switchyard-job that is elsewhere: in the container of the user's script, for the one
// in the container beside it. The server knows no secret but the token that opens it. Who connects brings the program's
// standard streams as open files (SCM_RIGHTS), so nothing that a program writes passes through the server, and it is read
// by the one that masks it in the order in which it was written.
package serve

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// Version of the protocol: messages are a length (4 bytes, big endian) and JSON. The client says hello, the server
// answers with its own; the client sends exec with three open files, the server answers started; then signals go one way
// until exit comes the other way. An error ends the connection.
const Version = 1

const (
	maxMessage = 1 << 20
	// maxHello is the limit as long as the token has not been seen.
	maxHello = 4 << 10
	files    = 3
)

type message struct {
	Hello   *hello   `json:"hello,omitempty"`
	Exec    *Command `json:"exec,omitempty"`
	Started *Started `json:"started,omitempty"`
	Signal  *signal  `json:"signal,omitempty"`
	Exit    *Exit    `json:"exit,omitempty"`
	Error   string   `json:"error,omitempty"`
}

type hello struct {
	Version int    `json:"version"`
	Token   string `json:"token,omitempty"`
}

// Command is a program to run.
type Command struct {
	// Shells are tried in order, as shell.Find does it; Login makes bash a login shell.
	Shells []string `json:"shells"`
	Login  bool     `json:"login"`
	// Dir is where the program begins.
	Dir string `json:"dir"`
	// Env is added to the server's own environment.
	Env []string `json:"env,omitempty"`
	// KillWithClient: if the connection ends before the program, the server kills all that it has started.
	KillWithClient bool `json:"kill_with_client"`
}

// Started says what was found and runs.
type Started struct {
	PID   int    `json:"pid"`
	Shell string `json:"shell"`
}

// Exit says how the program ended: its exit code, or 128 + the number of the signal that ended it.
type Exit struct {
	Code int `json:"code"`
}

type signal struct {
	Number int `json:"number"`
	// All: every process that the server has started or that descends from one, not only the program's process group.
	All bool `json:"all"`
}

// errProtocol is what a peer gets for breaking the rules.
var errProtocol = errors.New("the other side does not follow the protocol")

func send(c *net.UnixConn, m message, open ...*os.File) error {
	b, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	if len(b) > maxMessage {
		return fmt.Errorf("send: the message has %d bytes, more than %d", len(b), maxMessage)
	}
	b = append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(b)), uint32(len(b))), b...)
	var oob []byte
	if len(open) > 0 {
		fds := make([]int, len(open))
		for i, f := range open {
			fds[i] = int(f.Fd())
		}
		oob = syscall.UnixRights(fds...)
	}
	n, _, err := c.WriteMsgUnix(b, oob, nil)
	for err == nil && n < len(b) {
		var more int
		more, err = c.Write(b[n:])
		n += more
	}
	if err != nil {
		return fmt.Errorf("send: %w", err)
	}
	return nil
}

// receive reads one message and the open files that came with it, which the caller closes.
func receive(c *net.UnixConn, limit int) (m message, open []*os.File, err error) {
	var head [4]byte
	oob := make([]byte, syscall.CmsgSpace(4*files))
	n, oobn, flags, _, err := c.ReadMsgUnix(head[:], oob)
	open, rightsErr := rights(oob[:oobn])
	defer func() {
		if err != nil {
			for _, f := range open {
				_ = f.Close()
			}
			open = nil
		}
	}()
	if err != nil {
		return message{}, open, err
	}
	if n == 0 {
		return message{}, open, io.EOF
	}
	if rightsErr != nil || flags&syscall.MSG_CTRUNC != 0 {
		return message{}, open, errProtocol
	}
	if _, err := io.ReadFull(c, head[n:]); err != nil {
		return message{}, open, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > uint32(limit) {
		return message{}, open, fmt.Errorf("a message of %d bytes, more than %d: %w", size, limit, errProtocol)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(c, b); err != nil {
		return message{}, open, err
	}
	if json.Unmarshal(b, &m) != nil {
		return message{}, open, errProtocol
	}
	return m, open, nil
}

func rights(oob []byte) (open []*os.File, err error) {
	messages, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for i := range messages {
		fds, err := syscall.ParseUnixRights(&messages[i])
		if err != nil {
			continue // some other kind
		}
		for _, fd := range fds {
			syscall.CloseOnExec(fd)
			open = append(open, os.NewFile(uintptr(fd), "received"))
		}
	}
	return open, nil
}
