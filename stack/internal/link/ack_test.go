package link

import (
	"net/netip"
	"testing"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/tap"
)

// ackPacket is what netstack sends on the flow from outside to inside.
func ackPacket(t *testing.T, f flowEnds, change func(*stacktest.Segment)) *stack.PacketBuffer {
	t.Helper()
	s := stacktest.Segment{Src: f.outside, Dst: f.inside, Seq: 1, Ack: 1, Flags: stacktest.ACK}
	if change != nil {
		change(&s)
	}
	ip, tcp := ipHeaderLen(f.inside.Addr()), 20+len(s.Options)
	segment := s.Packet()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: ethernetLen + tap.HeaderLen + ip + tcp, Payload: buffer.MakeWithData(s.Payload),
	})
	t.Cleanup(pkt.DecRef)
	copy(pkt.TransportHeader().Push(tcp), segment[ip:])
	copy(pkt.NetworkHeader().Push(ip), segment)
	pkt.TransportProtocolNumber = header.TCPProtocolNumber
	pkt.NetworkProtocolNumber = header.IPv4ProtocolNumber
	if ip == 40 {
		pkt.NetworkProtocolNumber = header.IPv6ProtocolNumber
	}
	return pkt
}

type flowEnds struct{ inside, outside netip.AddrPort }

func never() {}

// held returns a heldACK that holds an acknowledgement of flow f, and that.
func held(t *testing.T, f flowEnds) (*heldACK, *stack.PacketBuffer) {
	t.Helper()
	h := new(heldACK)
	t.Cleanup(h.stop)
	h.received(100, false)
	pkt := ackPacket(t, f, nil)
	if first, now := h.pass(pkt, never); first != nil || now {
		t.Fatalf("an acknowledgement of a small frame was not held: first %v, now %v", first, now)
	}
	if pkt.ReadRefs() != 2 {
		t.Fatalf("%d references on the held packet, want 2", pkt.ReadRefs())
	}
	return h, pkt
}

var ackFlows = []flowEnds{{inside4, outside4}, {inside6, outside6}}

func TestHeldACKIsReplacedBySameFlow(t *testing.T) {
	for _, f := range ackFlows {
		for name, change := range map[string]func(*stacktest.Segment){
			"data":                   func(s *stacktest.Segment) { s.Payload = pattern(100) },
			"second acknowledgement": func(s *stacktest.Segment) { s.Ack = 2 },
		} {
			h, old := held(t, f)
			if first, now := h.pass(ackPacket(t, f, change), never); first != nil || !now {
				t.Errorf("%s: first %v, now %v; want the new packet alone, now", name, first, now)
			}
			if old.ReadRefs() != 1 || h.due() != nil {
				t.Errorf("%s: %d references on the old packet; want it given back", name, old.ReadRefs())
			}
		}
	}
}

func TestHeldACKIsFlushedByAnotherFlow(t *testing.T) {
	other := flowEnds{inside4, netip.MustParseAddrPort("192.0.2.1:81")}
	h, old := held(t, ackFlows[0])
	first, now := h.pass(ackPacket(t, other, nil), never)
	if first != old || now {
		t.Fatalf("another flow's acknowledgement: first %v, now %v; want the old one first, the new one held", first, now)
	}
	first.DecRef()
	first, now = h.pass(ackPacket(t, ackFlows[1], func(s *stacktest.Segment) { s.Payload = pattern(1) }), never)
	if first == nil || !now {
		t.Fatalf("another flow's data: first %v, now %v; want both now", first, now)
	}
	first.DecRef()
}

func TestWhatIsNeverHeld(t *testing.T) {
	f := ackFlows[0]
	for name, change := range map[string]func(*stacktest.Segment){
		"SYN":           func(s *stacktest.Segment) { s.Flags = stacktest.SYN },
		"SYN+ACK":       func(s *stacktest.Segment) { s.Flags |= stacktest.SYN },
		"FIN":           func(s *stacktest.Segment) { s.Flags |= stacktest.FIN },
		"RST":           func(s *stacktest.Segment) { s.Flags |= stacktest.RST },
		"data":          func(s *stacktest.Segment) { s.Payload = pattern(1) },
		"closed window": func(s *stacktest.Segment) { s.ZeroWindow = true },
		"SACK": func(s *stacktest.Segment) {
			s.Options = append([]byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1}, 1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2)
		},
	} {
		h := new(heldACK)
		h.received(100, false)
		pkt := ackPacket(t, f, change)
		if first, now := h.pass(pkt, never); first != nil || !now || pkt.ReadRefs() != 1 || h.due() != nil {
			t.Errorf("%s was held", name)
		}
	}
	h := new(heldACK)
	t.Cleanup(h.stop)
	h.received(dialogue+1, false)
	if _, now := h.pass(ackPacket(t, f, nil), never); !now {
		t.Error("an acknowledgement of bulk data was held")
	}
	h.received(dialogue, true)
	if _, now := h.pass(ackPacket(t, f, nil), never); !now {
		t.Error("the acknowledgement of a SYN-ACK was held")
	}
	h.received(dialogue, false)
	timestamps := func(s *stacktest.Segment) { s.Options = []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 1} }
	if _, now := h.pass(ackPacket(t, f, timestamps), never); now {
		t.Error("an acknowledgement with timestamps was not held")
	}
}

// Control segments do not wait for what is held, and do not lose it either.
func TestControlSegmentsLeaveTheHeldACK(t *testing.T) {
	h, old := held(t, ackFlows[0])
	fin := ackPacket(t, ackFlows[0], func(s *stacktest.Segment) { s.Flags |= stacktest.FIN })
	if first, now := h.pass(fin, never); first != nil || !now {
		t.Errorf("FIN: first %v, now %v", first, now)
	}
	pkt := h.due()
	if pkt != old {
		t.Fatal("the held acknowledgement is gone")
	}
	pkt.DecRef()
}

func TestCloseGivesTheHeldACKBack(t *testing.T) {
	h, old := held(t, ackFlows[0])
	h.stop()
	if old.ReadRefs() != 1 {
		t.Errorf("%d references after stop", old.ReadRefs())
	}
	if _, now := h.pass(ackPacket(t, ackFlows[0], nil), never); !now {
		t.Error("held after stop")
	}
	h.stop()
}

// The acknowledgement that waits in vain leaves by itself, and the next one is
// held and leaves again.
func TestHeldACKLeavesByTimer(t *testing.T) {
	for _, f := range families {
		r := newRig(t, 1500, stacktest.AllOffloads)
		for i := range uint64(3) {
			small := stacktest.Segment{Src: f.inside, Dst: f.outside, Seq: 1, Ack: 1, Flags: stacktest.ACK, Payload: pattern(10)}
			r.putFrame(tap.Header{}, stacktest.Frame(small.Packet()))
			pkt := outgoing(f.outside, f.inside, nil, stack.GSO{})
			if n, err := r.writePackets(t, pkt); n != 1 || err != nil {
				t.Fatalf("%d packets, %v", n, err)
			}
			if got := r.count.Load(flow.ACKsDelayed); got != i+1 {
				t.Errorf("%s: %d acknowledgements delayed, want %d", f.name, got, i+1)
			}
			stacktest.IP(t, f.inside.Addr(), r.peer.Receive(t), stacktest.TCP(stacktest.Flags(stacktest.ACK)))
		}
	}
}
