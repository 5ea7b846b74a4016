// Package sockcall makes the system calls of a connection's way, without allocations.
//
// Accept and Connect tell Go's scheduler although they do not block: whoever has a copy
// of a socket, such as the container's root, could make it a blocking one at any time
// (O_NONBLOCK is not the descriptor's), and then a thread that the scheduler does not
// know of would stop the whole process. A connect within one machine runs the peer's
// side of the handshake, too.
//
// What an errno of theirs means, and how many descriptors there may be, is here as well.
package sockcall

import (
	"encoding/binary"
	"net/netip"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sockaddr is a socket address as the kernel has it.
type sockaddr struct {
	raw unix.RawSockaddrInet6 // also long enough for, and laid out as, RawSockaddrInet4
	len uint32
}

// pack turns an address and port into a sockaddr of the address's own family.
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

// unpack is the reverse of pack, with a mapped IPv4 address as what it is. The zero
// AddrPort stands for an address of another family.
func (sa *sockaddr) unpack() netip.AddrPort {
	port := binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&sa.raw.Port))[:])
	switch {
	case sa.raw.Family == unix.AF_INET && sa.len >= unix.SizeofSockaddrInet4:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(&sa.raw))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), port)
	case sa.raw.Family == unix.AF_INET6 && sa.len >= unix.SizeofSockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.raw.Addr).Unmap(), port)
	}
	return netip.AddrPort{}
}

// Accept is accept4(2), for a non-blocking socket of a non-blocking listener.
func Accept(listener int) (fd int, peer netip.AddrPort, errno syscall.Errno) {
	sa := sockaddr{len: unix.SizeofSockaddrInet6}
	n, _, errno := unix.Syscall6(unix.SYS_ACCEPT4, uintptr(listener), uintptr(unsafe.Pointer(&sa.raw)),
		uintptr(unsafe.Pointer(&sa.len)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
	if errno != 0 {
		return -1, netip.AddrPort{}, errno
	}
	return int(n), sa.unpack(), 0
}

// Bind is bind(2).
func Bind(fd int, to netip.AddrPort) syscall.Errno {
	sa := pack(to)
	_, _, errno := unix.RawSyscall(unix.SYS_BIND, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)), uintptr(sa.len))
	return errno
}

// Connect is connect(2) for a non-blocking socket.
func Connect(fd int, to netip.AddrPort) syscall.Errno {
	sa := pack(to)
	_, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)), uintptr(sa.len))
	return errno
}

// LocalAddr is getsockname(2), the zero AddrPort for a socket that is not one of IP.
func LocalAddr(fd int) netip.AddrPort {
	sa := sockaddr{len: unix.SizeofSockaddrInet6}
	_, _, errno := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa.raw)),
		uintptr(unsafe.Pointer(&sa.len)))
	if errno != 0 {
		return netip.AddrPort{}
	}
	return sa.unpack()
}

// Reset closes a socket so that its peer sees a reset.
func Reset(fd int) {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	_ = unix.Close(fd)
}

// OpenTCP is socket(2) for a non-blocking TCP socket of an address's family.
func OpenTCP(target netip.Addr) (int, syscall.Errno) {
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
