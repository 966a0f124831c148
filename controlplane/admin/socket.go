//go:build unix

package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
)

const (
	socketName = "admin.sock"
	// longestPath is what fits into a socket's address on every system, in bytes.
	longestPath = 103
	// dialPatience is how long a control plane may take to answer.
	dialPatience = 700 * time.Millisecond
	// maxAnswer is the size of the largest answer, in bytes: some hundred thousand agents or jobs.
	maxAnswer = 64 << 20
)

// Listen opens the socket in a data folder (mode 0600). The caller holds the folder (package datafolder); what a killed
// control plane left is replaced. Closing the listener removes the socket.
func Listen(ctx context.Context, folder string) (net.Listener, error) {
	path := filepath.Join(folder, socketName)
	if err := removeStale(ctx, path); err != nil {
		return nil, fmt.Errorf("serve administration: %w", err)
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// On Linux bind(2) takes the mode over, so that nobody else gets in between bind and chmod; elsewhere the folder's
		// mode has to do.
		return c.Control(func(fd uintptr) { _ = unix.Fchmod(int(fd), 0o600) })
	}}
	var l net.Listener
	err := withShortPath(path, func(short string) (err error) {
		l, err = config.Listen(ctx, "unix", short)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("serve administration: %w", err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // it knows the short path only
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("serve administration: %w", err), l.Close())
	}
	return &listener{Listener: l, path: path}, nil
}

// listener removes its socket.
type listener struct {
	net.Listener
	path string
}

func (l *listener) Close() error {
	err := os.Remove(l.path)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil // closed twice
	}
	return errors.Join(err, l.Listener.Close())
}

// removeStale removes a socket on which nobody listens.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s is in the way: it is not a socket; move it away", path)
	}
	conn, err := connect(ctx, path)
	if err == nil {
		return errors.Join(fmt.Errorf("another control plane answers on %s: stop it first", path), conn.Close())
	}
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("see whether %s is in use: %w", path, err)
	}
	return os.Remove(path)
}

func connect(ctx context.Context, path string) (conn net.Conn, err error) {
	err = withShortPath(path, func(short string) error {
		conn, err = new(net.Dialer).DialContext(ctx, "unix", short)
		return err
	})
	return conn, err
}

// withShortPath calls use with a path of the same socket that fits into its address: where the real one is too long,
// one by way of the open folder.
func withShortPath(path string, use func(short string) error) error {
	if len(path) <= longestPath {
		return use(path)
	}
	folder, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer folder.Close()
	short := "/proc/self/fd/" + strconv.FormatUint(uint64(folder.Fd()), 10)
	if _, err := os.Stat(short); err != nil {
		return fmt.Errorf("the path %s has %d bytes, more than the %d that fit into a socket's address: choose a data folder with a shorter path",
			path, len(path), longestPath)
	}
	return use(filepath.Join(short, filepath.Base(path)))
}

// Dial connects to the control plane that works in a data folder and has answered when Dial returns; it takes less
// than a second. configFile is named in the error if there is no such control plane.
func Dial(ctx context.Context, folder, configFile string) (*grpc.ClientConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	path := filepath.Join(folder, socketName)
	probe, err := connect(ctx, path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOTDIR):
		return nil, fmt.Errorf("no control plane is running with the data folder %s; start it with `switchyard serve -c %s`", folder, configFile)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("the control plane with the data folder %s belongs to another user; run this as its owner: %w", folder, err)
	case err != nil:
		return nil, fmt.Errorf("reach the control plane: %w", err)
	}
	if err := probe.Close(); err != nil {
		return nil, fmt.Errorf("reach the control plane: %w", err)
	}

	conn, err := grpc.NewClient("passthrough:///"+socketName,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return connect(ctx, path) }),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return nil, fmt.Errorf("reach the control plane: %w", err)
	}
	conn.Connect()
	for state := conn.GetState(); state != connectivity.Ready; state = conn.GetState() {
		if !conn.WaitForStateChange(ctx, state) {
			return nil, errors.Join(fmt.Errorf("the control plane with the data folder %s does not answer: it is starting, stopping or stuck; its log says more", folder),
				conn.Close())
		}
	}
	return conn, nil
}
