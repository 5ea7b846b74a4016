package dhcp

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/postern-net/postern/proto/inet"
)

// Ports (RFC 2131 section 4.1).
const (
	ServerPort4 = 67
	ClientPort4 = 68
)

// DefaultLease is the lease time unless configured, that of libslirp.
const DefaultLease = 24 * time.Hour

// minDatagram is the IP datagram in bytes that every host takes (RFC 791), and
// the least that a client may give as its limit (RFC 2132 section 9.10).
const minDatagram = 576

// maxReply4 is the largest reply as an IP datagram, whatever the MTU and the
// client say: what Ethernet takes.
const maxReply4 = 1500

// ipUDP4 is what IP and UDP headers take of a datagram, in bytes.
const ipUDP4 = inet.IPv4HeaderLen + inet.UDPHeaderLen

// maxDNS4 is how many name servers a reply carries; resolv.conf(5) knows three.
const maxDNS4 = 3

// Config4 is what a Server4 tells its clients.
type Config4 struct {
	// Prefix is the network.
	Prefix netip.Prefix
	// Server is the server's own address and the clients' router.
	Server netip.Addr
	// DNS are the name servers, at most three are sent.
	DNS []netip.Addr
	// Container is the address of the known host; PoolFirst to PoolLast, at most
	// 64, are those of others. An invalid pool means none. Without Container the
	// pool is for everybody, by hardware address, as slirp4netns has it.
	Container, PoolFirst, PoolLast netip.Addr
	// Known is the Ethernet address of the known host. Zero gives Container to
	// the first client.
	Known MAC
	// MTU of the link in bytes, sent in option 26; 0 leaves it out. A reply is no
	// larger than the MTU or 576 bytes, whichever is more: every host takes 576
	// (RFC 791), and a smaller reply could not hold what a client needs.
	MTU int
	// Lease is the lease time; 0 means DefaultLease.
	Lease time.Duration
}

// Reply4 is an answer and where it goes.
type Reply4 struct {
	// Payload is the UDP payload, from ServerPort4 to ClientPort4.
	Payload []byte
	// To is the IP destination, 255.255.255.255 to broadcast.
	To netip.Addr
	// MAC is the Ethernet destination.
	MAC MAC
}

// Server4 is a DHCPv4 server; see the package comment.
type Server4 struct {
	cfg     Config4
	table   table
	refused uint64
}

// NewServer4 returns a server without leases.
func NewServer4(cfg Config4) *Server4 {
	if cfg.Lease == 0 {
		cfg.Lease = DefaultLease
	}
	cfg.DNS = cfg.DNS[:min(len(cfg.DNS), maxDNS4)]
	return &Server4{cfg: cfg, table: newTable(cfg.Container, cfg.PoolFirst, cfg.PoolLast, cfg.Known != MAC{} && cfg.Container.IsValid())}
}

// Refused returns how many clients stayed without an answer because the pool was
// used up.
func (s *Server4) Refused() uint64 { return s.refused }

// Handle takes a client's message, a UDP payload, and returns the answer; ok is
// false if there is none. search is the search list to tell. The message is not
// kept.
func (s *Server4) Handle(now time.Time, search []string, msg []byte) (r Reply4, ok bool) {
	m, ok := parse4(msg)
	if !ok {
		return Reply4{}, false
	}
	switch m.kind {
	case discover4:
		return s.discover(now, search, &m)
	case request4:
		return s.request(now, search, &m)
	case inform4:
		if !s.cfg.Prefix.Contains(m.ciaddr) {
			return Reply4{}, false
		}
		return s.reply(&m, ack4, netip.Addr{}, search), true
	case decline4:
		s.table.give(now, s.key(&m), m.requested, true)
	case release4:
		s.table.give(now, s.key(&m), m.ciaddr, false)
	}
	return Reply4{}, false
}

func (s *Server4) known(m *message4) bool { return s.table.reserved && m.mac == s.cfg.Known }

// key names the client in the lease table. Who shares one pool by hardware address
// gets the same address whatever client it runs, in a guest's boot loader too.
func (s *Server4) key(m *message4) string {
	if !s.cfg.Container.IsValid() {
		return m.hardware()
	}
	return m.key()
}

func (s *Server4) discover(now time.Time, search []string, m *message4) (Reply4, bool) {
	if s.known(m) {
		return s.reply(m, offer4, s.cfg.Container, search), true
	}
	key := s.key(m)
	l := s.table.choose(now, key, m.requested)
	if l == nil {
		s.refused++
		return Reply4{}, false
	}
	if l.key != key || l.free(now) {
		l.key, l.until = key, now.Add(offerTime)
	}
	return s.reply(m, offer4, l.addr, search), true
}

// request handles the four situations of RFC 2131 section 4.3.2. They differ in
// where the wanted address stands and in whether another server may be meant.
func (s *Server4) request(now time.Time, search []string, m *message4) (Reply4, bool) {
	if m.server.IsValid() && m.server != s.cfg.Server {
		if l := s.table.held(s.key(m)); l != nil {
			s.table.give(now, s.key(m), l.addr, false)
		}
		return Reply4{}, false
	}
	want := m.requested
	if m.ciaddr.IsValid() {
		want = m.ciaddr
	}
	if !want.IsValid() {
		return Reply4{}, false
	}
	granted := want == s.cfg.Container
	if !s.known(m) {
		granted = s.table.take(now, s.key(m), want, now.Add(s.cfg.Lease)) != nil
	}
	if !granted {
		return s.nak(m), true
	}
	return s.reply(m, ack4, want, search), true
}

// reply writes an offer or acknowledgement. Options are in the order of their
// importance, since the last ones may not fit. yiaddr is invalid in the answer to
// an inform, which has no lease (RFC 2131 section 4.3.5).
func (s *Server4) reply(m *message4, kind uint8, yiaddr netip.Addr, search []string) Reply4 {
	c := &s.cfg
	w := newWriter4(m, kind, yiaddr, s.limit(m))
	w.addr(optServerID, c.Server)
	lease := seconds(c.Lease)
	if yiaddr.IsValid() {
		w.seconds(optLeaseTime, lease)
	}
	w.add(optSubnetMask, mask(c.Prefix)...)
	w.addr(optRouter, c.Server)
	w.addr(optDNS, c.DNS...)
	w.add(optClientID, m.clientID...) // RFC 6842
	if c.MTU != 0 {
		w.add(optMTU, binary.BigEndian.AppendUint16(nil, uint16(c.MTU))...)
	}
	if yiaddr.IsValid() {
		w.seconds(optRenewal, lease/2)
		w.seconds(optRebinding, lease/8*7)
	}
	w.addr(optBroadcast, inet.Broadcast(c.Prefix))
	appendSearch4(w, search)
	to, mac := m.destination(yiaddr)
	return Reply4{Payload: w.bytes(), To: to, MAC: mac}
}

// nak refuses a request. It is broadcast, because the client's address may be
// wrong (RFC 2131 section 4.1).
func (s *Server4) nak(m *message4) Reply4 {
	w := newWriter4(m, nak4, netip.Addr{}, s.limit(m))
	w.addr(optServerID, s.cfg.Server)
	w.add(optClientID, m.clientID...)
	return Reply4{Payload: w.bytes(), To: inet.LimitedBroadcast, MAC: broadcastMAC}
}

// limit is the size of the largest reply to m, as a UDP payload. A client that
// names no size takes 576 bytes (RFC 2131 section 2).
func (s *Server4) limit(m *message4) int {
	mtu := s.cfg.MTU
	if mtu == 0 || mtu > maxReply4 {
		mtu = maxReply4
	}
	return max(min(m.maxSize, mtu), minDatagram) - ipUDP4
}

var broadcastMAC = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// destination is where an answer goes (RFC 2131 section 4.1): to an address that
// the client has, or one that it is about to have unless it asks for a broadcast.
func (m *message4) destination(yiaddr netip.Addr) (netip.Addr, MAC) {
	switch {
	case m.ciaddr.IsValid():
		return m.ciaddr, m.mac
	case m.broadcast || !yiaddr.IsValid():
		return inet.LimitedBroadcast, broadcastMAC
	}
	return yiaddr, m.mac
}
