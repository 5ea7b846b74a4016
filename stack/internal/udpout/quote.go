package udpout

import (
	"encoding/binary"
	"net/netip"

	"github.com/postern-net/postern/proto/inet"
)

// maxQuote is how much of a packet is kept for an error: the longest IPv4
// header, or an IPv6 header with some extensions, and 64 bytes.
const maxQuote = 124

// quote is the head of a packet as it came from the container.
type quote struct {
	n   int
	buf [maxQuote]byte
}

func (q *quote) set(b []byte) { q.n = copy(q.buf[:], b) }

func (q *quote) bytes() []byte { return q.buf[:q.n] }

// synthesize appends the head of a datagram that was not kept. A receiver finds
// its socket by the addresses and ports (RFC 1122 section 4.1.3.3). payload is
// what is known of the datagram's own payload.
func synthesize(b []byte, from, to netip.AddrPort, payload []byte) []byte {
	h := inet.Header{Src: from.Addr(), Dst: to.Addr(), Proto: inet.ProtoUDP, DontFragment: true}
	length := inet.UDPHeaderLen + len(payload)
	b = inet.AppendIP(b, h, length)
	b = binary.BigEndian.AppendUint16(b, from.Port())
	b = binary.BigEndian.AppendUint16(b, to.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(length))
	b = append(b, 0, 0)
	return append(b, payload...)
}
