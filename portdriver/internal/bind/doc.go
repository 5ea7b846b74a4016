// Package bind makes the host's listening sockets of published ports, and says in
// words why one cannot be made.
//
// A socket that it makes is nonblocking but not in the poller of this process's
// runtime: the engine serves it through a copy, and every client would wake both
// processes. Its File must therefore not be read from; it is there to be handed on
// and closed.
package bind

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Backlog is how many connections may wait to be accepted. The kernel cuts it to
// net.core.somaxconn, whose default is the same (listen(2)).
const Backlog = 4096

// Hold makes a File of a socket, nonblocking and outside the runtime's poller. It
// takes the descriptor over, which nobody else must be using.
func Hold(fd int, name string) (*os.File, error) {
	unix.CloseOnExec(fd)
	// NewFile adds only those to the poller that are nonblocking already.
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if err := unix.SetNonblock(fd, true); err != nil {
		f.Close()
		return nil, os.NewSyscallError("fcntl", err)
	}
	return f, nil
}

// Adopt is Hold for a socket that is in a File, which it closes in any case.
func Adopt(f *os.File, name string) (*os.File, error) {
	defer f.Close()
	copied := -1
	err := Control(f, func(fd int) (err error) {
		copied, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		return os.NewSyscallError("fcntl", err)
	})
	if err != nil {
		return nil, fmt.Errorf("take over a listener: %w", err)
	}
	return Hold(copied, name)
}

// Shut ends a listener at once in every process that has a copy: new clients are
// refused, accept(2) fails with EINVAL, and the port can be bound again. A UDP socket
// stays bound until its last copy is closed, but Succeed may bind beside it.
func Shut(f *os.File) {
	// A socket for which this fails has ended already.
	_ = Control(f, func(fd int) error {
		if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on == 0 {
			return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		}
		return unix.Shutdown(fd, unix.SHUT_RDWR)
	})
}

// Control calls use with the descriptor of f, which stays open meanwhile.
func Control(f *os.File, use func(fd int) error) error {
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var uerr error
	if err := rc.Control(func(fd uintptr) { uerr = use(int(fd)) }); err != nil {
		return err
	}
	return uerr
}
