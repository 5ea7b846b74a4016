package link

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/tap"
)

// join puts fragments together that must come in order and without gaps.
func join(t *testing.T, r *rig, mtu int, is4 bool) (proto uint8, payload []byte) {
	t.Helper()
	for more := true; more; {
		f := r.peer.Receive(t)
		if len(f.Bytes)-ethernetLen > mtu {
			t.Errorf("fragment of %d bytes at MTU %d", len(f.Bytes)-ethernetLen, mtu)
		}
		family := inside4.Addr()
		if !is4 {
			family = inside6.Addr()
		}
		p := stacktest.IP(t, family, f, stacktest.GSO(tap.GSONone, 0), stacktest.Dst(family))
		if p.Header.NeedsCsum || p.IP.FragOffset != len(payload) {
			t.Fatalf("fragment at %d after %d bytes, header %+v", p.IP.FragOffset, len(payload), p.Header)
		}
		proto, more = p.IP.Proto, p.IP.MoreFragments
		payload = append(payload, p.Transport...)
	}
	r.peer.Silent(t)
	return proto, payload
}

func TestLargeDatagramsLeaveInFragments(t *testing.T) {
	for _, f := range families {
		for _, mtu := range []int{1280, 1500, 9000, 65520} {
			largest := 65535 - inet.UDPHeaderLen
			if f.inside.Addr().Is4() {
				largest -= inet.IPv4HeaderLen
			}
			for _, size := range []int{mtu - 20, mtu, 20000, 60000, largest} {
				r := newRig(t, mtu, stacktest.AllOffloads)
				payload := pattern(size)
				r.SendUDP(f.outside, f.inside, payload, 0)
				if whole := size + inet.UDPHeaderLen + ipHeaderLen(f.inside.Addr()); whole <= mtu {
					stacktest.IP(t, f.inside.Addr(), r.peer.Receive(t), stacktest.UDP(stacktest.Content(payload)))
					r.peer.Silent(t)
					continue
				}
				if size > largest {
					r.peer.Silent(t)
					continue
				}
				proto, b := join(t, r, mtu, f.inside.Addr().Is4())
				sum := inet.Checksum(b, inet.PseudoSum(f.outside.Addr(), f.inside.Addr(), inet.ProtoUDP, len(b)))
				if proto != inet.ProtoUDP || sum != 0 || !bytes.Equal(b[inet.UDPHeaderLen:], payload) {
					t.Errorf("%s, MTU %d, %d bytes: joined to %d bytes of protocol %d, checksum %#x", f.name, mtu, size, len(b), proto, sum)
				}
			}
		}
	}
}

func TestFragmentsAreReassembled(t *testing.T) {
	for _, f := range families {
		for _, mtu := range []int{1280, 1500} {
			for _, size := range []int{2000, 60000, 65507} {
				r := newRig(t, mtu, stacktest.AllOffloads)
				r.withNetstack(t)
				packet := stacktest.Datagram(f.inside, f.outside, pattern(size))
				pieces := stacktest.Fragments(packet, mtu, uint32(size))
				rand.Shuffle(len(pieces), func(i, j int) { pieces[i], pieces[j] = pieces[j], pieces[i] })
				for i, p := range pieces {
					r.putFrame(tap.Header{}, stacktest.Frame(p))
					if whole := i == len(pieces)-1; (len(r.udp) == 1) != whole {
						t.Fatalf("%s, MTU %d, %d bytes: %d datagrams after %d of %d pieces, %v", f.name, mtu, size, len(r.udp), i+1, len(pieces), r.count.Snapshot())
					}
				}
				u, ok := inet.ParseUDP(r.udp[0].Payload(r.udp[0].Bytes))
				if !ok || r.udp[0].Src != f.inside.Addr() || r.udp[0].Dst != f.outside.Addr() || u.SrcPort != f.inside.Port() || !bytes.Equal(u.Payload, pattern(size)) {
					t.Errorf("%s, MTU %d, %d bytes: arrived changed", f.name, mtu, size)
				}
			}
		}
	}
}

func TestEchoInFragmentsIsReassembled(t *testing.T) {
	for _, f := range families {
		r := newRig(t, 1500, stacktest.AllOffloads)
		r.withNetstack(t)
		packet := stacktest.EchoRequest(f.inside.Addr(), f.outside.Addr(), 1, 1, pattern(8000))
		for _, p := range stacktest.Fragments(packet, 1500, 3) {
			r.putFrame(tap.Header{}, stacktest.Frame(p))
		}
		if len(r.icmp) != 1 || !bytes.Equal(r.icmp[0].Payload(r.icmp[0].Bytes), packet[ipHeaderLen(f.inside.Addr()):]) {
			t.Errorf("%s: %d messages", f.name, len(r.icmp))
		}
		r.peer.Silent(t) // netstack must not answer for the outside
	}
}

func TestReassembledChecksumIsVerified(t *testing.T) {
	for _, f := range families {
		r := newRig(t, 1500, stacktest.AllOffloads)
		r.withNetstack(t)
		packet := stacktest.Datagram(f.inside, f.outside, pattern(4000))
		packet[len(packet)-1] ^= 1
		for _, p := range stacktest.Fragments(packet, 1500, 3) {
			r.putFrame(tap.Header{}, stacktest.Frame(p))
		}
		if len(r.udp) != 0 || r.count.Load(flow.DropMalformed) != 1 {
			t.Errorf("%s: %d datagrams, %v", f.name, len(r.udp), r.count.Snapshot())
		}
	}
}

// Overlapping pieces with different content are an old way past packet filters
// (RFC 5722): no version of the datagram may arrive that mixes them.
func TestOverlappingFragmentsAreDropped(t *testing.T) {
	for _, f := range families {
		r := newRig(t, 1500, stacktest.AllOffloads)
		r.withNetstack(t)
		packet := stacktest.Datagram(f.inside, f.outside, pattern(4000))
		h, _ := inet.Parse(packet)
		body := h.Payload(packet)
		evil := bytes.Repeat([]byte{0xee}, 1000)
		for _, p := range [][]byte{
			stacktest.Fragment(h, body[:1480], 0, true, 9),
			stacktest.Fragment(h, evil, 800, true, 9),
			stacktest.Fragment(h, body[1480:2960], 1480, true, 9),
			stacktest.Fragment(h, body[2960:], 2960, false, 9),
		} {
			r.putFrame(tap.Header{}, stacktest.Frame(p))
		}
		for _, p := range r.udp {
			if bytes.Contains(p.Bytes, evil[:100]) {
				t.Errorf("%s: the overlapping piece got into the datagram", f.name)
			}
		}
	}
}

// Pieces that never make a whole, tiny ones, and ones that would make more than
// an IP packet can be: nothing arrives, and the leak check at the end of the
// tests finds nothing kept beyond netstack's life.
func TestEndlessFragmentsArriveNowhere(t *testing.T) {
	for _, f := range families {
		r := newRig(t, 1500, stacktest.AllOffloads)
		s := r.withNetstack(t)
		r.peer.Discard() // netstack complains to the container about some of them
		h, _ := inet.Parse(stacktest.Datagram(f.inside, f.outside, pattern(2000)))
		for i := range uint32(20000) {
			piece := stacktest.Fragment(h, pattern(1200), int(i%50)*1200, true, i)
			if i%3 == 0 {
				piece = stacktest.Fragment(h, pattern(8), 8*int(i%8000), true, i)
			}
			if i%7 == 0 {
				piece = stacktest.Fragment(h, pattern(1200), 65528, false, i)
			}
			r.putFrame(tap.Header{}, stacktest.Frame(piece))
		}
		if r.passed() != 0 {
			t.Errorf("%s: %d datagrams arrived", f.name, r.passed())
		}
		// A good one still gets through: the old ones gave way.
		good := stacktest.Datagram(f.inside, f.outside, pattern(4000))
		for _, p := range stacktest.Fragments(good, 1500, 1<<15-1) {
			r.putFrame(tap.Header{}, stacktest.Frame(p))
		}
		if len(r.udp) != 1 {
			t.Errorf("%s: a good datagram did not get through after them: %v", f.name, s.Stats().IP.MalformedPacketsReceived.Value())
		}
	}
}

// Fragments of 8 bytes are the smallest that there are; an MTU without room for
// them gets nothing rather than a loop.
func TestTinyMTU(t *testing.T) {
	packet := stacktest.Datagram(outside4, inside4, pattern(100))
	h, _ := inet.Parse(packet)
	for mtu := range 70 {
		list := fragment4(packet, h, mtu, 1)
		if mtu < 28 && list != nil {
			t.Errorf("MTU %d: %d pieces", mtu, len(list))
		}
		n := 0
		for _, f := range list {
			if len(f.header)+len(f.payload) > mtu || binary.BigEndian.Uint16(f.header[2:]) != uint16(len(f.header)+len(f.payload)) {
				t.Errorf("MTU %d: piece of %d bytes", mtu, len(f.header)+len(f.payload))
			}
			n += len(f.payload)
		}
		if list != nil && n != len(packet)-h.HeaderLen {
			t.Errorf("MTU %d: %d bytes in all", mtu, n)
		}
	}
	packet6 := stacktest.Datagram(outside6, inside6, pattern(100))
	h6, _ := inet.Parse(packet6)
	for mtu := range 56 {
		if list := fragment6(packet6, h6, mtu, 1); list != nil {
			t.Errorf("MTU %d: %d pieces of IPv6", mtu, len(list))
		}
	}
}
