package bind

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// The kinds of Internet sockets.
const (
	TCP = "tcp"
	UDP = "udp"
)

// Inet binds a socket, TCP or UDP by network, to an address of the host; TCP
// listens. IPv6 sockets leave IPv4 alone (IPV6_V6ONLY). UDP sockets tell each
// datagram's own destination (ip(7) IP_PKTINFO), so that a reply can come from
// there. Errors wrap the kernel's errno; Explain has the words.
func Inet(network string, addr netip.AddrPort) (*os.File, error) {
	sa, domain, err := sockaddr(addr)
	if err != nil {
		return nil, err
	}
	kind, bound := unix.SOCK_STREAM, listen
	if network == UDP {
		kind, bound = unix.SOCK_DGRAM, datagrams
	}
	return open(addr, network, domain, kind, func(fd int) error { return bound(fd, domain, sa) })
}

// Succeed is Inet for a UDP socket at an address where one is that was shut. The new
// one gets the datagrams: the kernel takes the socket that was bound last.
func Succeed(addr netip.AddrPort) (*os.File, error) {
	sa, domain, err := sockaddr(addr)
	if err != nil {
		return nil, err
	}
	return open(addr, UDP, domain, unix.SOCK_DGRAM, func(fd int) error {
		// Both must have SO_REUSEADDR, and only for as long as it takes to bind.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
		if err := datagrams(fd, domain, sa); err != nil {
			return err
		}
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 0))
	})
}

// open opens a socket and has it bound.
func open(addr netip.AddrPort, network string, domain, kind int, bound func(fd int) error) (*os.File, error) {
	fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if domain == unix.AF_INET6 {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1))
	}
	if err == nil {
		err = bound(fd)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	return Hold(fd, network+" "+addr.String())
}

// Port returns the port to which a socket is bound.
func Port(f *os.File) (port uint16, err error) {
	err = Control(f, func(fd int) error {
		sa, err := unix.Getsockname(fd)
		if err != nil {
			return os.NewSyscallError("getsockname", err)
		}
		port = Address(sa).Port()
		return nil
	})
	return port, err
}

// ReceiveInfo makes a UDP socket tell each datagram's own destination.
func ReceiveInfo(fd, domain int) error {
	err := error(nil)
	if domain == unix.AF_INET6 {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
	}
	// Also on IPv6 sockets, since an inherited one may carry IPv4 as well.
	if err == nil {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
	}
	return os.NewSyscallError("setsockopt", err)
}

// datagrams binds a UDP socket. It has no SO_REUSEADDR, with which another process
// could take the port away.
func datagrams(fd, domain int, sa unix.Sockaddr) error {
	if err := ReceiveInfo(fd, domain); err != nil {
		return err
	}
	return os.NewSyscallError("bind", unix.Bind(fd, sa))
}

// listen binds a TCP socket and lets clients come.
func listen(fd, _ int, sa unix.Sockaddr) error {
	// Connections of an earlier instance in TIME_WAIT do not hold the port.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Bind(fd, sa); err != nil {
		return os.NewSyscallError("bind", err)
	}
	// Where another has bound the port with SO_REUSEADDR too, listen finds out.
	return os.NewSyscallError("listen", unix.Listen(fd, Backlog))
}

func sockaddr(addr netip.AddrPort) (unix.Sockaddr, int, error) {
	ip := addr.Addr()
	if ip.Is4() {
		return &unix.SockaddrInet4{Addr: ip.As4(), Port: int(addr.Port())}, unix.AF_INET, nil
	}
	zone, err := zoneID(ip.Zone())
	return &unix.SockaddrInet6{Addr: ip.As16(), Port: int(addr.Port()), ZoneId: zone}, unix.AF_INET6, err
}

// zoneID is the index of the interface that a zone names (RFC 4007 11.2).
func zoneID(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if ifi, err := net.InterfaceByName(zone); err == nil {
		return uint32(ifi.Index), nil
	}
	if n, err := strconv.ParseUint(zone, 10, 31); err == nil && n > 0 {
		return uint32(n), nil
	}
	return 0, fmt.Errorf("interface %s: %w", zone, unix.ENODEV)
}

// Address is a socket's address as netip has it, IPv4 in IPv6 as IPv4; the zero
// AddrPort if it is none of the Internet's.
func Address(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		addr := netip.AddrFrom16(sa.Addr).Unmap()
		if ifi, err := net.InterfaceByIndex(int(sa.ZoneId)); sa.ZoneId != 0 && err == nil {
			addr = addr.WithZone(ifi.Name)
		}
		return netip.AddrPortFrom(addr, uint16(sa.Port))
	}
	return netip.AddrPort{}
}
