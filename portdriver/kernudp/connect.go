package kernudp

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/internal/datagram"
	"github.com/postern-net/postern/stack/hostsock"
)

// maxBinds is how many sources are tried for one flow.
const maxBinds = 8

// connect binds a socket of the container's network namespace to a flow's source,
// connects it to the flow's target and takes it over, also when it fails. If
// somebody there has the source already the flow gets another port.
func connect(fd int, f *datagram.Flow) (*hostsock.Socket, portdriver.Route, error) {
	route, err := bind(fd, f)
	if err == nil {
		if err = unix.Connect(fd, sockaddr(route.Target)); err != nil {
			err = fmt.Errorf("connect %s to %s in the container: %w", route.Source, route.Target, os.NewSyscallError("connect", err))
		}
	}
	if err == nil {
		err = reportErrors(fd, route.Target.Addr().Is4())
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, route, err
	}
	s, err := hostsock.Adopt(fd)
	return s, route, err
}

// bind returns the flow's final route.
func bind(fd int, f *datagram.Flow) (portdriver.Route, error) {
	var err error
	for range maxBinds {
		route := f.Route()
		if err = unix.Bind(fd, sockaddr(route.Source)); err == nil {
			return route, nil
		}
		// EACCES: a port below ip_unprivileged_port_start.
		taken := errors.Is(err, syscall.EADDRINUSE) || errors.Is(err, syscall.EACCES)
		if !taken || !f.OtherSource() {
			break
		}
	}
	return f.Route(), fmt.Errorf("bind to %s in the container: %w", f.Route().Source, os.NewSyscallError("bind", err))
}

// reportErrors turns on the error queue, which tells of a refused port without
// failing the next call.
func reportErrors(fd int, v4 bool) error {
	level, name := unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	if v4 {
		level, name = unix.IPPROTO_IP, unix.IP_RECVERR
	}
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, level, name, 1))
}

func sockaddr(ap netip.AddrPort) unix.Sockaddr {
	if ap.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(ap.Port()), Addr: ap.Addr().As16()}
}
