package splice

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ipLocalPortRange is IP_LOCAL_PORT_RANGE of linux/in.h. It is for IPv6 too.
const ipLocalPortRange = 51

// setPorts has the kernel choose from one port, 0: from all that it hands out.
func setPorts(fd int, only uint16) syscall.Errno {
	return setInt(fd, unix.IPPROTO_IP, ipLocalPortRange, uint32(only)<<16|uint32(only))
}

// setInt is setsockopt(2) with an int.
func setInt(fd, level, option int, value uint32) syscall.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SETSOCKOPT, uintptr(fd), uintptr(level), uintptr(option),
		uintptr(unsafe.Pointer(&value)), unsafe.Sizeof(value), 0)
	return errno
}

// waiting reports whether a socket has bytes to be read.
func waiting(fd int) bool {
	var b byte
	n, _, _ := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b)), 1,
		unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	return n == 1
}
