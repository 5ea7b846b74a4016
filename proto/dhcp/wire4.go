package dhcp

import (
	"encoding/binary"
	"net/netip"
)

// MAC is an Ethernet address. The zero value means that none is known.
type MAC = [6]byte

// DHCPv4 message types (RFC 2132 section 9.6).
const (
	discover4 = 1
	offer4    = 2
	request4  = 3
	decline4  = 4
	ack4      = 5
	nak4      = 6
	release4  = 7
	inform4   = 8
)

// DHCPv4 options (RFC 2132; 119 is RFC 3397).
const (
	optPad           = 0
	optSubnetMask    = 1
	optRouter        = 3
	optDNS           = 6
	optDomain        = 15
	optMTU           = 26
	optBroadcast     = 28
	optRequestedAddr = 50
	optLeaseTime     = 51
	optOverload      = 52
	optType          = 53
	optServerID      = 54
	optMaxSize       = 57
	optRenewal       = 58
	optRebinding     = 59
	optClientID      = 61
	optSearch        = 119
	optEnd           = 255
)

// Layout of a message (RFC 2131 section 2), offsets and sizes in bytes.
const (
	offFlags  = 10
	offCIAddr = 12
	offYIAddr = 16
	offGIAddr = 24
	offCHAddr = 28
	offSName  = 44
	offFile   = 108
	offCookie = 236
	fixed4    = 240
	// minMessage4 is the least that relays and old clients take (RFC 1542 section 2.1).
	minMessage4 = 300
)

var cookie = [4]byte{99, 130, 83, 99}

// message4 is what the server needs to know of a client's message. Slices alias it.
type message4 struct {
	raw       []byte // the fixed part
	kind      uint8
	broadcast bool
	ciaddr    netip.Addr // invalid if 0.0.0.0
	mac       MAC
	requested netip.Addr // invalid if absent
	server    netip.Addr // invalid if absent
	clientID  []byte
	maxSize   int // 0 if absent
	overload  uint8
}

// parse4 reads a client's message. It is not ok when the message is a reply, was
// relayed, is for another kind of hardware than Ethernet, is no DHCP, or has an
// option that reaches beyond its field.
func parse4(b []byte) (m message4, ok bool) {
	if len(b) < fixed4 || b[0] != 1 || b[1] != 1 || b[2] != 6 || [4]byte(b[offCookie:fixed4]) != cookie {
		return message4{}, false
	}
	if addr4(b[offGIAddr:]).IsValid() {
		return message4{}, false
	}
	m = message4{
		raw:       b[:fixed4],
		broadcast: b[offFlags]&0x80 != 0,
		ciaddr:    addr4(b[offCIAddr:]),
		mac:       MAC(b[offCHAddr : offCHAddr+6]),
	}
	if !m.options(b[fixed4:]) {
		return message4{}, false
	}
	// Options may go on in the fields of the boot file and the server name.
	if m.overload&1 != 0 && !m.options(b[offFile:offCookie]) {
		return message4{}, false
	}
	if m.overload&2 != 0 && !m.options(b[offSName:offFile]) {
		return message4{}, false
	}
	return m, m.kind != 0
}

// options walks options up to the end option; that may be missing. Padding may
// stand anywhere, and nothing after the end is looked at.
func (m *message4) options(b []byte) bool {
	for len(b) > 0 {
		switch b[0] {
		case optEnd:
			return true
		case optPad:
			b = b[1:]
			continue
		}
		if len(b) < 2 || len(b) < 2+int(b[1]) {
			return false
		}
		m.option(b[0], b[2:2+int(b[1])])
		b = b[2+int(b[1]):]
	}
	return true
}

// option takes one option; one whose length does not fit its type is skipped.
func (m *message4) option(code uint8, v []byte) {
	switch {
	case code == optType && len(v) == 1:
		m.kind = v[0]
	case code == optRequestedAddr && len(v) == 4:
		m.requested = addr4(v)
	case code == optServerID && len(v) == 4:
		m.server = addr4(v)
	case code == optMaxSize && len(v) == 2:
		m.maxSize = int(binary.BigEndian.Uint16(v))
	case code == optOverload && len(v) == 1:
		m.overload = v[0]
	case code == optClientID && len(v) >= 2:
		m.clientID = v
	}
}

// key names the client in the lease table: its identifier, or else its hardware
// address (RFC 2131 section 4.2).
func (m *message4) key() string {
	if len(m.clientID) > 0 {
		return "id" + string(m.clientID)
	}
	return m.hardware()
}

// hardware is the client's hardware address as a name.
func (m *message4) hardware() string { return "hw" + string(m.mac[:]) }

// addr4 reads an address of four bytes; 0.0.0.0 becomes the invalid address.
func addr4(b []byte) netip.Addr {
	a := netip.AddrFrom4([4]byte(b[:4]))
	if a.IsUnspecified() {
		return netip.Addr{}
	}
	return a
}

// writer4 appends options to a reply up to a limit in bytes, which leaves room
// for the end option.
type writer4 struct {
	b     []byte
	limit int
}

// newWriter4 starts a reply to m: op 2, the identifying fields copied, addresses
// zero but the one leased.
func newWriter4(m *message4, kind uint8, yiaddr netip.Addr, limit int) *writer4 {
	b := make([]byte, fixed4, max(limit, fixed4))
	copy(b, m.raw[:offCIAddr])
	b[0], b[3] = 2, 0
	b[8], b[9] = 0, 0 // seconds are the client's
	copy(b[offCHAddr:offSName], m.raw[offCHAddr:offSName])
	copy(b[offCookie:], cookie[:])
	if kind != nak4 {
		copy(b[offCIAddr:], m.raw[offCIAddr:offYIAddr])
	}
	if yiaddr.IsValid() {
		y := yiaddr.As4()
		copy(b[offYIAddr:], y[:])
	}
	w := &writer4{b: b, limit: limit - 1}
	w.add(optType, kind)
	return w
}

// room is how many bytes of data one more option can have.
func (w *writer4) room() int { return min(w.limit-len(w.b)-2, 255) }

// add appends an option if it has data and fits.
func (w *writer4) add(code uint8, data ...byte) {
	if len(data) == 0 || len(data) > w.room() {
		return
	}
	w.b = append(append(w.b, code, byte(len(data))), data...)
}

func (w *writer4) addr(code uint8, addrs ...netip.Addr) {
	var data []byte
	for _, a := range addrs {
		b := a.As4()
		data = append(data, b[:]...)
	}
	w.add(code, data...)
}

func (w *writer4) seconds(code uint8, s uint32) {
	w.add(code, binary.BigEndian.AppendUint32(nil, s)...)
}

// bytes ends the message.
func (w *writer4) bytes() []byte {
	b := append(w.b, optEnd)
	for len(b) < minMessage4 {
		b = append(b, optPad)
	}
	return b
}
