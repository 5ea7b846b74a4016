package service

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-net/postern/proto/dhcp"
	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/proto/ndp"
	"github.com/postern-net/postern/stack/netplan"
)

// MAC is an Ethernet address.
type MAC = [6]byte

// DefaultGatewayMAC is the engine's Ethernet address unless configured. It is
// locally administered (IEEE 802, second bit of the first byte); the rest is
// libslirp's habit of writing the address 10.0.2.2 into it, which people know
// from packet dumps.
var DefaultGatewayMAC = MAC{0x52, 0x55, 10, 0, 2, 2}

// GatewayLinkLocal is the engine's link-local address, the source of router
// advertisements. It follows the plan's ::2, and cannot collide with an address
// that a kernel derives from an Ethernet address (RFC 4291 appendix A).
var GatewayLinkLocal = netip.MustParseAddr("fe80::2")

// DefaultMTU is the MTU in bytes unless configured, that of `postern run`: the
// largest value that slirp4netns's and pasta's users know.
const DefaultMTU = 65520

// minMTU6 is the least MTU that IPv6 runs on (RFC 8200 section 5). Linux has no
// IPv6 on an interface below it.
const minMTU6 = 1280

// Config says who is who on the link.
type Config struct {
	// Plan is the addresses.
	Plan netplan.Plan
	// GatewayMAC is the engine's Ethernet address; zero means DefaultGatewayMAC.
	GatewayMAC MAC
	// ContainerMAC is the address of the container's interface, whose host gets
	// the container's address from DHCP. Zero means the first client.
	ContainerMAC MAC
	// MTU of the link in bytes; 0 means DefaultMTU. Below 1280 IPv6 is off.
	MTU int
	// PoolFirst to PoolLast, at most 64 addresses, are what DHCPv4 gives to every
	// client, the container's interface included. Invalid: that one gets the plan's
	// address, others one of the plan's pool.
	PoolFirst, PoolLast netip.Addr
	// DNSServers are told to clients; nil means the plan's resolvers.
	DNSServers []netip.Addr
	// DNSSearch is the search list told to clients. See SetSearch.
	DNSSearch []string
	// NoAdvertisement keeps router advertisements back, asked for or not: the
	// interface has its addresses and routes already, and SLAAC would add
	// others, from which the kernel may prefer to send.
	NoAdvertisement bool
}

// Service answers frames. It is safe for concurrent use.
type Service struct {
	cfg        Config
	subnetCast netip.Addr // the IPv4 network's broadcast address
	dns6       []netip.Addr
	search     atomic.Pointer[[]string]

	mu    sync.Mutex // guards the servers, which keep leases
	dhcp4 *dhcp.Server4
	dhcp6 *dhcp.Server6
}

// New returns a service that answers by cfg.
func New(cfg Config) *Service {
	if cfg.GatewayMAC == (MAC{}) {
		cfg.GatewayMAC = DefaultGatewayMAC
	}
	if cfg.MTU == 0 {
		cfg.MTU = DefaultMTU
	}
	if cfg.MTU < minMTU6 {
		cfg.Plan.V6 = netplan.Family{}
	}
	if cfg.DNSServers == nil {
		cfg.DNSServers = resolvers(cfg.Plan)
	}
	s := &Service{cfg: cfg}
	s.SetSearch(cfg.DNSSearch)
	s.newServers()
	return s
}

// newServers makes the DHCP servers of the families that are on.
func (s *Service) newServers() {
	var dns4 []netip.Addr
	for _, a := range s.cfg.DNSServers {
		if a.Is4() {
			dns4 = append(dns4, a)
		} else {
			s.dns6 = append(s.dns6, a)
		}
	}
	if v4 := s.cfg.Plan.V4; v4.On() {
		s.subnetCast = inet.Broadcast(v4.Prefix)
		c := dhcp.Config4{
			Prefix: v4.Prefix, Server: v4.Gateway, DNS: dns4, MTU: s.cfg.MTU,
			PoolFirst: s.cfg.PoolFirst, PoolLast: s.cfg.PoolLast,
		}
		if !c.PoolFirst.IsValid() {
			c.PoolFirst, c.PoolLast = v4.Pool()
			c.Container, c.Known = v4.Container, s.cfg.ContainerMAC
		}
		s.dhcp4 = dhcp.NewServer4(c)
	}
	if v6 := s.cfg.Plan.V6; v6.On() {
		s.dhcp6 = dhcp.NewServer6(dhcp.Config6{
			Prefix: v6.Prefix, Container: v6.Container, DNS: s.dns6,
			Server: s.cfg.GatewayMAC, Known: s.cfg.ContainerMAC,
		})
	}
}

func resolvers(p netplan.Plan) []netip.Addr {
	var addrs []netip.Addr
	for _, f := range []netplan.Family{p.V4, p.V6} {
		if f.On() {
			addrs = append(addrs, f.Resolver)
		}
	}
	return addrs
}

// SetSearch replaces the search list. Clients learn it with their next lease or
// advertisement.
func (s *Service) SetSearch(search []string) {
	list := append([]string(nil), search...)
	s.search.Store(&list)
}

// Refused returns how many DHCP requests stayed without an address because the
// pool was used up.
func (s *Service) Refused() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	var n uint64
	if s.dhcp4 != nil {
		n += s.dhcp4.Refused()
	}
	if s.dhcp6 != nil {
		n += s.dhcp6.Refused()
	}
	return n
}

// Handle takes an Ethernet frame that the container sent. handled says that it
// belongs to the link and must go no further; replies are whole Ethernet frames
// for the container, at most one for each frame. The frame is not kept or
// changed. now is for leases; its monotonic reading is used if it has one.
//
// A packet that is malformed, or claims a source that the container cannot have,
// is not handled: the engine has counters for those.
func (s *Service) Handle(now time.Time, frame []byte) (replies [][]byte, handled bool) {
	if len(frame) < etherHeaderLen {
		return nil, false
	}
	switch f := parseEther(frame); f.typ {
	case etherARP:
		return one(s.arp(f)), true
	case etherIPv4:
		return s.ipv4(now, f)
	case etherIPv6:
		return s.ipv6(f)
	}
	return nil, false
}

// one makes a list of a reply, which may be nil.
func one(reply []byte) [][]byte {
	if reply == nil {
		return nil
	}
	return [][]byte{reply}
}

// AdvertiseInterval is how often the engine should send Advertisement without
// being asked, within the bounds of RFC 4861 section 6.2.1.
const AdvertiseInterval = 300 * time.Second

// Lifetimes in advertisements.
const (
	// routerLifetime is that of the default route and of the name servers: at
	// least three advertisements (RFC 4861 section 6.2.1, RFC 8106 section 5.1).
	routerLifetime = 1800 * time.Second
	// prefixValid and prefixPreferred are libslirp's.
	prefixValid     = 24 * time.Hour
	prefixPreferred = 4 * time.Hour
)

// Advertisement returns a router advertisement to all nodes, as a frame, or nil
// when IPv6 or advertising is off.
func (s *Service) Advertisement() []byte {
	if !s.cfg.Plan.V6.On() || s.cfg.NoAdvertisement {
		return nil
	}
	return s.advertise(ndp.AllNodes(), multicastMAC(ndp.AllNodes()))
}

func (s *Service) advertise(to netip.Addr, mac MAC) []byte {
	b := s.ether(nil, mac, etherIPv6)
	return ndp.AppendRouterAdvert(b, ndp.RouterAdvert{
		Lifetime: routerLifetime, Managed: true, Other: true,
		Prefix: s.cfg.Plan.V6.Prefix, Valid: prefixValid, Preferred: prefixPreferred,
		MTU: uint32(s.cfg.MTU), LinkAddr: s.cfg.GatewayMAC,
		DNS: s.dns6, Search: *s.search.Load(), DNSLifetime: routerLifetime,
	}, GatewayLinkLocal, to)
}
