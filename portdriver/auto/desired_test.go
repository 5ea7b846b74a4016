package auto

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/userns/rtnl"
	"github.com/postern-net/postern/userns/sockdiag"
)

var addresses = portdriver.Addresses{
	Container4: netip.MustParseAddr("10.0.2.100"), Gateway4: netip.MustParseAddr("10.0.2.2"),
	Container6: netip.MustParseAddr("fd00::100"), Gateway6: netip.MustParseAddr("fd00::2"),
}

// tcp and udp are sockets on these addresses; "dual" after one is a dual socket.
func tcp(list ...string) (sockets []sockdiag.Socket) {
	for _, text := range list {
		addr, dual := strings.CutSuffix(text, " dual")
		sockets = append(sockets, sockdiag.Socket{Bound: netip.MustParseAddrPort(addr), Dual: dual})
	}
	return sockets
}

func udp(list ...string) []sockdiag.Socket {
	sockets := tcp(list...)
	for i := range sockets {
		sockets[i].UDP = true
	}
	return sockets
}

// short is a spec in few letters: protocol, host's port, target.
func short(specs []portdriver.Spec) (list []string) {
	for _, s := range specs {
		target := "own"
		if s.Container.Addr.IsValid() {
			target = s.Container.Addr.String()
		}
		list = append(list, fmt.Sprintf("%s %d %s %d", s.Proto, s.Host.Port, target, s.Container.Port))
	}
	return list
}

func TestDesired(t *testing.T) {
	explicit := func(text string) []portdriver.Rule {
		s, err := portdriver.ParseSpec(text)
		if err != nil {
			t.Fatal(err)
		}
		return []portdriver.Rule{{ID: 1, Spec: s}}
	}
	v4, v6 := addresses, addresses
	v4.Container6, v6.Container4 = netip.Addr{}, netip.Addr{}
	device := tcp("0.0.0.0:80")
	device[0].Device = 2
	mark := tcp("127.0.0.1:80")
	mark[0].Mark = rtnl.PublishedMark
	foreignMark := tcp("127.0.0.1:80")
	foreignMark[0].Mark = 0x2000
	excluded, err := ParseExclusions("~80,~53/udp")
	if err != nil {
		t.Fatal(err)
	}
	automatic := explicit("80:80")
	automatic[0].Auto = true
	for _, tc := range []struct {
		name    string
		policy  Policy
		sockets []sockdiag.Socket
		rules   []portdriver.Rule
		want    []string
	}{
		{name: "nothing"},
		{name: "any IPv4 address", sockets: tcp("0.0.0.0:80"), want: []string{"tcp 80 own 80"}},
		{name: "any address", sockets: tcp("[::]:80 dual"), want: []string{"tcp 80 own 80"}},
		{name: "its own addresses", sockets: tcp("10.0.2.100:80", "[fd00::100]:80"), want: []string{"tcp 80 own 80"}},
		{name: "loopback", sockets: tcp("127.0.0.1:80"), want: []string{"tcp 80 127.0.0.1 80"}},
		{name: "IPv6 loopback", sockets: tcp("[::1]:80"), want: []string{"tcp 80 ::1 80"}},
		{name: "both loopbacks", sockets: tcp("127.0.0.1:80", "[::1]:80"), want: []string{"tcp4 80 127.0.0.1 80", "tcp6 80 ::1 80"}},
		{name: "own before loopback", sockets: tcp("127.0.0.1:80", "[fd00::100]:80"), want: []string{"tcp 80 own 80"}},
		{name: "foreign addresses", sockets: tcp("10.88.0.1:80", "127.0.0.53:53", "[fe80::1]:80", "[fd01::1]:80")},
		{name: "order", sockets: append(udp("0.0.0.0:53"), tcp("0.0.0.0:81", "0.0.0.0:80", "[::]:80")...),
			want: []string{"tcp 80 own 80", "tcp 81 own 81", "udp 53 own 53"}},
		{name: "UDP", sockets: udp("127.0.0.1:53", "[::1]:53", "0.0.0.0:32767", "0.0.0.0:61000"),
			want: []string{"udp4 53 127.0.0.1 53", "udp6 53 ::1 53", "udp 32767 own 32767", "udp 61000 own 61000"}},
		{name: "ephemeral UDP", sockets: udp("0.0.0.0:32768", "0.0.0.0:60999", "0.0.0.0:45000")},
		{name: "ephemeral TCP", sockets: tcp("0.0.0.0:45000"), want: []string{"tcp 45000 own 45000"}},
		{name: "another ephemeral range", policy: Policy{FirstEphemeral: 100, LastEphemeral: 200}, sockets: udp("0.0.0.0:150", "0.0.0.0:45000"),
			want: []string{"udp 45000 own 45000"}},
		{name: "excluded", policy: Policy{Exclude: excluded}, sockets: append(tcp("0.0.0.0:80", "0.0.0.0:53"), udp("0.0.0.0:80", "0.0.0.0:53")...),
			want: []string{"tcp 53 own 53"}},
		{name: "no IPv6", policy: Policy{Addresses: v4}, sockets: tcp("[::]:80", "[::]:81 dual", "[fd00::100]:82", "[::1]:83"),
			want: []string{"tcp 80 ::1 80", "tcp 81 own 81", "tcp 83 ::1 83"}},
		{name: "no IPv4", policy: Policy{Addresses: v6}, sockets: tcp("0.0.0.0:80", "[::]:81 dual", "10.0.2.100:82"),
			want: []string{"tcp 80 127.0.0.1 80", "tcp 81 own 81"}},
		{name: "another interface", sockets: device},
		{name: "the container's interface", policy: Policy{Interface: 2}, sockets: device, want: []string{"tcp 80 own 80"}},
		{name: "a socket of ours", sockets: mark},
		{name: "a mark of others", sockets: foreignMark, want: []string{"tcp 80 127.0.0.1 80"}},
		{name: "published by the user", sockets: append(tcp("0.0.0.0:80", "0.0.0.0:8080"), udp("0.0.0.0:80")...), rules: explicit("8080:80"),
			want: []string{"tcp 8080 own 8080", "udp 80 own 80"}},
		{name: "a range of the user's", sockets: tcp("0.0.0.0:80", "0.0.0.0:81", "0.0.0.0:82", "0.0.0.0:79"), rules: explicit("8080-8081:80-81"),
			want: []string{"tcp 79 own 79", "tcp 82 own 82"}},
		{name: "our own rule", sockets: tcp("0.0.0.0:80"), rules: automatic, want: []string{"tcp 80 own 80"}},
		{name: "a reverse rule's listener", sockets: tcp("127.0.0.1:80"), rules: []portdriver.Rule{{Spec: portdriver.Spec{
			Proto: portdriver.TCP, Count: 1, Reverse: true, Host: portdriver.Side{Path: "/x"}, Container: portdriver.Side{Addr: loopback4, Port: 80}}}}},
	} {
		if !tc.policy.Addresses.Container4.IsValid() && !tc.policy.Addresses.Container6.IsValid() {
			tc.policy.Addresses = addresses
		}
		specs, more := tc.policy.Desired(tc.sockets, tc.rules)
		if diff := cmp.Diff(tc.want, short(specs)); diff != "" || more != 0 {
			t.Errorf("%s: %d more, (-want +got)\n%s", tc.name, more, diff)
		}
		for _, s := range specs {
			if err := s.Validate(); err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
		}
	}
}

func TestDesiredIsBounded(t *testing.T) {
	var sockets []sockdiag.Socket
	for port := 65535; port > 0; port-- {
		sockets = append(sockets, sockdiag.Socket{Bound: netip.AddrPortFrom(netip.IPv4Unspecified(), uint16(port))})
	}
	specs, more := Policy{Addresses: addresses}.Desired(sockets, nil)
	if len(specs) != MaxRules || more != 65535-MaxRules || specs[0].Host.Port != 1 || specs[MaxRules-1].Host.Port != MaxRules {
		t.Errorf("%d specs, %d more", len(specs), more)
	}
}
