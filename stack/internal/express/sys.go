package express

import (
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/sockcall"
)

// bindTo binds a socket to an address and leaves the port to connect(2), which finds
// one that is free towards its target (ip(7), IP_BIND_ADDRESS_NO_PORT).
func bindTo(fd int, source netip.Addr) syscall.Errno {
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
	return sockcall.Bind(fd, netip.AddrPortFrom(source, 0))
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
