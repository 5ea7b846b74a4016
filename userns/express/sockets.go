package express

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/rtnl"
)

const (
	// firstPort is above what the kernel gives to clients by default
	// (net.ipv4.ip_local_port_range: 32768 to 60999), where hardly anybody listens.
	firstPort = 61051
	// ports is how many are tried.
	ports = 64
	// backlog is how many accepted connections may wait for the engine; the namespace's
	// net.core.somaxconn, 4096 by default, cuts it.
	backlog = 4096
)

// option is one setsockopt(2) with an int.
type option struct {
	what               string
	level, name, value int
}

// options of our sockets, before they are bound.
func options(domain, kind int) []option {
	list := []option{{"SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, rtnl.ExpressMark}}
	if domain == unix.AF_INET {
		list = append(list, option{"IP_TRANSPARENT", unix.SOL_IP, unix.IP_TRANSPARENT, 1})
	} else {
		list = append(list, option{"IPV6_TRANSPARENT", unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1},
			option{"IPV6_V6ONLY", unix.SOL_IPV6, unix.IPV6_V6ONLY, 1})
	}
	switch {
	case kind == unix.SOCK_STREAM:
		return list
	case domain == unix.AF_INET:
		return append(list, option{"IP_RECVORIGDSTADDR", unix.SOL_IP, unix.IP_RECVORIGDSTADDR, 1})
	default:
		return append(list, option{"IPV6_RECVORIGDSTADDR", unix.SOL_IPV6, unix.IPV6_RECVORIGDSTADDR, 1})
	}
}

// prepare sets a new socket up: options, a port on the loopback address, nonblocking
// at last. The runtime has decided before that it does not poll a descriptor which
// it only keeps for another process.
func prepare(f *os.File, domain, kind int) (at netip.AddrPort, err error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return at, err
	}
	cerr := rc.Control(func(fd uintptr) { at, err = prepareFD(int(fd), domain, kind) })
	if err == nil {
		err = cerr
	}
	return at, err
}

func prepareFD(fd, domain, kind int) (at netip.AddrPort, err error) {
	for _, o := range options(domain, kind) {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return at, fmt.Errorf("set %s: %w", o.what, err)
		}
	}
	if at, err = bind(fd, domain); err != nil {
		return at, err
	}
	if kind == unix.SOCK_STREAM {
		if err := listen(fd); err != nil {
			return at, fmt.Errorf("listen on %s: %w", at, err)
		}
	}
	return at, unix.SetNonblock(fd, true)
}

// bind takes the first free port.
func bind(fd, domain int) (netip.AddrPort, error) {
	addr := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if domain == unix.AF_INET6 {
		addr = netip.IPv6Loopback()
	}
	for port := uint16(firstPort); ; port++ {
		at := netip.AddrPortFrom(addr, port)
		err := unix.Bind(fd, sockaddr(at))
		if err == nil {
			return at, nil
		}
		if !errors.Is(err, unix.EADDRINUSE) || port == firstPort+ports-1 {
			return at, fmt.Errorf("bind to %s: %w", at, err)
		}
	}
}

// listen sets what the connections inherit, which are bound to the addresses that we
// stand for. SO_REUSEADDR lets a server of the container listen on the port of such a
// remote, if it has the option too; before bind it would have let another one share our
// own port. A congestion control that paces (BBR) sets a timer for every segment, for
// nothing on this path; Reno is in every kernel.
func listen(fd int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return err
	}
	unix.SetsockoptString(fd, unix.SOL_TCP, unix.TCP_CONGESTION, congestion) // only for speed
	return unix.Listen(fd, backlog)
}

// revive makes a listener listen again whose socket somebody has killed (ss -K,
// sock_diag's SOCK_DESTROY). The kernel leaves it its address, because that was asked
// for by bind. nil is no listener.
func revive(f *os.File) error {
	if f == nil {
		return nil
	}
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	cerr := rc.Control(func(fd uintptr) { err = reviveFD(int(fd)) })
	if err == nil {
		err = cerr
	}
	return err
}

func reviveFD(fd int) error {
	if on, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); err != nil || on != 0 {
		return err
	}
	// A killed socket is shut down in both directions, which the connections that it
	// accepts would inherit; disconnecting it ends that (tcp_disconnect in
	// net/ipv4/tcp.c). The raw call, because package unix has no AF_UNSPEC.
	var none unix.RawSockaddr
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none))
	if errno != 0 {
		return os.NewSyscallError("connect", errno)
	}
	_, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR) // takes the killing's error away
	return os.NewSyscallError("listen", unix.Listen(fd, backlog))
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}
