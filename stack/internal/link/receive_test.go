package link

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/tap"
)

// sample is a frame, where it goes when it is whole, and its virtio header.
type sample struct {
	name  string
	frame []byte
	to    func(r *rig) int
	h     tap.Header
}

func toUDP(r *rig) int      { return len(r.udp) }
func toICMP(r *rig) int     { return len(r.icmp) }
func toNetstack(r *rig) int { return len(r.delivered) }
func toService(r *rig) int  { return r.served }

// samples are frames of every kind that the link tells apart.
func samples() []sample {
	list := []sample{
		{"ARP", stacktest.Ethernet([6]byte{255, 255, 255, 255, 255, 255}, stacktest.ContainerMAC, 0x0806, make([]byte, 46)), toService, tap.Header{}},
	}
	add := func(name string, packet []byte, to func(*rig) int) {
		list = append(list, sample{name, stacktest.Frame(packet), to, tap.Header{}})
	}
	for _, f := range families {
		tcp := stacktest.Segment{Src: f.inside, Dst: f.outside, Seq: 1, Flags: stacktest.SYN, Options: stacktest.MSS(1460)}.Packet()
		udp := stacktest.Datagram(f.inside, f.outside, pattern(50))
		echo := stacktest.EchoRequest(f.inside.Addr(), f.outside.Addr(), 1, 2, pattern(50))
		piece := stacktest.Fragments(stacktest.Datagram(f.inside, f.outside, pattern(2000)), 1280, 7)[0][:]
		add("TCP over "+f.name, tcp, toNetstack)
		add("UDP over "+f.name, udp, toUDP)
		add("echo over "+f.name, echo, toICMP)
		add("fragment over "+f.name, piece, toNetstack)
		partial := bytes.Clone(tcp)
		h := stacktest.Partial(partial)
		list = append(list, sample{"partial TCP over " + f.name, stacktest.Frame(partial), toNetstack, h})
		if f.inside.Addr().Is4() {
			nop := bytes.Repeat([]byte{1}, 40)
			add("UDP with IPv4 options", withOptions(udp, nop...), toUDP)
			add("TCP with IPv4 options", withOptions(tcp, nop...), toNetstack)
			continue
		}
		add("UDP behind hop-by-hop", extended(udp, 0, 0, 0, 1, 4, 0, 0, 0, 0), toUDP)
		add("TCP behind destination options", extended(tcp, 60, 0, 0, 1, 4, 0, 0, 0, 0), toNetstack)
		add("echo in an atomic fragment", extended(echo, 44, 0, 0, 0, 0, 0, 0, 0, 9), toICMP)
	}
	return list
}

func TestWholeFramesGoWhereTheyBelong(t *testing.T) {
	r := newRig(t, 65520, stacktest.AllOffloads)
	for _, s := range samples() {
		r.reset()
		r.putFrame(s.h, s.frame)
		if s.to(r) != 1 || r.passed() != 1 {
			t.Errorf("%s: %d UDP, %d ICMP, %d netstack, %d service", s.name, len(r.udp), len(r.icmp), len(r.delivered), r.served)
		}
	}
	if n := r.drops(); n != 0 {
		t.Errorf("%d drops: %v", n, r.count.Snapshot())
	}
}

// Padding, which a kernel adds up to 60 bytes and others add as they like, is no
// part of a packet.
func TestPaddingIsAccepted(t *testing.T) {
	r := newRig(t, 65520, stacktest.AllOffloads)
	for _, s := range samples() {
		for _, more := range []int{1, 2, 30, 500, 40000} {
			r.reset()
			r.putFrame(s.h, stacktest.Pad(s.frame, len(s.frame)+more))
			if s.to(r) != 1 || r.passed() != 1 {
				t.Errorf("%s and %d bytes: %d passed, drops %v", s.name, more, r.passed(), r.count.Snapshot())
			}
			for _, p := range append(r.udp, r.icmp...) {
				if len(p.Bytes) != len(s.frame)-ethernetLen {
					t.Errorf("%s and %d bytes: packet of %d bytes, want %d", s.name, more, len(p.Bytes), len(s.frame)-ethernetLen)
				}
			}
		}
	}
}

// Every prefix of every kind of frame is dropped and counted, whatever stands in
// memory behind its end.
func TestPrefixesAreDroppedAndCounted(t *testing.T) {
	for _, s := range samples() {
		r := newRig(t, 65520, stacktest.AllOffloads)
		for n := range min(len(s.frame), 140) {
			if s.name == "ARP" && n >= ethernetLen {
				break // the service judges it
			}
			before := r.drops()
			r.reset()
			r.put(s.h, s.frame, n)
			if r.passed() != 0 {
				t.Errorf("%s cut to %d of %d bytes went on", s.name, n, len(s.frame))
			}
			if r.drops() != before+1 {
				t.Errorf("%s cut to %d bytes: %d drops counted", s.name, n, r.drops()-before)
			}
			if runt := r.count.Load(flow.DropRunt); n < ethernetLen && runt != uint64(n+1) {
				t.Errorf("%s cut to %d bytes: %d runts", s.name, n, runt)
			}
		}
	}
}

func TestMalformedFramesAreDroppedAndCounted(t *testing.T) {
	udp4 := stacktest.Datagram(inside4, outside4, pattern(100))
	tcp4 := stacktest.Segment{Src: inside4, Dst: outside4, Flags: stacktest.SYN}.Packet()
	udp6 := stacktest.Datagram(inside6, outside6, pattern(100))
	tcp6 := stacktest.Segment{Src: inside6, Dst: outside6, Flags: stacktest.SYN}.Packet()
	change := func(packet []byte, f func(b []byte)) []byte {
		b := bytes.Clone(packet)
		f(b)
		if b[0]>>4 == 4 && b[0]&15 >= 5 && int(b[0]&15)*4 <= len(b) {
			fixIPv4(b)
		}
		return stacktest.Frame(b)
	}
	set16 := func(at int, v uint16) func([]byte) {
		return func(b []byte) { binary.BigEndian.PutUint16(b[at:], v) }
	}
	set8 := func(at int, v byte) func([]byte) { return func(b []byte) { b[at] = v } }
	mapped := netip.MustParseAddr("::ffff:10.0.2.100").As16()
	for _, c := range []struct {
		name  string
		frame []byte
		want  flow.Counter
	}{
		{"IHL 0", change(udp4, set8(0, 0x40)), flow.DropMalformed},
		{"IHL 4", change(tcp4, set8(0, 0x44)), flow.DropMalformed},
		{"IHL 15 beyond the packet", change(tcp4, set8(0, 0x4f)), flow.DropMalformed},
		{"version 6 in an IPv4 frame", stacktest.Ethernet(stacktest.GatewayMAC, stacktest.ContainerMAC, 0x0800, udp6), flow.DropMalformed},
		{"version 4 in an IPv6 frame", stacktest.Ethernet(stacktest.GatewayMAC, stacktest.ContainerMAC, 0x86dd, udp4), flow.DropMalformed},
		{"version 0", stacktest.Ethernet(stacktest.GatewayMAC, stacktest.ContainerMAC, 0x0800, make([]byte, 60)), flow.DropMalformed},
		{"IPv4 total length 0", change(udp4, set16(2, 0)), flow.DropMalformed},
		{"IPv4 total length below the header", change(tcp4, set16(2, 19)), flow.DropMalformed},
		{"IPv4 total length beyond the frame", change(tcp4, set16(2, 65535)), flow.DropMalformed},
		{"IPv4 header checksum, UDP", stacktest.Frame(func() []byte { b := bytes.Clone(udp4); b[10] ^= 1; return b }()), flow.DropMalformed},
		{"IPv4 header checksum, TCP", stacktest.Frame(func() []byte { b := bytes.Clone(tcp4); b[10] ^= 1; return b }()), flow.DropMalformed},
		{"IPv6 payload length beyond the frame", change(tcp6, set16(4, 65535)), flow.DropMalformed},
		{"IPv6 jumbogram", func() []byte {
			b := extended(udp6, 0, 0, 0, 0xc2, 4, 0, 0, 0, 116)
			binary.BigEndian.PutUint16(b[4:], 0)
			return stacktest.Frame(b)
		}(), flow.DropMalformed},
		{"IPv6 extension header beyond the packet", change(udp6, set8(6, 60)), flow.DropMalformed},
		{"IPv6 extension headers without end", func() []byte {
			b := udp6
			for range 20 {
				b = extended(b, 60, 0, 0, 1, 4, 0, 0, 0, 0)
			}
			return stacktest.Frame(b)
		}(), flow.DropMalformed},
		{"v4-mapped source", change(tcp6, func(b []byte) { copy(b[8:], mapped[:]) }), flow.DropMalformed},
		{"VLAN", stacktest.Ethernet(stacktest.GatewayMAC, stacktest.ContainerMAC, 0x8100, append([]byte{0, 1, 8, 0}, udp4...)), flow.DropUnknownProtocol},
		{"stacked VLAN", stacktest.Ethernet(stacktest.GatewayMAC, stacktest.ContainerMAC, 0x88a8, append([]byte{0, 1, 8, 0}, udp4...)), flow.DropUnknownProtocol},
		{"LLC", stacktest.Ethernet(stacktest.GatewayMAC, stacktest.ContainerMAC, 38, append([]byte{0x42, 0x42, 3}, make([]byte, 43)...)), flow.DropUnknownProtocol},
		{"LLDP", stacktest.Ethernet([6]byte{1, 0x80, 0xc2, 0, 0, 0xe}, stacktest.ContainerMAC, 0x88cc, make([]byte, 46)), flow.DropUnknownProtocol},
		{"foreign destination", stacktest.Ethernet([6]byte{2, 0, 0, 0, 9, 9}, stacktest.ContainerMAC, 0x0800, udp4), flow.DropForeignMAC},
		{"zero destination", stacktest.Ethernet([6]byte{}, stacktest.ContainerMAC, 0x0800, udp4), flow.DropForeignMAC},
	} {
		r := newRig(t, 1500, stacktest.AllOffloads)
		r.putFrame(tap.Header{}, c.frame)
		if r.passed() != 0 || r.count.Load(c.want) != 1 || r.drops() != 1 {
			t.Errorf("%s: %d passed, counters %v, want one %v", c.name, r.passed(), r.count.Snapshot(), c.want)
		}
	}
}

func TestBadVirtioHeaderIsDropped(t *testing.T) {
	r := newRig(t, 1500, stacktest.AllOffloads)
	frame := stacktest.Frame(stacktest.Datagram(inside4, outside4, pattern(10)))
	copy(r.r.head.AsSlice(), frame)
	r.r.hdr = [tap.HeaderLen]byte{1, 9, 0, 0, 1, 1}
	r.receive(r.r, len(frame))
	if r.passed() != 0 || r.count.Load(flow.DropMalformed) != 1 {
		t.Errorf("%d passed, %v", r.passed(), r.count.Snapshot())
	}
}

// A frame of the largest size that a device can deliver, and one that says that
// it is larger than an IP packet can be.
func TestGiantFrames(t *testing.T) {
	r := newRig(t, 1500, stacktest.AllOffloads)
	for _, f := range families {
		r.reset()
		whole := stacktest.Segment{Src: f.inside, Dst: f.outside, Seq: 1, Ack: 1, Flags: stacktest.ACK, Payload: pattern(65535 - 60)}.Packet()
		h := stacktest.Partial(whole)
		h.GSO, h.Segment = tap.GSOTCPv4, 1448
		r.putFrame(h, stacktest.Frame(whole))
		if len(r.delivered) != 1 || !bytes.Equal(r.delivered[0], whole) {
			t.Errorf("%s: a super-segment of %d bytes did not pass unchanged", f.name, len(whole))
		}
		r.reset()
		jumbo := bytes.Clone(whole)
		binary.BigEndian.PutUint16(jumbo[2:], 0) // BIG TCP (IPv4), or no payload length at all
		if !f.inside.Addr().Is4() {
			binary.BigEndian.PutUint16(jumbo[4:], 0)
		} else {
			fixIPv4(jumbo)
		}
		before := r.drops()
		r.putFrame(h, stacktest.Pad(stacktest.Frame(jumbo), headLen+bodyLen))
		// The IPv6 form is a packet without any payload: netstack drops it.
		dropped, delivered := r.drops()-before, len(r.delivered)
		if is4 := f.inside.Addr().Is4(); is4 && dropped != 1 || !is4 && delivered != 1 || r.passed() != delivered {
			t.Errorf("%s: a frame that fills all buffers: %d dropped, %d delivered", f.name, dropped, delivered)
		}
	}
}

func TestTransportChecksums(t *testing.T) {
	for _, f := range families {
		for _, c := range []struct {
			name   string
			packet []byte
		}{
			{"TCP", stacktest.Segment{Src: f.inside, Dst: f.outside, Seq: 1, Ack: 1, Flags: stacktest.ACK, Payload: pattern(1001)}.Packet()},
			{"UDP", stacktest.Datagram(f.inside, f.outside, pattern(1001))},
			{"ICMP", stacktest.EchoRequest(f.inside.Addr(), f.outside.Addr(), 1, 1, pattern(1001))},
		} {
			wrong := bytes.Clone(c.packet)
			wrong[len(wrong)-1] ^= 0x55
			for _, v := range []struct {
				what   string
				h      tap.Header
				packet []byte
				passes bool
			}{
				{"right", tap.Header{}, c.packet, true},
				{"wrong", tap.Header{}, wrong, false},
				{"wrong, to be completed", tap.Header{NeedsCsum: true, CsumStart: 34, CsumOffset: 16}, wrong, true},
				{"wrong, vouched for", tap.Header{DataValid: true}, wrong, true},
			} {
				r := newRig(t, 1500, stacktest.AllOffloads)
				r.putFrame(v.h, stacktest.Frame(v.packet))
				drops := map[bool]uint64{true: 0, false: 1}[v.passes]
				if (r.passed() == 1) != v.passes || r.count.Load(flow.DropChecksum) != drops {
					t.Errorf("%s over %s, %s: %d passed, %v", c.name, f.name, v.what, r.passed(), r.count.Snapshot())
				}
			}
		}
	}
}

func TestUDPWithoutChecksum(t *testing.T) {
	for _, f := range families {
		b := stacktest.Datagram(f.inside, f.outside, pattern(10))
		h, _ := inet.Parse(b)
		b[h.HeaderLen+6], b[h.HeaderLen+7] = 0, 0
		r := newRig(t, 1500, stacktest.AllOffloads)
		r.putFrame(tap.Header{}, stacktest.Frame(b))
		// RFC 768 allows it, RFC 8200 section 8.1 does not.
		if is4 := f.inside.Addr().Is4(); (len(r.udp) == 1) != is4 {
			t.Errorf("%s: %d passed", f.name, len(r.udp))
		}
	}
}

func TestSpoofedSourcesAreDroppedAndCounted(t *testing.T) {
	for _, s := range []string{"10.0.3.100", "192.0.2.7", "127.0.0.1", "0.0.0.0", "255.255.255.255", "10.0.2.2", "10.0.2.3", "224.0.0.1", "fd00::2", "fd00::3", "2001:db8::7", "::1", "fe80::1", "ff02::1"} {
		from, to := netip.AddrPortFrom(netip.MustParseAddr(s), 4000), outside4
		if from.Addr().Is6() {
			to = outside6
		}
		r := newRig(t, 1500, stacktest.AllOffloads)
		for _, p := range [][]byte{
			stacktest.Segment{Src: from, Dst: to, Flags: stacktest.SYN}.Packet(),
			stacktest.Datagram(from, to, pattern(10)),
			stacktest.EchoRequest(from.Addr(), to.Addr(), 1, 1, nil),
			stacktest.Fragments(stacktest.Datagram(from, to, pattern(2000)), 1280, 1)[0],
		} {
			r.putFrame(tap.Header{}, stacktest.Frame(p))
		}
		if r.passed() != 0 || r.count.Load(flow.DropSpoofed) != 4 {
			t.Errorf("from %s: %d passed, %v", s, r.passed(), r.count.Snapshot())
		}
	}
}

func TestUDPSuperSegmentIsMarked(t *testing.T) {
	for _, f := range families {
		r := newRig(t, 1500, stacktest.AllOffloads)
		b := stacktest.Datagram(f.inside, f.outside, pattern(42000))
		h := stacktest.Partial(b)
		h.GSO, h.Segment = tap.GSOUDP, 1400
		r.putFrame(h, stacktest.Frame(b))
		if len(r.udp) != 1 || r.udp[0].Segment != 1400 || !bytes.Equal(r.udp[0].Bytes, b) {
			t.Errorf("%s: %d packets", f.name, len(r.udp))
		}
		r.reset()
		r.putFrame(tap.Header{}, stacktest.Frame(stacktest.Datagram(f.inside, f.outside, pattern(10))))
		if len(r.udp) != 1 || r.udp[0].Segment != 0 {
			t.Errorf("%s: a single datagram has segments", f.name)
		}
	}
}
