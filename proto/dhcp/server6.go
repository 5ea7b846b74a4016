package dhcp

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/postern-net/postern/proto/inet"
)

// Ports (RFC 8415 section 7.2).
const (
	ServerPort6 = 547
	ClientPort6 = 546
)

// AllServers6 is the multicast address that clients send to,
// All_DHCP_Relay_Agents_and_Servers (RFC 8415 section 7.1).
var AllServers6 = netip.MustParseAddr("ff02::1:2")

// maxReply6 is the largest UDP payload of a reply: the minimum MTU of IPv6 without
// the IP and UDP headers. What is not the search list always fits: identifiers of
// at most 134 bytes, four associations of at most 160 bytes, three name servers.
const maxReply6 = 1280 - inet.IPv6HeaderLen - inet.UDPHeaderLen

// maxDNS6 is how many name servers a reply carries; resolv.conf(5) knows three.
const maxDNS6 = 3

// Config6 is what a Server6 tells its clients.
type Config6 struct {
	// Prefix is the network.
	Prefix netip.Prefix
	// Container is the address of the known host.
	Container netip.Addr
	// DNS are the name servers, at most three are sent.
	DNS []netip.Addr
	// Server is the Ethernet address that the server's identifier is made of
	// (DUID-LL, RFC 8415 section 11.4).
	Server MAC
	// Known is the Ethernet address of the known host. Zero gives Container to
	// the first client.
	Known MAC
	// Lease is the valid lifetime of the address; 0 means DefaultLease. The
	// preferred lifetime is the same.
	Lease time.Duration
}

// Server6 is a DHCPv6 server; see the package comment.
type Server6 struct {
	cfg     Config6
	duid    []byte
	refused uint64
}

// NewServer6 returns a server.
func NewServer6(cfg Config6) *Server6 {
	if cfg.Lease == 0 {
		cfg.Lease = DefaultLease
	}
	cfg.DNS = cfg.DNS[:min(len(cfg.DNS), maxDNS6)]
	duid := append([]byte{0, 3, 0, 1}, cfg.Server[:]...)
	return &Server6{cfg: cfg, duid: duid}
}

// Refused returns how many requests for an address were answered with none.
func (s *Server6) Refused() uint64 { return s.refused }

// Handle takes the message, a UDP payload, of the client with the Ethernet
// address mac and returns the answer's UDP payload of at most 1232 bytes; ok is
// false if there is none. search is the search list to tell. The message is not kept.
func (s *Server6) Handle(mac MAC, search []string, msg []byte) (reply []byte, ok bool) {
	m, ok := parse6(msg)
	if !ok || !s.addressed(&m) {
		return nil, false
	}
	b := s.begin(&m)
	switch m.kind {
	case confirm6:
		status, ok := s.confirm(&m)
		if !ok {
			return nil, false
		}
		b = appendStatus6(b, status)
	case release6, decline6:
		// The address stays the host's: nobody else can have it.
		return appendStatus6(b, statusSuccess), true
	case inform6:
	default:
		for _, a := range m.ias {
			b = s.association(b, &m, a, mac)
		}
	}
	return s.settings(b, search), true
}

// addressed reports whether the identifiers are those that RFC 8415 section 16
// demands of each type; a message meant for another server is not for us.
func (s *Server6) addressed(m *message6) bool {
	ours := bytes.Equal(m.server, s.duid)
	switch m.kind {
	case solicit6, confirm6, rebind6:
		return m.client != nil && m.server == nil
	case request6, renew6, release6, decline6:
		return m.client != nil && ours
	case inform6:
		return (m.server == nil || ours) && len(m.ias) == 0
	}
	return false
}

// begin starts the reply: an advertisement for a solicitation, unless the client
// asks for a commit in one exchange (RFC 8415 section 18.3.1).
func (s *Server6) begin(m *message6) []byte {
	kind := byte(reply6)
	if m.kind == solicit6 && !m.rapidCommit {
		kind = advertise6
	}
	b := make([]byte, 0, maxReply6)
	b = append(append(b, kind), m.xid[:]...)
	if m.client != nil {
		b = appendOption6(b, optClientID6, m.client)
	}
	b = appendOption6(b, optServerID6, s.duid)
	switch {
	case kind == advertise6:
		// The greatest preference: the client need not wait for other servers.
		b = appendOption6(b, optPreference, []byte{255})
	case m.kind == solicit6:
		b = appendOption6(b, optRapidCommit, nil)
	}
	return b
}

// confirm says whether the client's addresses fit this network; ok is false if
// it named none (RFC 8415 section 18.3.3).
func (s *Server6) confirm(m *message6) (status uint16, ok bool) {
	for _, a := range m.ias {
		for _, addr := range a.addrs {
			ok = true
			if !s.cfg.Prefix.Contains(addr) {
				status = statusNotOnLink
			}
		}
	}
	return status, ok
}

// association answers one identity association: the known host's first one of
// the plain kind has the container's address, others have nothing. Addresses that
// the client should no longer use come back with lifetimes of zero.
func (s *Server6) association(b []byte, m *message6, a ia, mac MAC) []byte {
	if s.cfg.Known == (MAC{}) && a.kind == optIANA {
		s.cfg.Known = mac
	}
	lease := seconds(s.cfg.Lease)
	v := append(make([]byte, 0, 160), a.id[:]...)
	granted := a.kind == optIANA && mac == s.cfg.Known && a.id == m.firstIANA()
	switch {
	case granted:
		v = binary.BigEndian.AppendUint32(v, lease/2)
		v = binary.BigEndian.AppendUint32(v, lease/5*4)
		v = appendIAAddr(v, s.cfg.Container, lease)
	case a.kind != optIATA:
		v = append(v, 0, 0, 0, 0, 0, 0, 0, 0)
	}
	if m.kind == renew6 || m.kind == rebind6 {
		for _, addr := range a.addrs {
			if !granted || addr != s.cfg.Container {
				v = appendIAAddr(v, addr, 0)
			}
		}
	}
	if !granted {
		s.refused++
		v = appendStatus6(v, refusal(m, a))
	}
	return appendOption6(b, a.kind, v)
}

// refusal is the status of an association that gets nothing.
func refusal(m *message6, a ia) uint16 {
	switch {
	case a.kind == optIAPD:
		return statusNoPrefixAvail
	case m.kind == renew6 || m.kind == rebind6:
		return statusNoBinding
	}
	return statusNoAddrsAvail
}

func (m *message6) firstIANA() [4]byte {
	for _, a := range m.ias {
		if a.kind == optIANA {
			return a.id
		}
	}
	return [4]byte{}
}

func appendIAAddr(b []byte, addr netip.Addr, lifetime uint32) []byte {
	a := addr.As16()
	v := append(make([]byte, 0, iaAddrHeader), a[:]...)
	v = binary.BigEndian.AppendUint32(v, lifetime)
	v = binary.BigEndian.AppendUint32(v, lifetime)
	return appendOption6(b, optIAAddr, v)
}

// settings appends the name servers and as much of the search list as fits.
func (s *Server6) settings(b []byte, search []string) []byte {
	if len(s.cfg.DNS) > 0 {
		var v []byte
		for _, d := range s.cfg.DNS {
			a := d.As16()
			v = append(v, a[:]...)
		}
		b = appendOption6(b, optDNS6, v)
	}
	if names := inet.AppendNames(nil, search, maxReply6-len(b)-optHeader6); len(names) > 0 {
		b = appendOption6(b, optDomainList, names)
	}
	return b
}
