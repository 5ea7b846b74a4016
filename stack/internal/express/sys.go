package express

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of a connection's way, without allocations. Accept and connect tell
// the scheduler although they do not block: whoever has a copy of the listener, such as
// the container's root, could make it a blocking one at any time, and a connect within
// one machine runs the peer's side of the handshake too.

// sockaddr is a socket address as the kernel has it.
type sockaddr struct {
	raw unix.RawSockaddrInet6 // also long enough for, and laid out as, RawSockaddrInet4
	len uint32
}

func pack(ap netip.AddrPort) (sa sockaddr) {
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&sa.raw.Port))[:], ap.Port())
	if addr := ap.Addr(); addr.Is4() {
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(&sa.raw))
		in.Family, in.Addr, sa.len = unix.AF_INET, addr.As4(), unix.SizeofSockaddrInet4
	} else {
		sa.raw.Family, sa.raw.Addr, sa.len = unix.AF_INET6, addr.As16(), unix.SizeofSockaddrInet6
	}
	return sa
}

// unpack is the reverse of pack; the zero AddrPort stands for another family.
func (sa *sockaddr) unpack() netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.raw.Port))[:])
	switch {
	case sa.raw.Family == unix.AF_INET && sa.len >= unix.SizeofSockaddrInet4:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(&sa.raw))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), port)
	case sa.raw.Family == unix.AF_INET6 && sa.len >= unix.SizeofSockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.raw.Addr), port)
	}
	return netip.AddrPort{}
}

// openTCP is socket(2) for a non-blocking TCP socket of an address's family.
func openTCP(target netip.Addr) (int, syscall.Errno) {
	family := unix.AF_INET
	if !target.Is4() {
		family = unix.AF_INET6
	}
	fd, _, errno := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), 0
}

// bindTo binds a socket to an address and leaves the port to connect(2), which finds
// one that is free towards its target (ip(7), IP_BIND_ADDRESS_NO_PORT).
func bindTo(fd int, source netip.Addr) syscall.Errno {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	sa := pack(netip.AddrPortFrom(source, 0))
	_, _, errno := unix.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)), uintptr(sa.len))
	return errno
}

// connect is connect(2).
func connect(fd int, to netip.AddrPort) syscall.Errno {
	sa := pack(to)
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)), uintptr(sa.len))
	return errno
}

// accept is accept4(2).
func accept(listener int) (fd int, peer netip.AddrPort, errno syscall.Errno) {
	sa := sockaddr{len: unix.SizeofSockaddrInet6}
	n, _, errno := unix.Syscall6(unix.SYS_ACCEPT4, uintptr(listener), uintptr(unsafe.Pointer(&sa.raw)),
		uintptr(unsafe.Pointer(&sa.len)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, netip.AddrPort{}, errno
	}
	return int(n), sa.unpack(), 0
}

// localAddr is getsockname(2), the zero AddrPort if it fails.
func localAddr(fd int) netip.AddrPort {
	sa := sockaddr{len: unix.SizeofSockaddrInet6}
	_, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)), uintptr(unsafe.Pointer(&sa.len)))
	if errno != 0 {
		return netip.AddrPort{}
	}
	return sa.unpack()
}

// reset closes a socket so that its peer sees a reset.
func reset(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(fd)
}

// copyOf duplicates a File's descriptor: the File's own may be in Go's poller, which
// would wake up for every connection.
func copyOf(f *os.File) (int, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	fd := -1
	if e := raw.Control(func(own uintptr) { fd, err = unix.FcntlInt(own, unix.F_DUPFD_CLOEXEC, 3) }); e != nil {
		return -1, e
	}
	if err != nil {
		return -1, fmt.Errorf("copy the descriptor: %w", err)
	}
	return fd, nil
}

// short reports whether an error means that descriptors or memory have run out.
func short(errno syscall.Errno) bool {
	switch errno {
	case unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS:
		return true
	}
	return false
}

// passing reports whether an error of accept4(2) is one that the connection at hand
// already had, so that the next one may be all right.
func passing(errno syscall.Errno) bool {
	switch errno {
	case unix.EINTR, unix.ECONNABORTED, unix.ECONNRESET, unix.EPROTO, unix.EPERM, unix.ENOPROTOOPT, unix.ENETDOWN,
		unix.ENETUNREACH, unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ENONET, unix.ETIMEDOUT:
		return true
	}
	return false
}
