package express

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"regexp"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/userns/join"
	"github.com/postern-net/postern/userns/rtnl"
)

var counters = regexp.MustCompile(`packets \d+ bytes \d+`)

// inner sends a frame as a container behind the bridge would: from 172.17.0.9, by a
// packet socket on the pair's other end.
func (w *world) inner(t *testing.T, proto string) {
	t.Helper()
	list, _, err := w.target.Make([]join.Socket{{What: "make a packet socket", Domain: unix.AF_PACKET, Type: unix.SOCK_RAW}})
	check(t, err)
	s := list[0]
	defer s.Close()
	link, err := rtnl.Find(w.route, "in1")
	check(t, err)
	bridge, err := rtnl.Find(w.route, "br0")
	check(t, err)
	check(t, rtnl.BindPacket(s, link.Index))
	b := append(append([]byte(nil), bridge.MAC...), 2, 0, 0, 0, 0, 9, 8, 0)
	src := netip.MustParseAddrPort("172.17.0.9:40000")
	if proto == "tcp" {
		b = append(b, packet(unix.IPPROTO_TCP, src, remote4, func(l4 []byte) []byte {
			l4 = append(l4, make([]byte, 16)...)
			l4[4], l4[12], l4[13], l4[14] = 1, 0x50, 2, 0xff
			return l4
		}, 16)...)
	} else {
		b = append(b, packet(unix.IPPROTO_UDP, src, remote4, func(l4 []byte) []byte {
			return append(l4, 0, 12, 0, 0, 'q', 'u', 'e', 's')
		}, 6)...)
	}
	_, err = s.Write(b)
	check(t, err)
}

// packet is an IPv4 packet; sum is where the transport header has its checksum.
func packet(proto byte, src, dst netip.AddrPort, fill func([]byte) []byte, sum int) []byte {
	l4 := binary.BigEndian.AppendUint16(nil, src.Port())
	l4 = fill(binary.BigEndian.AppendUint16(l4, dst.Port()))
	ip := []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, proto, 0, 0}
	binary.BigEndian.PutUint16(ip[2:], uint16(20+len(l4)))
	ip = append(append(ip, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(ip[10:], checksum(0, ip))
	pseudo := append(append([]byte(nil), ip[12:20]...), l4...)
	binary.BigEndian.PutUint16(l4[sum:], checksum(uint32(proto)+uint32(len(l4)), pseudo))
	return append(ip, l4...)
}

// known asks sock_diag whether a socket of the namespace opens this connection, as the
// engine does (sock_diag(7): struct inet_diag_req_v2 without NLM_F_DUMP).
func (w *world) known(t *testing.T, syn frame) bool {
	t.Helper()
	body := []byte{unix.AF_INET, unix.IPPROTO_TCP, 0, 0, 0xff, 0xff, 0xff, 0xff}
	body = binary.BigEndian.AppendUint16(body, syn.src.Port())
	body = binary.BigEndian.AppendUint16(body, syn.dst.Port())
	for _, a := range []netip.Addr{syn.src.Addr(), syn.dst.Addr()} {
		field := make([]byte, 16)
		copy(field, a.AsSlice())
		body = append(body, field...)
	}
	body = append(body, 0, 0, 0, 0)                                     // idiag_if
	body = append(body, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff) // INET_DIAG_NOCOOKIE
	const sockDiagByFamily = 20
	err := rtnl.Batch(w.path.Diag, []rtnl.Request{{Op: "find a socket", Kind: sockDiagByFamily, Body: body}})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		t.Fatal(err)
	}
	return err == nil
}
