package service

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/postern-net/postern/proto/dhcp"
	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/proto/inet"
)

// arpLen is the length of an ARP packet for IPv4 on Ethernet (RFC 826).
const arpLen = 28

// arpHead is hardware type Ethernet, protocol IPv4, and their address lengths.
const arpHead = 0x0001_0800_06_04

// arp answers a request for an address that the engine owns. Everything else,
// replies and gratuitous announcements too, ends here. A probe for the gateway's
// address is answered like any request, which defends it (RFC 5227 section 2.4).
func (s *Service) arp(f ether) []byte {
	p := f.payload
	const request, reply = 1, 2
	if len(p) < arpLen || !f.answerable() ||
		uint64(binary.BigEndian.Uint32(p))<<16|uint64(binary.BigEndian.Uint16(p[4:])) != arpHead ||
		binary.BigEndian.Uint16(p[6:]) != request {
		return nil
	}
	target := netip.AddrFrom4([4]byte(p[24:28]))
	if !s.cfg.Plan.V4.Owned(target) {
		return nil
	}
	b := s.ether(make([]byte, 0, etherHeaderLen+arpLen), f.src, etherARP)
	b = append(b, p[:6]...)
	b = binary.BigEndian.AppendUint16(b, reply)
	b = append(b, s.cfg.GatewayMAC[:]...)
	b = append(b, p[24:28]...) // the address that was asked for
	return append(b, p[8:18]...)
}

// WhoHas returns a request of the gateway for the Ethernet address of an IPv4 address,
// as a frame to everybody; nil if IPv4 is off.
func (s *Service) WhoHas(target netip.Addr) []byte {
	v4 := s.cfg.Plan.V4
	if !v4.On() || !target.Is4() {
		return nil
	}
	const head, request = arpHead, 1
	b := s.ether(make([]byte, 0, etherHeaderLen+arpLen), MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, etherARP)
	b = binary.BigEndian.AppendUint32(b, uint32(head>>16))
	b = binary.BigEndian.AppendUint16(b, uint16(head&0xffff))
	b = binary.BigEndian.AppendUint16(b, request)
	b = append(append(b, s.cfg.GatewayMAC[:]...), v4.Gateway.AsSlice()...)
	return append(append(b, make([]byte, len(MAC{}))...), target.AsSlice()...)
}

func (s *Service) ipv4(now time.Time, f ether) (replies [][]byte, handled bool) {
	h, ok := inet.ParseIPv4(f.payload)
	if !ok || h.Fragment() {
		return nil, false
	}
	switch h.Proto {
	case inet.ProtoIGMP:
		return nil, true
	case inet.ProtoUDP:
		u, ok := inet.ParseUDP(h.Payload(f.payload))
		if !ok || u.DstPort != dhcp.ServerPort4 || !s.dhcp4Dst(h.Dst) || !inet.IPv4HeaderOK(f.payload, h.HeaderLen) {
			return nil, false
		}
		return one(s.lease4(now, u)), true
	case inet.ProtoICMP:
		if !s.cfg.Plan.V4.Owned(h.Dst) || !s.host4(h.Src) || !inet.IPv4HeaderOK(f.payload, h.HeaderLen) {
			return nil, false
		}
		return s.echo(f, h)
	}
	return nil, false
}

// dhcp4Dst reports whether an address is one that clients of the link's DHCP
// server send to. Others may be asking a server somewhere else.
func (s *Service) dhcp4Dst(a netip.Addr) bool {
	v4 := s.cfg.Plan.V4
	return a == inet.LimitedBroadcast || v4.On() && (a == v4.Gateway || a == s.subnetCast)
}

// host4 reports whether an address can be a host's behind the link.
func (s *Service) host4(a netip.Addr) bool {
	v4 := s.cfg.Plan.V4
	return v4.Prefix.Contains(a) && !v4.Owned(a) && a != s.subnetCast && a != v4.Prefix.Addr()
}

func (s *Service) lease4(now time.Time, u inet.UDP) []byte {
	if s.dhcp4 == nil || u.SrcPort != dhcp.ClientPort4 {
		return nil
	}
	s.mu.Lock()
	r, ok := s.dhcp4.Handle(now, *s.search.Load(), u.Payload)
	s.mu.Unlock()
	if !ok {
		return nil
	}
	b := s.ether(make([]byte, 0, etherHeaderLen+inet.IPv4HeaderLen+inet.UDPHeaderLen+len(r.Payload)), r.MAC, etherIPv4)
	return inet.AppendUDP(b,
		netip.AddrPortFrom(s.cfg.Plan.V4.Gateway, dhcp.ServerPort4), netip.AddrPortFrom(r.To, dhcp.ClientPort4), r.Payload)
}

// echo answers an echo request to one of the engine's addresses. A request with
// a wrong checksum has no answer; other messages are not handled.
func (s *Service) echo(f ether, h inet.Header) (replies [][]byte, handled bool) {
	msg := h.Payload(f.payload)
	e, ok := icmp.ParseEcho(!h.Dst.Is4(), msg)
	if !ok || e.Reply {
		return nil, false
	}
	if !f.answerable() || !icmp.ChecksumOK(h.Src, h.Dst, msg) {
		return nil, true
	}
	typ := uint16(etherIPv4)
	if !h.Dst.Is4() {
		typ = etherIPv6
	}
	e.Reply = true
	b := s.ether(make([]byte, 0, etherHeaderLen+inet.IPv6HeaderLen+len(msg)), f.src, typ)
	return one(icmp.AppendEcho(b, e, h.Dst, h.Src)), true
}
