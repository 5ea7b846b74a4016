package tap

import "encoding/binary"

// HeaderLen is the room that a Header takes in front of a frame in the
// engine's own buffers. A packet socket uses the first 10 bytes only, a BareTAP none.
const HeaderLen = 12

// Values of the virtio-net header (virtio specification 1.2, 5.1.6;
// linux/virtio_net.h).
const (
	flagNeedsCsum = 1
	flagDataValid = 2

	gsoNone  = 0
	gsoTCPv4 = 1
	gsoTCPv6 = 4
	gsoUDPL4 = 5
	gsoECN   = 0x80
)

// GSO says how a frame is a super-segment.
type GSO uint8

// The kinds of super-segments.
const (
	GSONone GSO = iota
	GSOTCPv4
	GSOTCPv6
	GSOUDP
)

var gsoWire = [...]byte{GSONone: gsoNone, GSOTCPv4: gsoTCPv4, GSOTCPv6: gsoTCPv6, GSOUDP: gsoUDPL4}

// Header is the virtio-net header of a frame.
type Header struct {
	// NeedsCsum: the transport checksum field holds the sum of the
	// pseudo-header only; the rest is from CsumStart on, stored at
	// CsumStart+CsumOffset.
	NeedsCsum bool
	// DataValid: the kernel vouches for the checksum. Inbound only.
	DataValid bool
	GSO       GSO
	// HdrLen is the length of all headers, Ethernet to transport.
	HdrLen uint16
	// Segment is the payload size of each segment of a super-segment.
	Segment    uint16
	CsumStart  uint16
	CsumOffset uint16
}

// Put writes the header into the first HeaderLen bytes of b, in host byte
// order (the default, tun(4) TUNSETVNETLE unset).
func (h Header) Put(b []byte) {
	_ = b[HeaderLen-1]
	b[0] = 0
	if h.NeedsCsum {
		b[0] = flagNeedsCsum
	}
	b[1] = gsoWire[h.GSO]
	binary.NativeEndian.PutUint16(b[2:], h.HdrLen)
	binary.NativeEndian.PutUint16(b[4:], h.Segment)
	binary.NativeEndian.PutUint16(b[6:], h.CsumStart)
	binary.NativeEndian.PutUint16(b[8:], h.CsumOffset)
	b[10], b[11] = 0, 0
}

// ParseHeader reads a header. An unknown kind of super-segment, or one without
// a segment size, is an error of the sender: ok is false.
func ParseHeader(b []byte) (h Header, ok bool) {
	if len(b) < 10 {
		return Header{}, false
	}
	h = Header{
		NeedsCsum:  b[0]&flagNeedsCsum != 0,
		DataValid:  b[0]&flagDataValid != 0,
		HdrLen:     binary.NativeEndian.Uint16(b[2:]),
		Segment:    binary.NativeEndian.Uint16(b[4:]),
		CsumStart:  binary.NativeEndian.Uint16(b[6:]),
		CsumOffset: binary.NativeEndian.Uint16(b[8:]),
	}
	switch b[1] &^ gsoECN {
	case gsoNone:
		h.Segment = 0
		return h, true
	case gsoTCPv4:
		h.GSO = GSOTCPv4
	case gsoTCPv6:
		h.GSO = GSOTCPv6
	case gsoUDPL4:
		h.GSO = GSOUDP
	default:
		return Header{}, false
	}
	return h, h.Segment != 0
}
