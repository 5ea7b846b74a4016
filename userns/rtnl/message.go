package rtnl

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// host is the byte order of netlink's own fields; addresses are in network order.
var host = binary.NativeEndian

// message builds one request: struct nlmsghdr, a fixed part, attributes. All parts
// are aligned to 4 bytes (netlink(7)).
type message struct {
	b []byte
}

// newMessage starts a request that asks to be acknowledged.
func newMessage(kind uint16, flags uint16, fixed []byte) *message {
	m := &message{b: make([]byte, unix.NLMSG_HDRLEN, 256)}
	host.PutUint16(m.b[4:], kind)
	host.PutUint16(m.b[6:], flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	m.b = append(m.b, fixed...)
	m.pad()
	return m
}

func (m *message) pad() {
	for len(m.b)%unix.NLMSG_ALIGNTO != 0 {
		m.b = append(m.b, 0)
	}
}

// attr appends an attribute (struct rtattr).
func (m *message) attr(kind uint16, value []byte) {
	m.b = host.AppendUint16(m.b, uint16(unix.SizeofRtAttr+len(value)))
	m.b = host.AppendUint16(m.b, kind)
	m.b = append(m.b, value...)
	m.pad()
}

func (m *message) attrString(kind uint16, s string) { m.attr(kind, append([]byte(s), 0)) }

func (m *message) attrUint32(kind uint16, v uint32) { m.attr(kind, host.AppendUint32(nil, v)) }

// nest appends an attribute whose value is what fill appends.
func (m *message) nest(kind uint16, fill func()) {
	at := len(m.b)
	m.attr(kind, nil)
	fill()
	host.PutUint16(m.b[at:], uint16(len(m.b)-at))
}

// finish sets length and sequence number and gives the bytes.
func (m *message) finish(seq uint32) []byte {
	host.PutUint32(m.b[0:], uint32(len(m.b)))
	host.PutUint32(m.b[8:], seq)
	return m.b
}

// linkHeader is struct ifinfomsg: an interface and which flags to change to what.
func linkHeader(index int, flags, change uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	host.PutUint32(b[4:], uint32(index))
	host.PutUint32(b[8:], flags)
	host.PutUint32(b[12:], change)
	return b
}

// addrHeader is struct ifaddrmsg.
func addrHeader(family, bits uint8, flags uint8, index int) []byte {
	b := make([]byte, unix.SizeofIfAddrmsg)
	b[0], b[1], b[2], b[3] = family, bits, flags, unix.RT_SCOPE_UNIVERSE
	host.PutUint32(b[4:], uint32(index))
	return b
}

// routeHeader is struct rtmsg of a default route in the main table.
func routeHeader(family uint8, flags uint32) []byte {
	b := make([]byte, unix.SizeofRtMsg)
	b[0] = family
	b[4], b[5], b[6], b[7] = unix.RT_TABLE_MAIN, unix.RTPROT_BOOT, unix.RT_SCOPE_UNIVERSE, unix.RTN_UNICAST
	host.PutUint32(b[8:], flags)
	return b
}
