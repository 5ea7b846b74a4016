package dhcp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"

	"github.com/postern-net/postern/proto/inet"
)

var (
	knownMAC = MAC{0x52, 0x54, 0, 1, 2, 3}
	start    = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	day      = 24 * time.Hour
)

func config4() Config4 {
	return Config4{
		Prefix: netip.MustParsePrefix("10.0.2.0/24"), Server: netip.MustParseAddr("10.0.2.2"),
		DNS: []netip.Addr{netip.MustParseAddr("10.0.2.3")}, Container: netip.MustParseAddr("10.0.2.100"),
		PoolFirst: netip.MustParseAddr("10.0.2.15"), PoolLast: netip.MustParseAddr("10.0.2.30"),
		Known: knownMAC, MTU: 1500,
	}
}

func otherMAC(n int) MAC {
	m := MAC{2}
	binary.BigEndian.PutUint32(m[2:], uint32(n))
	return m
}

// client4 makes a message with the independent codec.
func client4(t testing.TB, kind dhcpv4.MessageType, mac MAC, mods ...dhcpv4.Modifier) []byte {
	t.Helper()
	m, err := dhcpv4.New(append([]dhcpv4.Modifier{dhcpv4.WithMessageType(kind), dhcpv4.WithHwAddr(mac[:])}, mods...)...)
	if err != nil {
		t.Fatal(err)
	}
	return m.ToBytes()
}

func wish(addr string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptRequestedIPAddress(netip.MustParseAddr(addr).AsSlice()))
}

func from(addr string) dhcpv4.Modifier {
	return dhcpv4.WithClientIP(netip.MustParseAddr(addr).AsSlice())
}

func server(addr string) dhcpv4.Modifier {
	return dhcpv4.WithOption(dhcpv4.OptServerIdentifier(netip.MustParseAddr(addr).AsSlice()))
}

// answer parses a reply with the independent codec; nil if there is none.
func answer(t testing.TB, s *Server4, now time.Time, search []string, msg []byte) (*dhcpv4.DHCPv4, Reply4) {
	t.Helper()
	r, ok := s.Handle(now, search, msg)
	if !ok {
		return nil, r
	}
	m, err := dhcpv4.FromBytes(r.Payload)
	if err != nil {
		t.Fatalf("the reply does not parse: %v\n%x", err, r.Payload)
	}
	return m, r
}

// expect checks kind and address of an answer: "offer 10.0.2.100", "nak", "".
func expect(t testing.TB, s *Server4, now time.Time, msg []byte, want string) {
	t.Helper()
	m, _ := answer(t, s, now, nil, msg)
	got := ""
	if m != nil {
		got = strings.ToLower(m.MessageType().String())
		if !m.YourIPAddr.IsUnspecified() {
			got += " " + m.YourIPAddr.String()
		}
	}
	if got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLeaseOfTheKnownHost(t *testing.T) {
	s := NewServer4(config4())
	search := []string{"corp.example", "lan."}
	clientID := dhcpv4.WithOption(dhcpv4.OptClientIdentifier([]byte{1, 2, 3, 4, 5, 6, 7}))
	msg := client4(t, dhcpv4.MessageTypeDiscover, knownMAC, clientID)
	m, r := answer(t, s, start, search, msg)
	if m == nil || m.MessageType() != dhcpv4.MessageTypeOffer {
		t.Fatalf("answer %v", m)
	}
	sent, _ := dhcpv4.FromBytes(msg)
	for name, ok := range map[string]bool{
		"op":           m.OpCode == dhcpv4.OpcodeBootReply,
		"xid":          m.TransactionID == sent.TransactionID,
		"chaddr":       bytes.Equal(m.ClientHWAddr, knownMAC[:]),
		"address":      m.YourIPAddr.String() == "10.0.2.100",
		"server":       m.ServerIdentifier().String() == "10.0.2.2",
		"mask":         m.SubnetMask().String() == "ffffff00",
		"router":       len(m.Router()) == 1 && m.Router()[0].String() == "10.0.2.2",
		"dns":          len(m.DNS()) == 1 && m.DNS()[0].String() == "10.0.2.3",
		"broadcast":    m.BroadcastAddress().String() == "10.0.2.255",
		"lease":        m.IPAddressLeaseTime(0) == day,
		"renewal":      m.IPAddressRenewalTime(0) == day/2,
		"rebinding":    m.IPAddressRebindingTime(0) == day*7/8,
		"mtu":          bytes.Equal(m.Options.Get(dhcpv4.OptionInterfaceMTU), []byte{5, 220}),
		"domain":       m.DomainName() == "corp.example",
		"search":       slices.Equal(m.DomainSearch().Labels, []string{"corp.example", "lan"}),
		"client id":    bytes.Equal(m.Options.Get(dhcpv4.OptionClientIdentifier), []byte{1, 2, 3, 4, 5, 6, 7}),
		"size":         len(r.Payload) >= 300,
		"destination":  r.To.String() == "10.0.2.100" && r.MAC == knownMAC,
		"no next host": m.ServerIPAddr.IsUnspecified() && m.GatewayIPAddr.IsUnspecified(),
	} {
		if !ok {
			t.Errorf("%s is wrong in\n%s", name, m.Summary())
		}
	}
	expect(t, s, start, client4(t, dhcpv4.MessageTypeRequest, knownMAC, clientID, server("10.0.2.2"), wish("10.0.2.100")), "ack 10.0.2.100")
}

func TestKnownHostAlwaysHasItsAddress(t *testing.T) {
	s := NewServer4(config4())
	// A starving flood first: every address offered, every request made.
	for i := range 1000 {
		m, _ := answer(t, s, start, nil, client4(t, dhcpv4.MessageTypeDiscover, otherMAC(i)))
		if m != nil {
			expect(t, s, start, client4(t, dhcpv4.MessageTypeRequest, otherMAC(i), server("10.0.2.2"), wish(m.YourIPAddr.String())), "ack "+m.YourIPAddr.String())
		}
		expect(t, s, start, client4(t, dhcpv4.MessageTypeRequest, otherMAC(i), wish("10.0.2.100")), "nak")
		expect(t, s, start, client4(t, dhcpv4.MessageTypeDecline, otherMAC(i), wish("10.0.2.100")), "")
	}
	if s.Refused() != 1000-16 {
		t.Errorf("%d refused, want %d", s.Refused(), 1000-16)
	}
	if len(s.table.leases) != 17 {
		t.Errorf("%d leases", len(s.table.leases))
	}
	for _, c := range []struct {
		name string
		msg  []byte
		want string
	}{
		{"discover", client4(t, dhcpv4.MessageTypeDiscover, knownMAC), "offer 10.0.2.100"},
		{"discover with another wish", client4(t, dhcpv4.MessageTypeDiscover, knownMAC, wish("10.0.2.20")), "offer 10.0.2.100"},
		{"discover with an identifier", client4(t, dhcpv4.MessageTypeDiscover, knownMAC, dhcpv4.WithOption(dhcpv4.OptClientIdentifier([]byte("xyz")))), "offer 10.0.2.100"},
		{"request", client4(t, dhcpv4.MessageTypeRequest, knownMAC, server("10.0.2.2"), wish("10.0.2.100")), "ack 10.0.2.100"},
		{"after a reboot", client4(t, dhcpv4.MessageTypeRequest, knownMAC, wish("10.0.2.100")), "ack 10.0.2.100"},
		{"renewal", client4(t, dhcpv4.MessageTypeRequest, knownMAC, from("10.0.2.100")), "ack 10.0.2.100"},
		{"decline", client4(t, dhcpv4.MessageTypeDecline, knownMAC, wish("10.0.2.100"), server("10.0.2.2")), ""},
		{"release", client4(t, dhcpv4.MessageTypeRelease, knownMAC, from("10.0.2.100"), server("10.0.2.2")), ""},
		{"inform", client4(t, dhcpv4.MessageTypeInform, knownMAC, from("10.0.2.100")), "ack"},
		{"discover again", client4(t, dhcpv4.MessageTypeDiscover, knownMAC), "offer 10.0.2.100"},
		{"wish for a pool address", client4(t, dhcpv4.MessageTypeRequest, knownMAC, wish("10.0.2.15")), "nak"},
		{"address of another network", client4(t, dhcpv4.MessageTypeRequest, knownMAC, wish("192.168.1.5")), "nak"},
		{"another server's offer", client4(t, dhcpv4.MessageTypeRequest, knownMAC, server("10.0.2.9"), wish("10.0.2.100")), ""},
		{"request for nothing", client4(t, dhcpv4.MessageTypeRequest, knownMAC), ""},
		{"inform from elsewhere", client4(t, dhcpv4.MessageTypeInform, knownMAC, from("127.0.0.1")), ""},
		{"a server's message", client4(t, dhcpv4.MessageTypeOffer, knownMAC), ""},
		{"force renew", client4(t, 9, knownMAC), ""},
	} {
		t.Run(c.name, func(t *testing.T) { expect(t, s, start, c.msg, c.want) })
	}
}

func TestPool(t *testing.T) {
	s := NewServer4(config4())
	discover := func(n int, mods ...dhcpv4.Modifier) []byte {
		return client4(t, dhcpv4.MessageTypeDiscover, otherMAC(n), mods...)
	}
	request := func(n int, mods ...dhcpv4.Modifier) []byte {
		return client4(t, dhcpv4.MessageTypeRequest, otherMAC(n), mods...)
	}
	expect(t, s, start, discover(1), "offer 10.0.2.15")
	expect(t, s, start, discover(1), "offer 10.0.2.15")
	expect(t, s, start, discover(2), "offer 10.0.2.16")
	expect(t, s, start, discover(3, wish("10.0.2.30")), "offer 10.0.2.30")
	expect(t, s, start, discover(4, wish("10.0.2.30")), "offer 10.0.2.17")
	expect(t, s, start, discover(5, wish("10.0.2.2")), "offer 10.0.2.18")
	expect(t, s, start, request(1, server("10.0.2.2"), wish("10.0.2.15")), "ack 10.0.2.15")
	expect(t, s, start, request(2, wish("10.0.2.15")), "nak")
	expect(t, s, start, request(9, wish("10.0.2.25")), "ack 10.0.2.25") // as after our restart
	// An offer that nobody took is free after a minute, a lease after its time.
	expect(t, s, start.Add(offerTime), request(6, wish("10.0.2.16")), "ack 10.0.2.16")
	expect(t, s, start.Add(offerTime), request(6, wish("10.0.2.15")), "nak")
	expect(t, s, start.Add(day-time.Second), request(1, from("10.0.2.15")), "ack 10.0.2.15")
	expect(t, s, start.Add(2*day-2*time.Second), request(6, wish("10.0.2.15")), "nak")
	expect(t, s, start.Add(2*day), request(6, wish("10.0.2.15")), "ack 10.0.2.15")
	// One client has one address: 10.0.2.16 went back.
	expect(t, s, start.Add(2*day), request(7, wish("10.0.2.16")), "ack 10.0.2.16")
}

func TestReleaseAndDecline(t *testing.T) {
	s := NewServer4(config4())
	expect(t, s, start, client4(t, dhcpv4.MessageTypeRequest, otherMAC(1), wish("10.0.2.15")), "ack 10.0.2.15")
	// Only the holder can give an address back.
	expect(t, s, start, client4(t, dhcpv4.MessageTypeRelease, otherMAC(2), from("10.0.2.15")), "")
	expect(t, s, start, client4(t, dhcpv4.MessageTypeRequest, otherMAC(2), wish("10.0.2.15")), "nak")
	expect(t, s, start, client4(t, dhcpv4.MessageTypeRelease, otherMAC(1), from("10.0.2.15")), "")
	expect(t, s, start, client4(t, dhcpv4.MessageTypeDiscover, otherMAC(1)), "offer 10.0.2.15")
	// A declined address is offered to nobody before all others.
	expect(t, s, start, client4(t, dhcpv4.MessageTypeDecline, otherMAC(1), wish("10.0.2.15")), "")
	for i := range 15 {
		expect(t, s, start, client4(t, dhcpv4.MessageTypeDiscover, otherMAC(10+i)), fmt.Sprintf("offer 10.0.2.%d", 16+i))
	}
	expect(t, s, start, client4(t, dhcpv4.MessageTypeDiscover, otherMAC(50)), "offer 10.0.2.15")
	expect(t, s, start, client4(t, dhcpv4.MessageTypeDiscover, otherMAC(51)), "")
	// A client that takes another server's offer frees ours.
	expect(t, s, start, client4(t, dhcpv4.MessageTypeRequest, otherMAC(50), server("10.0.2.77"), wish("10.0.2.80")), "")
	expect(t, s, start, client4(t, dhcpv4.MessageTypeDiscover, otherMAC(51)), "offer 10.0.2.15")
}

func TestClientIdentifierIsTheKey(t *testing.T) {
	s := NewServer4(config4())
	id := func(s string) dhcpv4.Modifier { return dhcpv4.WithOption(dhcpv4.OptClientIdentifier([]byte(s))) }
	expect(t, s, start, client4(t, dhcpv4.MessageTypeDiscover, otherMAC(1), id("\x00one")), "offer 10.0.2.15")
	expect(t, s, start, client4(t, dhcpv4.MessageTypeDiscover, otherMAC(1), id("\x00two")), "offer 10.0.2.16")
	expect(t, s, start, client4(t, dhcpv4.MessageTypeDiscover, otherMAC(2), id("\x00one")), "offer 10.0.2.15")
}

func TestFirstClientHasTheContainersAddressWhenNobodyIsKnown(t *testing.T) {
	c := config4()
	c.Known = MAC{}
	s := NewServer4(c)
	expect(t, s, start, client4(t, dhcpv4.MessageTypeDiscover, otherMAC(1)), "offer 10.0.2.100")
	expect(t, s, start, client4(t, dhcpv4.MessageTypeDiscover, otherMAC(2)), "offer 10.0.2.15")
	expect(t, s, start, client4(t, dhcpv4.MessageTypeDiscover, otherMAC(1)), "offer 10.0.2.100")
	// "Nobody" is not the host with the address of zeros.
	expect(t, s, start, client4(t, dhcpv4.MessageTypeDiscover, MAC{}), "offer 10.0.2.16")
}

func TestSearchListIsNeverCutInsideAName(t *testing.T) {
	search := slices.Repeat([]string{"a", "bcd.example", "e.f"}, 100)
	m := message4{raw: make([]byte, fixed4)}
	for limit := fixed4 + 20; limit < 1472; limit++ {
		w := newWriter4(&m, ack4, netip.Addr{}, limit)
		appendSearch4(w, search)
		b := w.bytes()
		if len(b) > max(limit, minMessage4) {
			t.Fatalf("limit %d: %d bytes", limit, len(b))
		}
		reply, err := dhcpv4.FromBytes(b)
		if err != nil {
			t.Fatalf("limit %d: %v", limit, err)
		}
		list := reply.Options.Get(dhcpv4.OptionDNSDomainSearchList)
		if len(list) == 0 {
			continue
		}
		whole := inet.AppendNames(nil, search, len(list))
		if !bytes.Equal(list, whole) || list[len(list)-1] != 0 {
			t.Fatalf("limit %d: list %q", limit, list)
		}
	}
}

func TestDestination(t *testing.T) {
	s := NewServer4(config4())
	for _, c := range []struct {
		name, to string
		msg      []byte
		mac      MAC
	}{
		{"unicast", "10.0.2.100", client4(t, dhcpv4.MessageTypeDiscover, knownMAC), knownMAC},
		{"broadcast wanted", "255.255.255.255", client4(t, dhcpv4.MessageTypeDiscover, knownMAC, dhcpv4.WithBroadcast(true)), broadcastMAC},
		{"renewal", "10.0.2.100", client4(t, dhcpv4.MessageTypeRequest, knownMAC, from("10.0.2.100"), dhcpv4.WithBroadcast(true)), knownMAC},
		{"nak", "255.255.255.255", client4(t, dhcpv4.MessageTypeRequest, knownMAC, from("10.0.9.9")), broadcastMAC},
		{"inform", "10.0.2.77", client4(t, dhcpv4.MessageTypeInform, knownMAC, from("10.0.2.77")), knownMAC},
	} {
		if _, r := answer(t, s, start, nil, c.msg); r.To.String() != c.to || r.MAC != c.mac {
			t.Errorf("%s: to %v, %x", c.name, r.To, r.MAC)
		}
	}
}

func TestRepliesAreBounded(t *testing.T) {
	var search []string
	for i := range 300 {
		search = append(search, fmt.Sprintf("search-domain-%d.example.org", i))
	}
	for _, mtu := range []int{0, 68, 576, 1280, 1500, 65520} {
		for _, maxSize := range []int{0, 1, 576, 1000, 1500, 65535} {
			c := config4()
			c.MTU = mtu
			c.DNS = slices.Repeat(c.DNS, 10)
			mods := []dhcpv4.Modifier{dhcpv4.WithOption(dhcpv4.OptClientIdentifier(bytes.Repeat([]byte{7}, 255)))}
			if maxSize != 0 {
				mods = append(mods, dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(uint16(maxSize))))
			}
			m, r := answer(t, NewServer4(c), start, search, client4(t, dhcpv4.MessageTypeDiscover, knownMAC, mods...))
			want := max(maxSize, 576)
			if mtu != 0 {
				want = min(want, max(mtu, 576))
			}
			if size := len(r.Payload) + 28; size > min(want, 1500) {
				t.Errorf("MTU %d, limit %d: datagram of %d bytes", mtu, maxSize, size)
			}
			if m.IPAddressLeaseTime(0) != day || len(m.Router()) != 1 || len(m.DNS()) != 3 || len(m.Options.Get(dhcpv4.OptionClientIdentifier)) != 255 {
				t.Errorf("MTU %d, limit %d: an important option is missing in\n%s", mtu, maxSize, m.Summary())
			}
			// What there is of the list is its beginning, in whole names.
			got := m.DomainSearch()
			if got != nil && !slices.Equal(got.Labels, search[:len(got.Labels)]) {
				t.Errorf("MTU %d, limit %d: search list %v", mtu, maxSize, got.Labels)
			}
			if want >= 1500 && (got == nil || len(got.Labels) < 25) {
				t.Errorf("MTU %d, limit %d: search list %v", mtu, maxSize, got)
			}
		}
	}
}

func TestSmallNetworks(t *testing.T) {
	c := config4()
	c.Prefix, c.PoolFirst, c.PoolLast = netip.MustParsePrefix("10.0.0.0/8"), netip.Addr{}, netip.Addr{}
	c.Lease = 365 * 24 * 200 * time.Hour
	s := NewServer4(c)
	m, _ := answer(t, s, start, nil, client4(t, dhcpv4.MessageTypeDiscover, knownMAC))
	if m.SubnetMask().String() != "ff000000" || m.BroadcastAddress().String() != "10.255.255.255" {
		t.Errorf("mask %s, broadcast %s", m.SubnetMask(), m.BroadcastAddress())
	}
	if m.IPAddressLeaseTime(0) != 0xffffffff*time.Second {
		t.Errorf("lease %v", m.IPAddressLeaseTime(0))
	}
	expect(t, s, start, client4(t, dhcpv4.MessageTypeDiscover, otherMAC(1)), "")
	c.PoolFirst, c.PoolLast = netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.255.0.0")
	if s := NewServer4(c); len(s.table.leases) != maxPool+1 {
		t.Errorf("%d leases of a vast pool", len(s.table.leases))
	}
}

// TestPoolAlone: without a container's address everybody shares the pool, by hardware
// address alone, and keeps what he has.
func TestPoolAlone(t *testing.T) {
	c := config4()
	c.Container = netip.Addr{}
	s := NewServer4(c)
	id := func(id string) dhcpv4.Modifier {
		return dhcpv4.WithOption(dhcpv4.OptClientIdentifier([]byte(id)))
	}
	expect(t, s, start, client4(t, dhcpv4.MessageTypeDiscover, knownMAC), "offer 10.0.2.15")
	expect(t, s, start, client4(t, dhcpv4.MessageTypeRequest, knownMAC, wish("10.0.2.15")), "ack 10.0.2.15")
	m, _ := answer(t, s, start, nil, client4(t, dhcpv4.MessageTypeRequest, knownMAC, from("10.0.2.15")))
	if got := m.IPAddressLeaseTime(0); got != day {
		t.Errorf("the lease is for %s, want %s", got, day)
	}
	// The same machine with another client gets the same, also after the lease.
	expect(t, s, start, client4(t, dhcpv4.MessageTypeDiscover, knownMAC, id("another")), "offer 10.0.2.15")
	expect(t, s, start.Add(2*day), client4(t, dhcpv4.MessageTypeDiscover, knownMAC, id("third")), "offer 10.0.2.15")
	expect(t, s, start, client4(t, dhcpv4.MessageTypeRequest, otherMAC(1), wish("10.0.2.100")), "nak")
	for i := range 15 {
		want := fmt.Sprintf("offer 10.0.2.%d", 16+i)
		expect(t, s, start, client4(t, dhcpv4.MessageTypeDiscover, otherMAC(i)), want)
	}
	expect(t, s, start, client4(t, dhcpv4.MessageTypeDiscover, otherMAC(15)), "")
	if s.Refused() != 1 {
		t.Errorf("%d refused, want 1", s.Refused())
	}
}

// TestPoolAloneIsBounded: a table is never larger than maxPool.
func TestPoolAloneIsBounded(t *testing.T) {
	c := config4()
	c.Container, c.PoolFirst, c.PoolLast = netip.Addr{}, netip.MustParseAddr("10.0.2.10"), netip.MustParseAddr("10.0.2.250")
	s := NewServer4(c)
	if n := len(s.table.leases); n != maxPool {
		t.Errorf("%d leases, want %d", n, maxPool)
	}
}
