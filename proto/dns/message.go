package dns

import (
	"encoding/binary"
	"strings"
)

// Bounds of a message (RFC 1035 sections 2.3.4 and 4.2, RFC 6891 section 6.2.3).
const (
	// HeaderLen is the length of the fixed header, in bytes.
	HeaderLen = 12
	// MinUDP is the largest response over UDP that every client takes, in bytes.
	MinUDP = 512
	// MaxUDP is the largest payload of a UDP datagram over IPv4, in bytes.
	MaxUDP = 65507
	// MaxMessage is the largest message over TCP, in bytes.
	MaxMessage = 65535

	maxLabel = 63
	maxName  = 255
)

// Bits of the header's second word (RFC 1035 section 4.1.1, RFC 4035 section 3).
const (
	FlagQR uint16 = 1 << 15 // response
	FlagAA uint16 = 1 << 10 // authoritative answer
	FlagTC uint16 = 1 << 9  // truncated
	FlagRD uint16 = 1 << 8  // recursion desired
	FlagRA uint16 = 1 << 7  // recursion available
	FlagAD uint16 = 1 << 5  // authentic data
	FlagCD uint16 = 1 << 4  // checking disabled

	opcodeMask uint16 = 0xf << 11
	rcodeMask  uint16 = 0xf
)

// Response codes (RFC 1035 section 4.1.1).
const (
	RcodeSuccess  = 0
	RcodeFormErr  = 1
	RcodeServFail = 2
	RcodeNXDomain = 3
	RcodeNotImp   = 4
	RcodeRefused  = 5
)

// Record types and classes that decisions are made on (IANA DNS parameters).
const (
	TypeA    uint16 = 1
	TypeAAAA uint16 = 28
	TypeOPT  uint16 = 41
	TypeIXFR uint16 = 251
	TypeAXFR uint16 = 252
	TypeANY  uint16 = 255

	ClassIN  uint16 = 1
	ClassANY uint16 = 255
)

// ID returns the identifier of msg, which must have a header.
func ID(msg []byte) uint16 { return binary.BigEndian.Uint16(msg) }

// SetID overwrites the identifier of msg, which must have a header.
func SetID(msg []byte, id uint16) { binary.BigEndian.PutUint16(msg, id) }

// Rcode returns the response code in the header of msg, or -1 if it has none.
// The upper bits that EDNS adds (RFC 6891 section 6.1.3) are not looked at.
func Rcode(msg []byte) int {
	if len(msg) < HeaderLen {
		return -1
	}
	return int(flags(msg) & rcodeMask)
}

// IsNegative reports whether a response says that the name or its records do
// not exist: NXDOMAIN, or a whole NOERROR without answers (RFC 2308 section 2).
func IsNegative(response []byte) bool {
	switch Rcode(response) {
	case RcodeNXDomain:
		return true
	case RcodeSuccess:
		return count(response, answers) == 0 && flags(response)&FlagTC == 0
	}
	return false
}

// The sections of a message, in order.
const (
	questions = iota
	answers
	authorities
	additionals
)

func flags(msg []byte) uint16 { return binary.BigEndian.Uint16(msg[2:]) }

func count(msg []byte, section int) int {
	return int(binary.BigEndian.Uint16(msg[4+2*section:]))
}

// skipName returns the offset behind the name at off. It does not follow a
// pointer, it only checks that it points backwards (RFC 1035 section 4.1.4).
func skipName(msg []byte, off int) (int, bool) {
	for start := off; off < len(msg) && off-start < maxName; {
		n := int(msg[off])
		switch {
		case n == 0:
			return off + 1, true
		case n <= maxLabel:
			off += 1 + n
		case n >= 0xc0 && off+2 <= len(msg):
			target := int(binary.BigEndian.Uint16(msg[off:]) & 0x3fff)
			return off + 2, target >= HeaderLen && target < start
		default:
			return 0, false
		}
	}
	return 0, false
}

// skipQuestion returns the offset behind the question at off. Nothing stands
// before the first question that its name could point to, so a pointer is
// refused there.
func skipQuestion(msg []byte, off int) (int, bool) {
	end, ok := skipName(msg, off)
	if !ok || msg[end-1] != 0 || end+4 > len(msg) {
		return 0, false
	}
	return end + 4, true
}

// record is the fixed part of a resource record.
type record struct {
	rrtype, class uint16
	ttl           uint32
	root          bool // the owner is the root, as that of an OPT must be
}

// skipRecord returns the record at off and the offset behind it.
func skipRecord(msg []byte, off int) (r record, end int, ok bool) {
	head, ok := skipName(msg, off)
	if !ok || head+10 > len(msg) {
		return r, 0, false
	}
	b := msg[head:]
	r = record{
		rrtype: binary.BigEndian.Uint16(b),
		class:  binary.BigEndian.Uint16(b[2:]),
		ttl:    binary.BigEndian.Uint32(b[4:]),
		root:   head == off+1,
	}
	end = head + 10 + int(binary.BigEndian.Uint16(b[8:]))
	return r, end, end <= len(msg)
}

// nameText returns the uncompressed name at off, which skipQuestion has
// accepted, as a lower-case absolute name in the text form of RFC 1035 section
// 5.1: dots and backslashes inside labels and bytes that do not print are escaped.
func nameText(msg []byte, off int) string {
	if msg[off] == 0 {
		return "."
	}
	var b strings.Builder
	for n := int(msg[off]); n != 0; n = int(msg[off]) {
		for _, c := range msg[off+1 : off+1+n] {
			writeText(&b, lower(c))
		}
		b.WriteByte('.')
		off += 1 + n
	}
	return b.String()
}

func writeText(b *strings.Builder, c byte) {
	switch {
	case strings.IndexByte(`.\"();@$`, c) >= 0:
		b.WriteByte('\\')
		b.WriteByte(c)
	case c <= ' ' || c > '~':
		b.Write([]byte{'\\', '0' + c/100, '0' + c/10%10, '0' + c%10})
	default:
		b.WriteByte(c)
	}
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}
