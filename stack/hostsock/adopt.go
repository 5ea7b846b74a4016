package hostsock

import (
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Adopt takes over the descriptor of a UDP socket, also when it fails: one of a
// published port, which others bound and may hold as well. It is made to tell the
// local address of what it receives (Message.Local), because a reply must come from
// there, and to receive in batches. A dual-stack socket, such as one of socket
// activation, has IPv4 addresses in their mapped form (RFC 4291 section 2.5.5.2).
//
// There is no error queue: an unconnected socket without one reports no ICMP
// errors, and a client that has gone away is nobody's concern.
func Adopt(fd int) (*Socket, error) {
	s, err := adopt(fd)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("adopt UDP socket: %w", err)
	}
	return s, nil
}

func adopt(fd int) (*Socket, error) {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	proto, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	if proto != unix.IPPROTO_UDP || domain != unix.AF_INET && domain != unix.AF_INET6 {
		return nil, fmt.Errorf("domain %d, protocol %d: %w", domain, proto, syscall.EPROTONOSUPPORT)
	}
	info := option{unix.IPPROTO_IP, unix.IP_PKTINFO, 1, true}
	if domain == unix.AF_INET6 {
		info = option{unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1, true}
	}
	for _, o := range []option{
		info,
		{unix.IPPROTO_UDP, unix.UDP_GRO, 1, false},
		{unix.SOL_SOCKET, unix.SO_RCVBUF, bufferSize, false},
		{unix.SOL_SOCKET, unix.SO_SNDBUF, bufferSize, false},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil && o.needed {
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, os.NewSyscallError("fcntl", err)
	}
	unix.CloseOnExec(fd)
	s := &Socket{v6: domain == unix.AF_INET6, local: localAddr(fd), shared: true, fd: fd}
	s.loopFrom.Store(MaxPayload)
	return s, nil
}
