package service

import (
	"net/netip"

	"github.com/postern-net/postern/proto/dhcp"
	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/proto/ndp"
)

// ICMPv6 types of multicast listener discovery (RFC 2710, RFC 3810): query,
// report, done, and the report of version 2.
const (
	mldQuery   = 130
	mldDone    = 132
	mldReport2 = 143
)

func (s *Service) ipv6(f ether) (replies [][]byte, handled bool) {
	h, ok := inet.ParseIPv6(f.payload)
	if !ok || h.FragOffset != 0 {
		return nil, false
	}
	msg := h.Payload(f.payload)
	switch h.Proto {
	case inet.ProtoUDP:
		u, ok := inet.ParseUDP(msg)
		if !ok || u.DstPort != dhcp.ServerPort6 || !s.dhcp6Dst(h.Dst) || h.Fragment() {
			return nil, false
		}
		return one(s.lease6(f, h, u)), true
	case inet.ProtoICMPv6:
		if len(msg) == 0 {
			return nil, false
		}
		switch typ := msg[0]; {
		case ndp.Is(typ):
			return one(s.discovery(f, h, msg)), true
		case typ >= mldQuery && typ <= mldDone, typ == mldReport2:
			return nil, true
		}
		if !s.owned6(h.Dst) || !s.host6(h.Src) || h.Fragment() {
			return nil, false
		}
		return s.echo(f, h)
	}
	return nil, false
}

// owned6 reports whether the engine answers for an address.
func (s *Service) owned6(a netip.Addr) bool {
	v6 := s.cfg.Plan.V6
	return v6.Owned(a) || v6.On() && a == GatewayLinkLocal
}

// host6 reports whether an address can be a host's behind the link.
func (s *Service) host6(a netip.Addr) bool {
	v6 := s.cfg.Plan.V6
	return v6.On() && (v6.Prefix.Contains(a) || a.IsLinkLocalUnicast()) && !s.owned6(a) && a != v6.Prefix.Addr()
}

// discovery answers solicitations. Advertisements and redirects of the container
// tell the engine nothing that it wants to know.
func (s *Service) discovery(f ether, h inet.Header, msg []byte) []byte {
	if !s.cfg.Plan.V6.On() || !f.answerable() || !ndp.Valid(h, msg) {
		return nil
	}
	if !h.Src.IsUnspecified() && !s.host6(h.Src) {
		return nil
	}
	switch msg[0] {
	case ndp.TypeRouterSolicit:
		if _, ok := ndp.ParseRouterSolicit(h.Src, msg); !ok {
			return nil
		}
		if h.Src.IsUnspecified() || s.cfg.NoAdvertisement {
			return s.Advertisement()
		}
		return s.advertise(h.Src, f.src)
	case ndp.TypeNeighborSolicit:
		n, ok := ndp.ParseNeighborSolicit(h.Src, h.Dst, msg)
		if !ok || !s.owned6(n.Target) {
			return nil
		}
		return s.neighbor(f, h, n.Target)
	}
	return nil
}

// neighbor tells the engine's Ethernet address. Someone who is about to take the
// address, and has none of its own to be reached at, is told with everybody (RFC
// 4861 section 7.2.4).
func (s *Service) neighbor(f ether, h inet.Header, target netip.Addr) []byte {
	n := ndp.Neighbor{Target: target, LinkAddr: s.cfg.GatewayMAC, Router: true, Solicited: true, Override: true}
	to, mac := h.Src, f.src
	if h.Src.IsUnspecified() {
		n.Solicited = false
		to, mac = ndp.AllNodes(), multicastMAC(ndp.AllNodes())
	}
	return ndp.AppendNeighborAdvert(s.ether(nil, mac, etherIPv6), n, target, to)
}

// dhcp6Dst reports whether an address is one that clients of the link's DHCPv6
// server send to.
func (s *Service) dhcp6Dst(a netip.Addr) bool { return a == dhcp.AllServers6 || s.owned6(a) }

// lease6 answers what came by multicast from a link-local address; clients use
// nothing else unless told so (RFC 8415 section 16).
func (s *Service) lease6(f ether, h inet.Header, u inet.UDP) []byte {
	if s.dhcp6 == nil || !f.answerable() || h.Dst != dhcp.AllServers6 || u.SrcPort != dhcp.ClientPort6 ||
		!h.Src.IsLinkLocalUnicast() || !s.host6(h.Src) {
		return nil
	}
	s.mu.Lock()
	payload, ok := s.dhcp6.Handle(f.src, *s.search.Load(), u.Payload)
	s.mu.Unlock()
	if !ok {
		return nil
	}
	b := s.ether(make([]byte, 0, etherHeaderLen+inet.IPv6HeaderLen+inet.UDPHeaderLen+len(payload)), f.src, etherIPv6)
	return inet.AppendUDP(b,
		netip.AddrPortFrom(GatewayLinkLocal, dhcp.ServerPort6), netip.AddrPortFrom(h.Src, dhcp.ClientPort6), payload)
}
