package drivertest

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/hostsock/nstest"
)

// place is where clients are.
type place struct {
	name string
	// ns is nil for the host's own namespace.
	ns *nstest.Namespace
	// addr4 and addr6 are the clients' addresses, host4 and host6 those that they
	// know the host by.
	addr4, addr6, host4, host6 netip.Addr
}

// places returns where clients can be: remote, on the host by its LAN address, and
// on the host's loopback.
func places(remote *nstest.Namespace) []place {
	lan4, lan6 := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8:1::1")
	lo4, lo6 := netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()
	return []place{
		{"remote", remote, nstest.Router4, nstest.Router6, lan4, lan6},
		{"host", nil, lan4, lan6, lan4, lan6},
		{"loopback", nil, lo4, lo6, lo4, lo6},
	}
}

// family is the IP version of a case.
type family string

const (
	v4 family = "ipv4"
	v6 family = "ipv6"
)

// addr is the clients' address, host the host's.
func (p place) addr(f family) netip.Addr { return pick(f, p.addr4, p.addr6) }
func (p place) host(f family) netip.Addr { return pick(f, p.host4, p.host6) }

func pick(f family, a4, a6 netip.Addr) netip.Addr {
	if f == v4 {
		return a4
	}
	return a6
}

// do runs f in the place's namespace.
func (p place) do(tb testing.TB, f func() error) (err error) {
	if p.ns == nil {
		return f()
	}
	p.ns.Do(tb, func() error { err = f(); return nil })
	return err
}

// dial connects from the place's address, port 0 being any, to a port of the host.
func (p place) dial(tb testing.TB, from uint16, to netip.AddrPort) (*net.TCPConn, error) {
	var fd int
	err := p.do(tb, func() (err error) {
		fd, err = clientSocket(netip.AddrPortFrom(p.addr(familyOf(to.Addr())), from))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("a client's socket: %w", err)
	}
	f := os.NewFile(uintptr(fd), "client")
	defer f.Close()
	if err := connect(f, to); err != nil {
		return nil, fmt.Errorf("connect to %s: %w", to, err)
	}
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func familyOf(a netip.Addr) family {
	if a.Is4() {
		return v4
	}
	return v6
}

// clientSocket makes a TCP socket with the address.
func clientSocket(addr netip.AddrPort) (int, error) {
	domain := unix.AF_INET
	if addr.Addr().Is6() {
		domain = unix.AF_INET6
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err == nil {
		err = unix.Bind(fd, sockaddr(addr))
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// connect waits for the connection on the runtime's poller.
func connect(f *os.File, to netip.AddrPort) error {
	if err := f.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	rc, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var cerr error
	started := false
	err = rc.Write(func(fd uintptr) bool {
		if !started {
			started = true
			cerr = unix.Connect(int(fd), sockaddr(to))
			return cerr != unix.EINPROGRESS
		}
		var errno int
		if errno, cerr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); errno != 0 {
			cerr = unix.Errno(errno)
		}
		return true
	})
	if err != nil {
		return err
	}
	return cerr
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// packet makes a client's UDP socket at the place's address.
func (p place) packet(tb testing.TB, f family) *net.UDPConn {
	tb.Helper()
	var c *net.UDPConn
	err := p.do(tb, func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(p.addr(f), 0)))
		return err
	})
	if err != nil {
		tb.Fatalf("a client's UDP socket: %v", err)
	}
	tb.Cleanup(func() { c.Close() })
	return c
}
