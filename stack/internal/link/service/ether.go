package service

import (
	"encoding/binary"
	"net/netip"
)

// Ethernet header length in bytes, and types (IEEE 802 numbers, IANA).
const (
	etherHeaderLen = 14
	etherIPv4      = 0x0800
	etherARP       = 0x0806
	etherIPv6      = 0x86dd
)

// ether is a parsed Ethernet frame; payload aliases it and may have padding.
type ether struct {
	src     MAC
	typ     uint16
	payload []byte
}

// parseEther reads a frame of at least etherHeaderLen bytes.
func parseEther(frame []byte) ether {
	return ether{
		src:     MAC(frame[6:12]),
		typ:     binary.BigEndian.Uint16(frame[12:]),
		payload: frame[etherHeaderLen:],
	}
}

// answerable reports whether a reply can go to the frame's sender: a group
// address is nobody's.
func (f *ether) answerable() bool { return f.src[0]&1 == 0 }

// ether appends a frame header from the engine.
func (s *Service) ether(b []byte, dst MAC, typ uint16) []byte {
	b = append(append(b, dst[:]...), s.cfg.GatewayMAC[:]...)
	return binary.BigEndian.AppendUint16(b, typ)
}

// multicastMAC is the Ethernet address of an IPv6 multicast address (RFC 2464
// section 7).
func multicastMAC(a netip.Addr) MAC {
	b := a.As16()
	return MAC{0x33, 0x33, b[12], b[13], b[14], b[15]}
}
