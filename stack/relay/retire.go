package relay

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// retire makes a side's socket, whose flow has ended in order, one that can be
// connected again. It reports false, and has changed nothing but that the end of
// stream is sent, if something is left of the connection: then the socket must be
// closed.
//
// A socket that is not in CLOSE may have bytes that its peer has not taken, and
// disconnecting it would reset the connection. One in CLOSE has lost its connection,
// its port and its timers; disconnecting takes away the queues, the half-closes and
// the rest (tcp_disconnect in net/ipv4/tcp.c), but not an error, which the next
// connection would get for its own.
func (f *Flow) retire(s *side) bool {
	if !s.shut && shutdownWrite(s.fd) != 0 {
		return false
	}
	if tcpState(s.fd) != tcpClose || pendingError(s.fd) != 0 {
		return false
	}
	if unix.EpollCtl(f.loop.epoll, unix.EPOLL_CTL_DEL, int(s.fd), nil) != nil || !disconnect(s.fd) {
		return false
	}
	if s.shut {
		setLinger(s.fd, true)
	}
	return true
}

// tcpClose is TCP_CLOSE of netinet/tcp.h.
const tcpClose = 7

// tcpState is the state of a TCP socket, 0 if it cannot be told.
func tcpState(fd int32) byte {
	var state byte // the first of struct tcp_info; the kernel writes no more than it is asked for
	size := uint32(unsafe.Sizeof(state))
	_, _, errno := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.IPPROTO_TCP, unix.TCP_INFO,
		uintptr(unsafe.Pointer(&state)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return 0
	}
	return state
}

// disconnect is connect(2) with AF_UNSPEC.
func disconnect(fd int32) bool {
	var sa unix.RawSockaddr // AF_UNSPEC is 0
	_, _, errno := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa))
	return errno == 0
}
