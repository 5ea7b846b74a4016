package dhcp

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
)

var (
	serverMAC   = MAC{0x52, 0x55, 0, 0, 0, 2}
	container6  = netip.MustParseAddr("fd00::100")
	serverDUID  = &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: serverMAC[:]}
	foreignDUID = &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: knownMAC[:]}
)

func minuteOf(b byte) time.Duration { return time.Duration(b) * time.Minute }

func config6() Config6 {
	return Config6{
		Prefix: netip.MustParsePrefix("fd00::/64"), Container: container6,
		DNS: []netip.Addr{netip.MustParseAddr("fd00::3")}, Server: serverMAC, Known: knownMAC,
	}
}

// client6 makes a message with the independent codec, with a client identifier.
func client6(t testing.TB, kind dhcpv6.MessageType, options ...dhcpv6.Option) []byte {
	t.Helper()
	m, err := dhcpv6.NewMessage()
	if err != nil {
		t.Fatal(err)
	}
	m.MessageType = kind
	m.AddOption(dhcpv6.OptClientID(foreignDUID))
	for _, o := range options {
		m.AddOption(o)
	}
	return m.ToBytes()
}

func iana6(id byte, addrs ...string) *dhcpv6.OptIANA {
	o := &dhcpv6.OptIANA{IaId: [4]byte{0, 0, 0, id}}
	for _, a := range addrs {
		o.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: net.ParseIP(a), PreferredLifetime: time.Hour, ValidLifetime: time.Hour})
	}
	return o
}

// describe puts an answer into words: "reply commit fd00::100/86400 status 2".
func describe(t testing.TB, b []byte) string {
	t.Helper()
	m, err := dhcpv6.MessageFromBytes(b)
	if err != nil {
		t.Fatalf("the reply does not parse: %v\n%x", err, b)
	}
	words := []string{strings.ToLower(m.MessageType.String())}
	if m.GetOneOption(dhcpv6.OptionRapidCommit) != nil {
		words = append(words, "commit")
	}
	if s := m.Options.Status(); s != nil {
		words = append(words, fmt.Sprintf("status %d", s.StatusCode))
	}
	for _, o := range m.Options.IANA() {
		words = append(words, fmt.Sprintf("na%d", o.IaId[3]))
		for _, a := range o.Options.Addresses() {
			words = append(words, fmt.Sprintf("%v/%v", a.IPv6Addr, a.ValidLifetime.Seconds()))
		}
		if s := o.Options.Status(); s != nil {
			words = append(words, fmt.Sprintf("status %d", s.StatusCode))
		}
	}
	for _, o := range m.Options.IATA() {
		words = append(words, fmt.Sprintf("ta status %d", o.Options.Status().StatusCode))
	}
	for _, o := range m.Options.IAPD() {
		words = append(words, fmt.Sprintf("pd status %d", o.Options.Status().StatusCode))
	}
	return strings.Join(words, " ")
}

func TestServer6(t *testing.T) {
	rapid := &dhcpv6.OptionGeneric{OptionCode: dhcpv6.OptionRapidCommit}
	ours, other := dhcpv6.OptServerID(serverDUID), dhcpv6.OptServerID(foreignDUID)
	pd := &dhcpv6.OptIAPD{IaId: [4]byte{9}}
	ta := &dhcpv6.OptIATA{IaId: [4]byte{8}}
	const lease = "fd00::100/86400"
	for _, c := range []struct {
		name string
		mac  MAC
		msg  []byte
		want string
	}{
		{"solicit", knownMAC, client6(t, dhcpv6.MessageTypeSolicit, iana6(1)), "advertise na1 " + lease},
		{"solicit with a wish", knownMAC, client6(t, dhcpv6.MessageTypeSolicit, iana6(1, "fd00::77")), "advertise na1 " + lease},
		{"solicit, rapid commit", knownMAC, client6(t, dhcpv6.MessageTypeSolicit, iana6(1), rapid), "reply commit na1 " + lease},
		{"solicit, two associations", knownMAC, client6(t, dhcpv6.MessageTypeSolicit, iana6(1), iana6(2)), "advertise na1 " + lease + " na2 status 2"},
		{"solicit, prefix and temporary", knownMAC, client6(t, dhcpv6.MessageTypeSolicit, pd, iana6(1), ta), "advertise na1 " + lease + " ta status 2 pd status 6"},
		{"solicit of another host", otherMAC(1), client6(t, dhcpv6.MessageTypeSolicit, iana6(1)), "advertise na1 status 2"},
		{"solicit to a server", knownMAC, client6(t, dhcpv6.MessageTypeSolicit, iana6(1), ours), ""},
		{"request", knownMAC, client6(t, dhcpv6.MessageTypeRequest, iana6(1, "fd00::100"), ours), "reply na1 " + lease},
		{"request to another server", knownMAC, client6(t, dhcpv6.MessageTypeRequest, iana6(1), other), ""},
		{"request to no server", knownMAC, client6(t, dhcpv6.MessageTypeRequest, iana6(1)), ""},
		{"renew", knownMAC, client6(t, dhcpv6.MessageTypeRenew, iana6(1, "fd00::100"), ours), "reply na1 " + lease},
		{"renew of an old address", knownMAC, client6(t, dhcpv6.MessageTypeRenew, iana6(1, "fd00::99"), ours), "reply na1 " + lease + " fd00::99/0"},
		{"renew of another host", otherMAC(1), client6(t, dhcpv6.MessageTypeRenew, iana6(1, "fd00::99"), ours), "reply na1 fd00::99/0 status 3"},
		{"rebind", knownMAC, client6(t, dhcpv6.MessageTypeRebind, iana6(1, "fd00::100")), "reply na1 " + lease},
		{"confirm", knownMAC, client6(t, dhcpv6.MessageTypeConfirm, iana6(1, "fd00::55")), "reply status 0"},
		{"confirm elsewhere", knownMAC, client6(t, dhcpv6.MessageTypeConfirm, iana6(1, "fd00::55"), iana6(2, "2001:db8::1")), "reply status 4"},
		{"confirm nothing", knownMAC, client6(t, dhcpv6.MessageTypeConfirm, iana6(1)), ""},
		{"release", knownMAC, client6(t, dhcpv6.MessageTypeRelease, iana6(1, "fd00::100"), ours), "reply status 0"},
		{"decline", knownMAC, client6(t, dhcpv6.MessageTypeDecline, iana6(1, "fd00::100"), ours), "reply status 0"},
		{"information", knownMAC, client6(t, dhcpv6.MessageTypeInformationRequest), "reply"},
		{"information with association", knownMAC, client6(t, dhcpv6.MessageTypeInformationRequest, iana6(1)), ""},
		{"information to another server", knownMAC, client6(t, dhcpv6.MessageTypeInformationRequest, other), ""},
		{"information without an identifier", otherMAC(1), []byte{11, 1, 2, 3}, "reply"},
		{"solicit without an identifier", knownMAC, []byte{1, 1, 2, 3}, ""},
		{"a server's message", knownMAC, client6(t, dhcpv6.MessageTypeAdvertise), ""},
		{"a relay's message", knownMAC, append([]byte{12}, make([]byte, 40)...), ""},
	} {
		s := NewServer6(config6())
		b, ok := s.Handle(c.mac, nil, c.msg)
		got := ""
		if ok {
			got = describe(t, b)
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if strings.Contains(c.want, "status 2") != (s.Refused() > 0) && !strings.Contains(c.want, "status 3") {
			t.Errorf("%s: %d refused", c.name, s.Refused())
		}
	}
}

func TestServer6Settings(t *testing.T) {
	msg := client6(t, dhcpv6.MessageTypeSolicit, iana6(1))
	b, ok := NewServer6(config6()).Handle(knownMAC, []string{"corp.example", "lan"}, msg)
	if !ok {
		t.Fatal("no answer")
	}
	m, err := dhcpv6.MessageFromBytes(b)
	if err != nil {
		t.Fatal(err)
	}
	na := m.Options.OneIANA()
	addr := na.Options.OneAddress()
	for name, ok := range map[string]bool{
		"xid":        bytes.Equal(m.TransactionID[:], msg[1:4]),
		"client":     m.Options.ClientID().Equal(foreignDUID),
		"server":     m.Options.ServerID().Equal(serverDUID),
		"preference": bytes.Equal(m.GetOneOption(dhcpv6.OptionPreference).ToBytes(), []byte{255}),
		"dns":        len(m.Options.DNS()) == 1 && m.Options.DNS()[0].String() == "fd00::3",
		"search":     slices.Equal(m.Options.DomainSearchList().Labels, []string{"corp.example", "lan"}),
		"times":      na.T1 == day/2 && na.T2 == day/5*4,
		"lifetimes":  addr.ValidLifetime == day && addr.PreferredLifetime == day,
	} {
		if !ok {
			t.Errorf("%s is wrong in\n%s", name, m.Summary())
		}
	}
}

func TestFirstClient6HasTheContainersAddressWhenNobodyIsKnown(t *testing.T) {
	c := config6()
	c.Known = MAC{}
	s := NewServer6(c)
	for _, x := range []struct {
		mac  MAC
		want string
	}{{otherMAC(1), "advertise na1 fd00::100/86400"}, {otherMAC(2), "advertise na1 status 2"}, {otherMAC(1), "advertise na1 fd00::100/86400"}} {
		b, _ := s.Handle(x.mac, nil, client6(t, dhcpv6.MessageTypeSolicit, iana6(1)))
		if got := describe(t, b); got != x.want {
			t.Errorf("%x: %q, want %q", x.mac, got, x.want)
		}
	}
}

// largest6 is the request that makes the largest reply: the longest identifier,
// and more associations and addresses than are looked at.
func largest6() []byte {
	msg := append([]byte{rebind6, 1, 2, 3}, appendOption6(nil, optClientID6, make([]byte, maxDUID))...)
	for i := range 20 {
		v := binary.BigEndian.AppendUint32(nil, uint32(i))
		v = append(v, make([]byte, 8)...)
		for j := range 20 {
			v = appendIAAddr(v, netip.AddrFrom16([16]byte{0xfd, 15: byte(j)}), 7)
		}
		msg = appendOption6(msg, optIANA, v)
	}
	return msg
}

func TestReplies6AreBounded(t *testing.T) {
	c := config6()
	c.DNS = slices.Repeat(c.DNS, 50)
	s := NewServer6(c)
	var search []string
	for i := range 300 {
		search = append(search, fmt.Sprintf("search-domain-%d.example.org", i))
		b, ok := s.Handle(knownMAC, search, largest6())
		if !ok || len(b)+48 > 1280 {
			t.Fatalf("%d domains: ok %v, %d bytes", i, ok, len(b))
		}
		m, err := dhcpv6.MessageFromBytes(b)
		if err != nil {
			t.Fatalf("%d domains: %v", i, err)
		}
		if len(m.Options.DNS()) != 3 || len(m.Options.IANA()) != maxIA {
			t.Fatalf("%d domains:\n%s", i, m.Summary())
		}
		if got := m.Options.DomainSearchList().Labels; !slices.Equal(got, search[:len(got)]) {
			t.Fatalf("%d domains: search list %v", i, got)
		}
	}
}

func TestParse6Refuses(t *testing.T) {
	good := append([]byte{solicit6, 1, 2, 3}, appendOption6(nil, optClientID6, []byte{0, 3, 0, 1, 1})...)
	na := func(v ...byte) []byte { return append(bytes.Clone(good), appendOption6(nil, optIANA, v)...) }
	if _, ok := parse6(good); !ok {
		t.Fatal("a good message was refused")
	}
	for name, b := range map[string][]byte{
		"nothing":               nil,
		"three bytes":           {1, 2, 3},
		"cut option header":     append(bytes.Clone(good), 0, 1, 0),
		"option beyond message": append(bytes.Clone(good), 0, 8, 0, 3, 1, 2),
		"short identifier":      append([]byte{1, 1, 2, 3}, appendOption6(nil, optClientID6, []byte{1, 2})...),
		"long identifier":       append([]byte{1, 1, 2, 3}, appendOption6(nil, optClientID6, make([]byte, 131))...),
		"empty server":          append(bytes.Clone(good), 0, 2, 0, 0),
		"short association":     na(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11),
		"short address":         na(append(make([]byte, 12), appendOption6(nil, optIAAddr, make([]byte, 23))...)...),
		"cut address":           na(append(make([]byte, 12), 0, 5, 0, 24, 1)...),
		"short temporary":       append(bytes.Clone(good), appendOption6(nil, optIATA, []byte{1, 2, 3})...),
	} {
		if _, ok := parse6(b); ok {
			t.Errorf("%s: accepted", name)
		}
	}
}

func FuzzServer6(f *testing.F) {
	ours := dhcpv6.OptServerID(serverDUID)
	for _, kind := range []dhcpv6.MessageType{dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeConfirm, dhcpv6.MessageTypeRebind} {
		f.Add(client6(f, kind, iana6(1, "fd00::1")), "corp.example")
	}
	for _, kind := range []dhcpv6.MessageType{dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRelease} {
		f.Add(client6(f, kind, iana6(1), ours), "x")
	}
	f.Add(client6(f, dhcpv6.MessageTypeInformationRequest), "")
	f.Fuzz(func(t *testing.T, msg []byte, search string) {
		s := NewServer6(config6())
		for _, mac := range []MAC{knownMAC, otherMAC(1)} {
			b, ok := s.Handle(mac, []string{search, "b." + search}, msg)
			if !ok {
				continue
			}
			if len(b) > maxReply6 || !bytes.Equal(b[1:4], msg[1:4]) {
				t.Errorf("reply %x", b)
			}
			if !walk6(b[4:], func(uint16, []byte) bool { return true }) {
				t.Errorf("malformed options in %x", b)
			}
		}
	})
}
