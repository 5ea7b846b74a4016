package hostsock

import (
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// bufferSize is asked for on either side of a socket, in bytes. The kernel cuts
// it down to net.core.rmem_max and wmem_max (socket(7)); the default of both is
// about 208 KiB, three super-segments.
const bufferSize = 1 << 20

// maxSegments is how many datagrams one UDP_SEGMENT send may hold: the kernel's
// UDP_MAX_SEGMENTS, which was 64 until Linux 6.9 doubled it.
const maxSegments = 64

// MaxPayload is the largest number of bytes that one send may carry: 65,535
// less an IPv4 and a UDP header.
const MaxPayload = 65507

// Socket is one datagram socket. It is safe for concurrent use.
type Socket struct {
	v6    bool
	local netip.AddrPort
	// shared says that other processes may hold the same open file description.
	shared bool
	// trains says that its handler gets datagrams of one size that follow each
	// other as one Message.
	trains bool

	// mu is held for reading during a system call on fd and for writing to close
	// it, so that a descriptor is never used after its number was given away.
	mu sync.RWMutex
	fd int // -1 once closed

	// loopFrom is the segment size in bytes from which on UDP_SEGMENT does not
	// work on this socket's paths.
	loopFrom atomic.Int64

	appetite appetite

	poller *Poller
	token  uint64
	rested time.Time // see courtesy; for the poller's goroutine
}

// option is one setsockopt call. Those that are not needed may fail.
type option struct {
	level, name, value int
	needed             bool
}

// OpenUDP opens a UDP socket of outbound's family, bound to outbound, which may
// be the unspecified address, and to port. Port 0 leaves the choice to the
// kernel. Errors keep the errno: EADDRINUSE, EACCES, EMFILE and so on.
func OpenUDP(outbound netip.Addr, port uint16) (*Socket, error) {
	s, err := open(outbound.Is6(), unix.IPPROTO_UDP)
	if err != nil {
		return nil, fmt.Errorf("open UDP socket: %w", err)
	}
	if err := unix.Bind(s.fd, sockaddr(netip.AddrPortFrom(outbound, port))); err != nil {
		_ = unix.Close(s.fd)
		return nil, fmt.Errorf("bind UDP socket to %s: %w", netip.AddrPortFrom(outbound, port), os.NewSyscallError("bind", err))
	}
	// Without it bursts arrive one by one (Linux before 5.0).
	_ = unix.SetsockoptInt(s.fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	s.trains = true
	s.local = localAddr(s.fd)
	return s, nil
}

// OpenPing opens a ping socket (icmp(7)) of outbound's family, bound to outbound
// unless that is unspecified. The kernel chooses the identifier. EACCES means
// that net.ipv4.ping_group_range has no group of this process; it is the
// setting for both families.
func OpenPing(outbound netip.Addr) (*Socket, error) {
	proto := unix.IPPROTO_ICMP
	if outbound.Is6() {
		proto = unix.IPPROTO_ICMPV6
	}
	s, err := open(outbound.Is6(), proto)
	if err != nil {
		return nil, fmt.Errorf("open ping socket: %w", err)
	}
	if err := unix.Bind(s.fd, sockaddr(netip.AddrPortFrom(outbound, 0))); err != nil {
		_ = unix.Close(s.fd)
		return nil, fmt.Errorf("bind ping socket to %s: %w", outbound, os.NewSyscallError("bind", err))
	}
	s.local = localAddr(s.fd)
	return s, nil
}

func open(v6 bool, proto int) (*Socket, error) {
	domain := unix.AF_INET
	options := []option{
		{unix.IPPROTO_IP, unix.IP_RECVERR, 1, true},
	}
	if v6 {
		domain = unix.AF_INET6
		options = []option{
			{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1, true},
			{unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1, true},
		}
	}
	options = append(options,
		option{unix.SOL_SOCKET, unix.SO_RCVBUF, bufferSize, false},
		option{unix.SOL_SOCKET, unix.SO_SNDBUF, bufferSize, false})
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil && o.needed {
			_ = unix.Close(fd)
			return nil, os.NewSyscallError("setsockopt", err)
		}
	}
	s := &Socket{v6: v6, fd: fd}
	s.loopFrom.Store(MaxPayload)
	return s, nil
}

// LocalAddr returns the address that the socket is bound to. For a ping socket
// the port is the identifier of its echo requests.
func (s *Socket) LocalAddr() netip.AddrPort { return s.local }

// CanSegment reports whether batches of datagrams of size bytes are worth
// making: nothing speaks against UDP_SEGMENT so far.
func (s *Socket) CanSegment(size int) bool { return int64(size) < s.loopFrom.Load() }

// Close takes the socket out of its poller and closes it. When Close returns the
// descriptor is free; what was received before may still be delivered.
func (s *Socket) Close() {
	if s.poller != nil {
		s.poller.remove(s.token)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fd >= 0 {
		if s.shared && s.poller != nil {
			s.poller.unwatch(s.fd)
		}
		_ = unix.Close(s.fd)
		s.fd = -1
	}
}

func sockaddr(ap netip.AddrPort) unix.Sockaddr {
	if ap.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
}

func localAddr(fd int) netip.AddrPort {
	switch sa, err := unix.Getsockname(fd); sa := sa.(type) {
	case *unix.SockaddrInet4:
		if err == nil {
			return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
		}
	case *unix.SockaddrInet6:
		if err == nil {
			return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
		}
	}
	return netip.AddrPort{}
}
