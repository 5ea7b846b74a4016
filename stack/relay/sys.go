package relay

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The system calls of the data path. They never block, so the scheduler is not told
// about them; see read.

// recv is recv(2), again after EINTR.
func recv(fd int32, b []byte, flags int) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(flags|unix.MSG_DONTWAIT), 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// send is send(2), again after EINTR. A peer that is gone causes no signal.
func send(fd int32, b []byte, flags int) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)), uintptr(flags|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL), 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// splice is splice(2) between a socket and a pipe, again after EINTR. SPLICE_F_MORE
// is not among the flags: it would hold the last bytes back.
func splice(from, to int32, n int) (int, syscall.Errno) {
	for {
		n, _, errno := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0,
			uintptr(n), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// setInt is setsockopt(2) with an int.
func setInt(fd int32, level, option int, value int32) syscall.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&value)), unsafe.Sizeof(value), 0)
	return errno
}

// setLinger makes close(2) reset the connection, or lets it end in order.
func setLinger(fd int32, reset bool) {
	var l unix.Linger
	if reset {
		l.Onoff = 1
	}
	_, _, _ = unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_LINGER,
		uintptr(unsafe.Pointer(&l)), unsafe.Sizeof(l), 0)
}

// pendingError takes a socket's error from the kernel; 0 if there is none.
func pendingError(fd int32) syscall.Errno {
	var errno int32
	size := uint32(unsafe.Sizeof(errno))
	_, _, failed := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_ERROR,
		uintptr(unsafe.Pointer(&errno)), uintptr(unsafe.Pointer(&size)), 0)
	if failed != 0 {
		return failed
	}
	return syscall.Errno(errno)
}

// quickAck acknowledges what was read at once (TCP_QUICKACK in tcp(7)). It belongs at
// the end of a burst: the kernel would wait for an answer to send the acknowledgment
// with, and a sender that measures its rate by acknowledgments (BBR) would take that
// time for the network's and pace what it sends next.
func quickAck(fd int32) { _ = setInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) }

// shutdownWrite is shutdown(2) of the sending half.
func shutdownWrite(fd int32) syscall.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return errno
}

// Local takes away the pacing of a TCP socket whose peer is on this machine, be it in
// another network namespace: nothing gets lost between the two, and a congestion
// control that paces (BBR, where it is the system's default) sets a timer for every
// segment, which on a virtual machine costs more than moving the bytes does. It has
// an effect only before the socket is connected; what a listener accepts takes it
// over. Reno is in every kernel and allowed to everyone (tcp(7),
// tcp_allowed_congestion_control). Where it cannot be set, nothing happens.
func Local(fd int) {
	_ = unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "reno")
}
