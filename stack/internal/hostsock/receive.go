package hostsock

import (
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Message is what one receive brought. Payload is valid only during the call
// that it is passed to.
type Message struct {
	From    netip.AddrPort
	Payload []byte
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
	if size := segmentSize(r.control()); size > 0 && size < n {
		m.Segment = size
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

// segmentSize returns the value of UDP_GRO among control messages, or 0.
func segmentSize(control []byte) int {
	for len(control) >= unix.CmsgLen(0) {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			return 0
		}
		if h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4 {
			return int(*(*int32)(unsafe.Pointer(unsafe.SliceData(data))))
		}
		control = rest
	}
	return 0
}
