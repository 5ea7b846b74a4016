package fdpass

import (
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// PeerCred is the process that made the other end of a unix socket, or connected to it,
// and the ids it had then (SO_PEERCRED, unix(7)), in our own namespaces' terms. For a
// socket of a pair that is the process that made the pair.
func PeerCred(c syscall.Conn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("ask who the socket's peer is: %w", err)
	}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) {
		cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("ask who the socket's peer is: %w", err)
	}
	return cred, nil
}

// PeerCred is the process at the other end; see the function of that name.
func (c *Conn) PeerCred() (*unix.Ucred, error) { return PeerCred(c.sock) }
