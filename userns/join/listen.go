package join

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/internal/rawfork"
)

// backlog is how many connections may wait to be accepted; the namespace's
// net.core.somaxconn, 4096 by default, cuts it.
const backlog = 4096

// Listen makes a listening TCP socket in the target's network namespace, to which
// the container's own processes connect. kind is SocketTCP4 or SocketTCP6, as the
// address; port 0 is a free one (getsockname(2)). Ports below 1024 need nothing
// special, and the address may be one that the container does not have yet
// (IP_FREEBIND). EADDRINUSE when somebody listens there.
//
// The socket is blocking, so that who only keeps it for another process is not
// woken by its clients; who accepts sets it nonblocking.
func (t *Target) Listen(kind handoff.SocketKind, addr netip.AddrPort) (*os.File, error) {
	op := fmt.Sprintf("listen on %s in %s", addr, t.name)
	plan := socketPlan{unix.AF_INET, unix.SOCK_STREAM, []socketOption{
		{"SO_REUSEADDR", unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{"IP_FREEBIND", unix.SOL_IP, unix.IP_FREEBIND, 1},
	}}
	switch {
	case kind == handoff.SocketTCP4 && addr.Addr().Is4():
	case kind == handoff.SocketTCP6 && addr.Addr().Is6() && !addr.Addr().Is4In6() && addr.Addr().Zone() == "":
		plan.domain = unix.AF_INET6
		plan.options = append(plan.options, socketOption{"IPV6_V6ONLY", unix.SOL_IPV6, unix.IPV6_V6ONLY, 1})
	default:
		return nil, fmt.Errorf("%s: no address for a %s socket: %w", op, kind, unix.EINVAL)
	}
	var f *os.File
	v := t.newVisit(1)
	fd := v.script.NewReg()
	makeSocket(v.script, kind.String(), plan, fd, v.sent.Next())
	v.into = append(v.into, &f)
	sa := rawSockaddr(addr)
	v.script.Call("bind to "+addr.String(), unix.SYS_BIND, fd.Arg(), v.script.Bytes(sa), rawfork.Int(len(sa)))
	v.script.Call("listen on "+addr.String(), unix.SYS_LISTEN, fd.Arg(), rawfork.Int(backlog))
	v.script.Send(v.sent)
	if err := t.pay(v); err != nil {
		return nil, err
	}
	return f, nil
}

// rawSockaddr is struct sockaddr_in or sockaddr_in6 (ip(7), ipv6(7)).
func rawSockaddr(addr netip.AddrPort) []byte {
	size, family, at := unix.SizeofSockaddrInet4, uint16(unix.AF_INET), 4
	if addr.Addr().Is6() {
		size, family, at = unix.SizeofSockaddrInet6, unix.AF_INET6, 8
	}
	b := make([]byte, size)
	binary.NativeEndian.PutUint16(b, family)
	binary.BigEndian.PutUint16(b[2:], addr.Port())
	copy(b[at:], addr.Addr().AsSlice())
	return b
}
