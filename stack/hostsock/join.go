package hostsock

import (
	"fmt"
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// joinedBuffer is asked for on the way in of sockets of Join and Intercept, in
// bytes; what bufferSize says holds here too. It is larger because the sender is on
// the same machine: what comes between two turns of the receiver must fit.
const joinedBuffer = 4 << 20

// Join takes over a UDP socket that is not bound, also when it fails, binds it to
// local and connects it to remote, which are of its family. It tells hop limits
// (Message.TTL), receives trains, and is sent on without an address (Packet.To).
// Between bind and connect it may receive from others. Errors keep the errno.
//
// There is no error queue. An ICMP error from remote fails one call and is passed
// over, like on the other sockets.
func Join(fd int, local, remote netip.AddrPort) (*Socket, error) {
	v6 := local.Addr().Is6()
	err := tune(fd, v6)
	if err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, sockaddr(local)))
	}
	if err == nil {
		err = os.NewSyscallError("connect", unix.Connect(fd, sockaddr(remote)))
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("join %s to %s: %w", local, remote, err)
	}
	return taken(fd, v6, local), nil
}

// Intercept takes over a bound UDP socket of one family, also when it fails, that
// gets datagrams meant for others (IP_TRANSPARENT, ip(7)). It tells where they were
// sent to and their hop limit, and receives trains.
func Intercept(fd int) (*Socket, error) {
	local := localAddr(fd)
	if !local.IsValid() {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("intercept: not a bound socket: %w", unix.EINVAL)
	}
	v6 := local.Addr().Is6()
	o := option{unix.IPPROTO_IP, unix.IP_RECVORIGDSTADDR, 1, true}
	if v6 {
		o = option{unix.IPPROTO_IPV6, unix.IPV6_RECVORIGDSTADDR, 1, true}
	}
	err := tune(fd, v6)
	if err == nil {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, o.level, o.name, o.value))
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("intercept at %s: %w", local, err)
	}
	return taken(fd, v6, local), nil
}

// tune sets what both kinds have.
func tune(fd int, v6 bool) error {
	hops := option{unix.IPPROTO_IP, unix.IP_RECVTTL, 1, true}
	if v6 {
		hops = option{unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1, true}
	}
	for _, o := range []option{
		hops,
		{unix.IPPROTO_UDP, unix.UDP_GRO, 1, false},
		{unix.SOL_SOCKET, unix.SO_RCVBUF, joinedBuffer, false},
		{unix.SOL_SOCKET, unix.SO_SNDBUF, bufferSize, false},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil && o.needed {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return os.NewSyscallError("fcntl", unix.SetNonblock(fd, true))
}

func taken(fd int, v6 bool, local netip.AddrPort) *Socket {
	unix.CloseOnExec(fd)
	s := &Socket{v6: v6, local: local, shared: true, trains: true, fd: fd}
	s.loopFrom.Store(MaxPayload)
	return s
}

// Enlarge asks for the receive buffer of a joined socket: for one of OpenUDP that
// turns out to be busy.
func (s *Socket) Enlarge() {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd >= 0 {
		_ = unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUF, joinedBuffer) // or it stays as it is
	}
}

// Part undoes the connect of Join: the socket keeps its address, but is no longer
// the one that remote's datagrams are for. What it has received it keeps.
func (s *Socket) Part() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return os.ErrClosed
	}
	// x/sys has no such address (connect(2), AF_UNSPEC).
	sa := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	_, _, e := unix.Syscall(unix.SYS_CONNECT, uintptr(s.fd), uintptr(unsafe.Pointer(&sa)), unsafe.Sizeof(sa))
	if e != 0 {
		return fmt.Errorf("part %s: %w", s.local, os.NewSyscallError("connect", e))
	}
	return nil
}

// Drainer empties sockets outside their poller. The zero value is ready; it is for
// one goroutine at a time.
type Drainer struct{ r reader }

// drainMost bounds what Drain takes, in messages: more than any receive buffer has,
// but an end if somebody fills it meanwhile.
const drainMost = 1 << 16

// Drain hands h what s has received, until nothing is left. Its poller may deliver
// some of it.
func (d *Drainer) Drain(s *Socket, h Handler) {
	e := entry{s, h}
	for n := 0; n < drainMost; {
		more, errno := d.r.receive(s)
		n += max(d.r.used, 1)
		if errno == unix.EAGAIN {
			return
		}
		if errno == 0 {
			d.r.deliver(e)
			if !more {
				return
			}
		}
	}
}

// Take hands h the first message that s has received, and reports whether there was
// one. It is for what has to leave before the rest.
func (d *Drainer) Take(s *Socket, h Handler) bool {
	for range tries { // an error may be an earlier packet's
		switch d.r.one(s) {
		case 0:
			d.r.deliver(entry{s, h})
			return true
		case unix.EAGAIN:
			return false
		}
	}
	return false
}
