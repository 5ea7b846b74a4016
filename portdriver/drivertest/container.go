package drivertest

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// dialTCP is the network of a socketOrder for a client's socket.
const dialTCP = "dial"

// socketOrder asks the container's process for a socket.
type socketOrder struct {
	// Network is tcp or udp for a server's socket at Addr, dialTCP for one that is
	// connected to Addr.
	Network string
	Addr    netip.AddrPort
	// Backlog, if not negative, is how many connections wait to be accepted.
	Backlog int
}

// startContainer makes the container's namespaces and the process in them.
func startContainer(tb testing.TB) *helper {
	tb.Helper()
	return startHelper(tb, roleContainer, func(cmd *exec.Cmd) {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1}},
		}
	})
}

// runContainer is the container's process.
func runContainer() error {
	return serveOrders(func(o socketOrder) (answer, *os.File, error) {
		f, err := o.open()
		return answer{}, f, err
	})
}

// filer is a socket of package net.
type filer interface {
	File() (*os.File, error)
	SyscallConn() (syscall.RawConn, error)
}

func (o socketOrder) open() (*os.File, error) {
	sock, err := o.make()
	if err != nil {
		return nil, err
	}
	defer sock.Close() // what is sent is a copy
	s, ok := sock.(filer)
	if !ok {
		return nil, fmt.Errorf("%T has no descriptor", sock)
	}
	if o.Network == "tcp" && o.Backlog >= 0 {
		if err := setBacklog(s, o.Backlog); err != nil {
			return nil, err
		}
	}
	return s.File()
}

func (o socketOrder) make() (io.Closer, error) {
	switch o.Network {
	case dialTCP:
		return net.DialTimeout("tcp"+o.family(), o.Addr.String(), patience)
	case "tcp":
		return net.Listen("tcp"+o.family(), o.Addr.String())
	default:
		return net.ListenPacket(o.Network+o.family(), o.Addr.String())
	}
}

func (o socketOrder) family() string {
	if o.Addr.Addr().Is4() {
		return "4"
	}
	return "6"
}

// setBacklog listens once more, which changes the backlog (listen(2)).
func setBacklog(s filer, n int) error {
	rc, err := s.SyscallConn()
	if err != nil {
		return err
	}
	var lerr error
	if err := rc.Control(func(fd uintptr) { lerr = unix.Listen(int(fd), n) }); err != nil {
		return err
	}
	return lerr
}
