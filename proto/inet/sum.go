package inet

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// Sum adds b, as big-endian 16-bit words, to a running one's complement sum
// (RFC 1071). An odd last byte counts as the high half of a word, so only the
// last of several pieces may have an odd length. The result may be passed on as
// initial, or to Fold or Checksum.
func Sum(b []byte, initial uint32) uint32 {
	// Eight bytes at a time: the sum of 64-bit words folds to the same value,
	// because 2^16 is 1 modulo 2^16-1.
	sum, carry := uint64(initial), uint64(0)
	for len(b) >= 8 {
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(b), carry)
		b = b[8:]
	}
	var tail [8]byte
	copy(tail[:], b)
	sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(tail[:]), carry)
	sum, carry = bits.Add64(sum, 0, carry)
	sum += carry
	sum = sum>>32 + sum&0xffffffff
	return uint32(sum>>32) + uint32(sum)
}

// Fold reduces a running sum to 16 bits without complementing it. This is what
// a sender leaves in a checksum field for a device to complete.
func Fold(sum uint32) uint16 {
	sum = sum>>16 + sum&0xffff
	return uint16(sum>>16 + sum)
}

// Checksum returns the value of the checksum field for b (whose own field must
// be zero) after initial. Over data that includes a right checksum it returns 0.
func Checksum(b []byte, initial uint32) uint16 { return ^Fold(Sum(b, initial)) }

// PseudoSum returns the sum of the pseudo-header (RFC 9293 section 3.1 for
// IPv4, RFC 8200 section 8.1 for IPv6). src and dst must be of one family,
// which chooses the form; the IPv4 and IPv6 forms differ only in the addresses,
// since the further fields sum to the same value. length is that of the
// transport header and payload, in bytes.
func PseudoSum(src, dst netip.Addr, proto uint8, length int) uint32 {
	sum := uint32(proto) + uint32(length)>>16 + uint32(length)&0xffff
	if src.Is4() {
		s, d := src.As4(), dst.As4()
		return Sum(d[:], Sum(s[:], sum))
	}
	s, d := src.As16(), dst.As16()
	return Sum(d[:], Sum(s[:], sum))
}
