package sockdiag

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// message is struct inet_diag_msg with attributes.
func message(family, state uint8, addr string, port uint16, device uint32, attrs ...[]byte) []byte {
	b := make([]byte, msgLen)
	b[0], b[atState] = family, state
	binary.BigEndian.PutUint16(b[atPort:], port)
	copy(b[atSource:], netip.MustParseAddr(addr).AsSlice())
	binary.NativeEndian.PutUint32(b[atDevice:], device)
	for _, a := range attrs {
		b = append(b, a...)
	}
	return b
}

func attr(kind uint16, value ...byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func TestParse(t *testing.T) {
	tcp4, tcp6, udp6 := queries[0], queries[1], queries[3]
	mark := attr(attrMark, binary.NativeEndian.AppendUint32(nil, 0x1050)...)
	for _, tc := range []struct {
		name string
		q    query
		kind uint16
		b    []byte
		want *Socket
	}{
		{"IPv4", tcp4, sockDiagByFamily, message(2, stateListen, "127.0.0.1", 80, 0), &Socket{Bound: netip.MustParseAddrPort("127.0.0.1:80")}},
		{"mark, device", tcp4, sockDiagByFamily, message(2, stateListen, "10.0.2.100", 80, 3, attr(1, 1, 2, 3), mark),
			&Socket{Bound: netip.MustParseAddrPort("10.0.2.100:80"), Device: 3, Mark: 0x1050}},
		{"dual", tcp6, sockDiagByFamily, message(10, stateListen, "::", 80, 0, attr(attrV6Only, 0)), &Socket{Bound: netip.MustParseAddrPort("[::]:80"), Dual: true}},
		{"IPv6 only", udp6, sockDiagByFamily, message(10, stateClose, "::", 53, 0, attr(attrV6Only, 1)), &Socket{UDP: true, Bound: netip.MustParseAddrPort("[::]:53")}},
		{"IPv4 through IPv6", tcp6, sockDiagByFamily, message(10, stateListen, "::ffff:127.0.0.1", 80, 0, attr(attrV6Only, 0)), &Socket{Bound: netip.MustParseAddrPort("127.0.0.1:80")}},
		{"cut attribute", tcp6, sockDiagByFamily, append(message(10, stateListen, "::", 80, 0), 200, 0, attrV6Only, 0, 1), &Socket{Bound: netip.MustParseAddrPort("[::]:80"), Dual: true}},
		{"no port", tcp4, sockDiagByFamily, message(2, stateListen, "0.0.0.0", 0, 0), nil},
		{"another state", tcp4, sockDiagByFamily, message(2, 1, "0.0.0.0", 80, 0), nil},
		{"another family", tcp4, sockDiagByFamily, message(10, stateListen, "::", 80, 0), nil},
		{"another message", tcp4, 3, message(2, stateListen, "0.0.0.0", 80, 0), nil},
		{"short", tcp4, sockDiagByFamily, message(2, stateListen, "0.0.0.0", 80, 0)[:msgLen-1], nil},
		{"nothing", tcp4, sockDiagByFamily, nil, nil},
	} {
		got, ok := parse(tc.q, tc.kind, tc.b)
		if ok != (tc.want != nil) || (ok && got != *tc.want) {
			t.Errorf("%s: %+v, %t; want %+v", tc.name, got, ok, tc.want)
		}
	}
}

// event is a message with its header.
func event(kind uint16, body []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.NLMSG_HDRLEN+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	return append(append(b, make([]byte, 10)...), body...)
}

func TestParseDeaths(t *testing.T) {
	a := event(sockDiagByFamily, message(2, stateClose, "0.0.0.0", 80, 0))
	b := event(sockDiagByFamily, message(10, stateClose, "::1", 81, 0, attr(attrV6Only, 1)))
	odd := event(3, make([]byte, 5))
	for _, tc := range []struct {
		name string
		b    []byte
		want []uint16
	}{
		{"two", append(append([]byte(nil), a...), b...), []uint16{80, 81}},
		{"one of another kind, not aligned", append(append(append([]byte(nil), odd...), 0, 0, 0), a...), []uint16{80}},
		{"cut", append(append([]byte(nil), a...), b[:len(b)-1]...), []uint16{80}},
		{"length below the header", make([]byte, 100), nil},
		{"short body", event(sockDiagByFamily, make([]byte, msgLen-1)), nil},
		{"nothing", nil, nil},
	} {
		var got []uint16
		for _, d := range parseDeaths(tc.b) {
			got = append(got, d.port)
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%s: %s", tc.name, diff)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(uint8(0), message(2, stateListen, "127.0.0.1", 80, 0))
	f.Add(uint8(1), message(10, stateListen, "::", 80, 0, attr(attrV6Only, 1), attr(attrMark, 1, 2, 3, 4)))
	f.Add(uint8(3), event(sockDiagByFamily, message(10, stateClose, "::1", 81, 0)))
	f.Fuzz(func(t *testing.T, i uint8, b []byte) {
		q := queries[int(i)%len(queries)]
		if s, ok := parse(q, sockDiagByFamily, b); ok {
			if s.Bound.Port() == 0 || !s.Bound.IsValid() || s.Bound.Addr().Is4In6() || s.UDP != (q.protocol == unix.IPPROTO_UDP) {
				t.Errorf("%+v", s)
			}
			if s.Dual && !s.Bound.Addr().IsUnspecified() {
				t.Errorf("dual on an address: %+v", s)
			}
		}
		if n := len(parseDeaths(b)); n > len(b)/(unix.NLMSG_HDRLEN+msgLen) {
			t.Errorf("%d deaths in %d bytes", n, len(b))
		}
	})
}

func TestCompare(t *testing.T) {
	at := netip.MustParseAddrPort
	order := []Socket{
		{Bound: at("0.0.0.0:80")}, {Bound: at("0.0.0.0:80"), Mark: 1}, {Bound: at("0.0.0.0:80"), Device: 1},
		{Bound: at("0.0.0.0:80"), UDP: true}, {Bound: at("0.0.0.0:81")}, {Bound: at("[::]:80")}, {Bound: at("[::]:80"), Dual: true},
	}
	for i, a := range order {
		for j, b := range order {
			if got, want := compare(a, b), cmp3(i, j); got != want {
				t.Errorf("%+v and %+v: %d, want %d", a, b, got, want)
			}
		}
	}
}

func cmp3(i, j int) int {
	switch {
	case i < j:
		return -1
	case i > j:
		return 1
	}
	return 0
}
