package rootlesskit

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/fdpass"
	"github.com/postern-net/postern/userns/join"
)

// errQuit says that RootlessKit has ended before the child came.
var errQuit = errors.New("told to quit")

// meetChild waits for the child driver and returns the namespaces that it is in.
func meetChild(path string, quit <-chan struct{}) (*join.Target, error) {
	l, err := listenAt(path)
	if err != nil {
		return nil, fmt.Errorf("publish ports: %w", err)
	}
	type result struct {
		target *join.Target
		err    error
	}
	came := make(chan result, 1)
	go func() {
		t, err := acceptChild(l)
		came <- result{t, err}
	}()
	var r result
	select {
	case r = <-came:
		l.Close()
	case <-quit:
		l.Close()
		if r = <-came; r.target != nil {
			r.target.Close()
		}
		return nil, errQuit
	}
	if r.err != nil {
		return nil, fmt.Errorf("publish ports: wait for the child driver on %s: %w", path, r.err)
	}
	return r.target, nil
}

// listenAt makes the socket. One that an earlier run has left behind gives way: the
// state directory is locked for us.
func listenAt(path string) (*net.UnixListener, error) {
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() == os.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	l, err := net.ListenUnix(socketNetwork, &net.UnixAddr{Name: path, Net: socketNetwork})
	if err != nil {
		return nil, err
	}
	err = os.Chmod(path, 0o600)
	if err == nil {
		err = l.SetDeadline(time.Now().Add(meeting))
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// acceptChild takes connections until one is the child's.
func acceptChild(l *net.UnixListener) (*join.Target, error) {
	for {
		sock, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		conn, err := messages(sock)
		if err != nil {
			return nil, err
		}
		target, err := hear(conn)
		conn.Close()
		if !errors.Is(err, errStranger) {
			return target, err
		}
	}
}

// errStranger says that somebody else than the child has connected.
var errStranger = errors.New("another user's process")

// introduction bounds how long somebody who has connected may be silent.
const introduction = 5 * time.Second

// hear receives the child's namespaces.
func hear(conn *fdpass.Conn) (*join.Target, error) {
	cred, err := conn.PeerCred()
	if err != nil {
		return nil, err
	}
	// Root of the child's user namespace is ourselves out here.
	if cred.Uid != uint32(os.Geteuid()) {
		return nil, errStranger
	}
	if err := conn.SetDeadline(time.Now().Add(introduction)); err != nil {
		return nil, err
	}
	buf := make([]byte, len(hello)+1)
	n, files, err := conn.Recv(buf)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil {
		return nil, err
	}
	if string(buf[:n]) != hello || len(files) != 2 {
		return nil, fmt.Errorf("%q with %d descriptors: the child driver is of another version: %w", buf[:n], len(files), unix.EPROTO)
	}
	return join.OpenPaths(procPath(files[1]), procPath(files[0]))
}

func procPath(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
