package hostsock

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Message is what one receive brought. Payload is valid only during the call
// that it is passed to.
type Message struct {
	From netip.AddrPort
	// Local is the host's address that the message was sent to, and Interface the
	// index of the interface by which it came; both are set for adopted sockets
	// only. For a group or broadcast Local is what a reply may come from: the
	// interface's address over IPv4, the zero Addr over IPv6, where there is none.
	Local     netip.Addr
	Interface int
	Payload   []byte
	// Segment is 0 if Payload is one datagram. Otherwise Payload holds several of
	// Segment bytes each, the last possibly shorter.
	Segment int
}

// receiveBuffer takes the largest datagram and the largest super-segment.
const receiveBuffer = 1 << 16

// reader has the memory that receiving needs.
type reader struct {
	buf  []byte
	oob  [32]uint64 // aligned for struct cmsghdr
	name name
	iov  unix.Iovec
	hdr  unix.Msghdr
}

func (r *reader) recv(fd, flags int) (int, unix.Errno) {
	if r.buf == nil {
		r.buf = make([]byte, receiveBuffer)
	}
	setIovec(&r.iov, r.buf)
	r.name = name{}
	r.hdr = unix.Msghdr{
		Name:    (*byte)(unsafe.Pointer(&r.name)),
		Namelen: unix.SizeofSockaddrInet6,
		Iov:     &r.iov,
		Control: (*byte)(unsafe.Pointer(&r.oob)),
	}
	r.hdr.SetIovlen(1)
	r.hdr.SetControllen(len(r.oob) * 8)
	return recvmsg(fd, &r.hdr, flags)
}

// control returns the control messages of the last receive.
func (r *reader) control() []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&r.oob)), len(r.oob)*8)[:r.hdr.Controllen]
}

// message receives what comes next. An errno other than 0 and EAGAIN may belong
// to a packet sent earlier and says nothing about the next message.
func (r *reader) message(s *Socket) (Message, unix.Errno) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return Message{}, unix.EAGAIN
	}
	n, e := r.recv(s.fd, 0)
	if e != 0 {
		return Message{}, e
	}
	m := Message{From: getName(&r.name), Payload: r.buf[:n]}
	m.readControl(r.control())
	if m.Segment >= n {
		m.Segment = 0
	}
	return m, 0
}

// report receives the next entry of the error queue.
func (r *reader) report(s *Socket) (Report, unix.Errno) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return Report{}, unix.EAGAIN
	}
	n, e := r.recv(s.fd, unix.MSG_ERRQUEUE)
	if e != 0 {
		return Report{}, e
	}
	rep := parseReport(r.control())
	rep.Target, rep.Payload = getName(&r.name), r.buf[:n]
	return rep, 0
}

// Layout of struct in_pktinfo (ip(7)) and of struct in6_pktinfo (ipv6(7)) in
// bytes: IPv4 has the index, the local address and the header's destination, IPv6
// the destination and the index.
const (
	pktinfo4Len     = 12
	pktinfo4LocalAt = 4
	pktinfo6Len     = 20
	pktinfo6IndexAt = 16
)

// readControl takes segment size and local address from control messages.
// What it does not know it passes over.
func (m *Message) readControl(control []byte) {
	for len(control) >= unix.CmsgLen(0) {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return
		}
		switch {
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			m.Segment = max(0, int(int32(binary.NativeEndian.Uint32(data))))
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_PKTINFO && len(data) >= pktinfo4Len:
			m.Interface = int(binary.NativeEndian.Uint32(data))
			m.Local = netip.AddrFrom4([4]byte(data[pktinfo4LocalAt:]))
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= pktinfo6Len:
			m.Interface = int(binary.NativeEndian.Uint32(data[pktinfo6IndexAt:]))
			if a := netip.AddrFrom16([16]byte(data)); !a.IsMulticast() {
				m.Local = a
			}
		}
		control = rest
	}
}
