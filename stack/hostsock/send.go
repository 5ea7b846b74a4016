package hostsock

import (
	"net/netip"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Packet is something to send: one datagram, or several to the same place.
type Packet struct {
	// To is where; the zero AddrPort is where a socket of Join is connected to.
	To netip.AddrPort
	// From is the host's address to send from, of the socket's family; the zero
	// Addr leaves the choice to the kernel. Only a Message's Local or an address
	// that the socket may be bound to is taken.
	From netip.Addr
	// Interface is the index of the interface to send by; 0 leaves it to the
	// host's routes. A link-local To needs it.
	Interface int
	// TTL is the hop limit; 0 means the host's default.
	TTL uint8
	// Segment is 0 if Payload is one datagram. Otherwise Payload holds several of
	// Segment bytes each, the last possibly shorter. UDP only.
	Segment int
	Payload []byte
}

// Datagrams returns how many datagrams the packet holds.
func (p Packet) Datagrams() int {
	if p.Segment <= 0 || len(p.Payload) <= p.Segment {
		return 1
	}
	return (len(p.Payload) + p.Segment - 1) / p.Segment
}

// Writer has the memory that sending needs, so that it does not allocate. The
// zero value is ready. It is for one goroutine at a time.
type Writer struct {
	name name
	ctl  controls
	iov  unix.Iovec
	hdr  unix.Msghdr
	// many is allocated when UDP_SEGMENT fails for the first time.
	many []mmsghdr
	iovs []unix.Iovec
}

// Send sends p on s without waiting and returns how many datagrams went out. A
// full send buffer is EAGAIN or ENOBUFS. Errors are about this packet as far as
// one can tell: those that wait from earlier ones are passed over.
func (w *Writer) Send(s *Socket, p Packet) (int, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.fd < 0 {
		return 0, os.ErrClosed
	}
	w.hdr = unix.Msghdr{}
	if p.To.IsValid() {
		w.hdr.Name, w.hdr.Namelen = (*byte)(unsafe.Pointer(&w.name)), putName(&w.name, p.To)
	}
	if p.Datagrams() == 1 {
		return w.sendOne(s, p)
	}
	sent := 0
	for len(p.Payload) > 0 {
		n := p.Segment * min(maxSegments, max(1, MaxPayload/p.Segment))
		part := p
		part.Payload = p.Payload[:min(n, len(p.Payload))]
		p.Payload = p.Payload[len(part.Payload):]
		m, err := w.sendBatch(s, part)
		sent += m
		if err != nil {
			return sent, err
		}
	}
	return sent, nil
}

func (w *Writer) sendOne(s *Socket, p Packet) (int, error) {
	w.ctl.reset()
	w.addOptions(s, p)
	if e := w.transmit(s, p.Payload); e != 0 {
		return 0, os.NewSyscallError("sendmsg", e)
	}
	return 1, nil
}

// sendBatch sends what fits one call, segmented by the kernel if it can be.
func (w *Writer) sendBatch(s *Socket, p Packet) (int, error) {
	n := p.Datagrams()
	if n == 1 {
		return w.sendOne(s, p)
	}
	if !s.CanSegment(p.Segment) {
		return w.sendMany(s, p)
	}
	w.ctl.reset()
	w.addOptions(s, p)
	w.ctl.addUint16(unix.IPPROTO_UDP, unix.UDP_SEGMENT, uint16(p.Segment))
	switch e := w.transmit(s, p.Payload); e {
	case 0:
		return n, nil
	case unix.EINVAL, unix.EMSGSIZE, unix.EIO:
		// EINVAL or EMSGSIZE: the datagrams are larger than the path's MTU. EIO:
		// the route has a transformation (IPsec) or a device without checksums.
		limit := int64(p.Segment)
		if e == unix.EIO {
			limit = 0
		}
		s.loopFrom.Store(min(limit, s.loopFrom.Load()))
		return w.sendMany(s, p)
	default:
		return 0, os.NewSyscallError("sendmsg", e)
	}
}

// addOptions adds what a packet asks for to the control messages.
func (w *Writer) addOptions(s *Socket, p Packet) {
	switch {
	case p.TTL == 0:
	case s.v6:
		w.ctl.addInt32(unix.IPPROTO_IPV6, unix.IPV6_HOPLIMIT, int32(p.TTL))
	default:
		w.ctl.addInt32(unix.IPPROTO_IP, unix.IP_TTL, int32(p.TTL))
	}
	switch {
	case !p.From.IsValid() && p.Interface == 0:
	case s.v6:
		w.ctl.addPktinfo6(p.From, p.Interface)
	default:
		w.ctl.addPktinfo4(p.From, p.Interface)
	}
}

// tries is how often a send is made that fails with an error which may belong
// to an earlier packet. An error takes the pending one away, so the second try
// tells; the third is for an ICMP error that arrives in between.
const tries = 3

func (w *Writer) transmit(s *Socket, payload []byte) unix.Errno {
	setIovec(&w.iov, payload)
	w.hdr.Iov = &w.iov
	w.hdr.SetIovlen(1)
	w.ctl.attach(&w.hdr)
	var e unix.Errno
	for range tries {
		if e = sendmsg(s.fd, &w.hdr); !mayBePending(e) {
			break
		}
	}
	return e
}

// mayBePending reports whether e may be an ICMP error about an earlier packet.
func mayBePending(e unix.Errno) bool {
	switch e {
	case 0, unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM, unix.EINVAL, unix.EIO:
		return false
	}
	return true
}

// sendMany sends the datagrams of one batch with one sendmmsg, or several if it
// stops halfway.
func (w *Writer) sendMany(s *Socket, p Packet) (int, error) {
	w.ctl.reset()
	w.addOptions(s, p)
	w.ctl.attach(&w.hdr)
	hdrs := w.split(p)
	sent, failed := 0, 0
	for sent < len(hdrs) {
		n, e := sendmmsg(s.fd, hdrs[sent:])
		if e == 0 {
			sent, failed = sent+n, 0
			continue
		}
		if failed++; failed == tries || !mayBePending(e) {
			return sent, os.NewSyscallError("sendmmsg", e)
		}
	}
	return sent, nil
}

// split makes one message header for each datagram of p, like w.hdr but for the bytes.
func (w *Writer) split(p Packet) []mmsghdr {
	if w.many == nil {
		w.many = make([]mmsghdr, maxSegments)
		w.iovs = make([]unix.Iovec, maxSegments)
	}
	n := 0
	for ; len(p.Payload) > 0; n++ {
		size := min(p.Segment, len(p.Payload))
		setIovec(&w.iovs[n], p.Payload[:size])
		h := &w.many[n].hdr
		*h = w.hdr
		h.Iov = &w.iovs[n]
		h.SetIovlen(1)
		p.Payload = p.Payload[size:]
	}
	return w.many[:n]
}
