package link

import (
	"net/netip"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/guard"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/tap"
)

var (
	all    = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	first  = [6]byte{2, 0, 0, 0, 0, 1}
	second = [6]byte{0, 0x16, 0x3e, 0, 0, 2}
)

// newLine is a rig without the container's address.
func newLine(tb testing.TB, mtu int) *rig {
	tb.Helper()
	r := newRig(tb, mtu, tap.Offloads{})
	policy := guard.Policy{Plan: netplan.Default()}
	r.Endpoint = New(Config{
		Device: r.dev, MTU: mtu, GatewayMAC: stacktest.GatewayMAC[:], ContainerMAC: make([]byte, 6), MaxFrame: mtu + ethernetLen,
		Source:  func(h inet.Header) string { return policy.Source(h.Src) },
		Service: r, Counters: r.count, Handlers: Handlers{UDP: r.handle(&r.udp), ICMP: r.handle(&r.icmp)},
		WhoHas: func(target netip.Addr) []byte {
			return stacktest.Ethernet(all, stacktest.GatewayMAC, 0x0806, target.AsSlice())
		},
	})
	r.Attach(r)
	return r
}

// from is a frame from an Ethernet address.
func from(mac [6]byte, packet []byte) []byte {
	f := stacktest.Frame(packet)
	copy(f[6:], mac[:])
	return f
}

// arpOf is a gratuitous ARP.
func arpOf(frame, claimed [6]byte, ip string) []byte {
	a := netip.MustParseAddr(ip).As4()
	b := append([]byte{0, 1, 8, 0, 6, 4, 0, 2}, claimed[:]...)
	b = append(append(append(b, a[:]...), all[:]...), a[:]...)
	return stacktest.Ethernet(all, frame, 0x0806, b)
}

// sentTo is where the next datagram goes.
func (r *rig) sentTo(t *testing.T) [6]byte {
	t.Helper()
	r.SendUDP(outside4, inside4, []byte("x"), 0)
	return [6]byte(r.peer.ReceiveWhere(t, func(f stacktest.WireFrame) bool { return f.Bytes[12] == 8 && f.Bytes[13] == 0 }).Bytes)
}

// TestLearns: frames go to the last sender that can be the container, and to all before
// there is one.
func TestLearns(t *testing.T) {
	at := func(ip string) netip.AddrPort { return netip.AddrPortFrom(netip.MustParseAddr(ip), 4000) }
	good := stacktest.Datagram(inside4, outside4, []byte("x"))
	foreign := from(second, good)
	foreign[0] ^= 4
	for _, c := range []struct {
		name  string
		frame []byte
		want  [6]byte
	}{
		{"nothing", nil, all},
		{"too short", from(first, good)[:14], all},
		{"half an IP header", from(first, good)[:14+19], all},
		{"from the gateway's own address", from(stacktest.GatewayMAC, good), all},
		{"from a group", from([6]byte{3, 0, 0, 0, 0, 1}, good), all},
		{"from nobody", from([6]byte{}, good), all},
		{"a foreign source", from(first, stacktest.Datagram(at("192.0.2.9"), outside4, nil)), all},
		{"the gateway's source", from(first, stacktest.Datagram(at("10.0.2.2"), outside4, nil)), all},
		{"an unknown protocol", stacktest.Ethernet(stacktest.GatewayMAC, first, 0x88b5, good), all},
		{"IPv6 with the type of IPv4", stacktest.Ethernet(stacktest.GatewayMAC, first, 0x0800, stacktest.Datagram(inside6, outside6, nil)), all},
		{"ARP for another", arpOf(first, second, "10.0.2.100"), all},
		{"ARP for the gateway's", arpOf(first, first, "10.0.2.2"), all},
		{"half an ARP", arpOf(first, first, "10.0.2.100")[:14+27], all},
		{"ARP", arpOf(first, first, "10.0.2.100"), first},
		{"not for the gateway", foreign, first},
		{"a datagram", from(second, good), second},
		{"any address of the network", from(first, stacktest.Datagram(at("10.0.2.17"), outside4, nil)), first},
		{"IPv6", from(second, stacktest.Datagram(inside6, outside6, nil)), second},
		{"a link-local address", from(first, stacktest.Datagram(at("fe80::1"), outside6, nil)), first},
	} {
		r := newLine(t, 1500)
		switch c.want {
		case first: // also if it was another before
			r.putFrame(tap.Header{}, from(second, good))
			if c.name == "not for the gateway" {
				r.putFrame(tap.Header{}, from(first, good))
			}
		case second:
			r.putFrame(tap.Header{}, from(first, good))
		}
		if c.frame != nil {
			r.putFrame(tap.Header{}, c.frame)
		}
		if got := r.sentTo(t); got != c.want {
			t.Errorf("%s: frames go to %x, want %x", c.name, got, c.want)
		}
	}
}

// TestAsks: a container that has said nothing is asked, now and then; one that is known
// is not.
func TestAsks(t *testing.T) {
	r := newLine(t, 1500)
	question := func(f stacktest.WireFrame) bool { return f.Bytes[12] == 8 && f.Bytes[13] == 6 }
	r.SendUDP(outside6, inside6, []byte("x"), 0)
	if f := r.peer.Receive(t); question(f) {
		t.Error("a question for an IPv6 address")
	}
	for range 3 {
		r.SendUDP(outside4, inside4, []byte("x"), 0)
	}
	if f := r.peer.Receive(t); !question(f) || string(f.Bytes[14:]) != string(inside4.Addr().AsSlice()) {
		t.Errorf("no question at first but % x", f.Bytes)
	}
	for range 3 {
		if f := r.peer.Receive(t); question(f) {
			t.Error("a second question at once")
		}
	}
	r.far.asked.Store(time.Now().Add(-askEvery).UnixNano())
	r.SendUDP(outside4, inside4, []byte("x"), 0)
	if !question(r.peer.Receive(t)) {
		t.Error("no question later")
	}
	r.peer.Receive(t)
	r.putFrame(tap.Header{}, from(first, stacktest.Datagram(inside4, outside4, nil)))
	r.far.asked.Store(0)
	r.SendUDP(outside4, inside4, []byte("x"), 0)
	if question(r.peer.Receive(t)) {
		t.Error("a question although the container is known")
	}
}

// TestAsksForNetstack: the first packet of a connection into a silent container asks.
func TestAsksForNetstack(t *testing.T) {
	r := newLine(t, 1500)
	s := r.withNetstack(t)
	sendPing(t, s)
	if f := r.peer.Receive(t); [6]byte(f.Bytes) != all || f.Bytes[13] != 6 {
		t.Errorf("no question but % x", f.Bytes)
	}
	if f := r.peer.Receive(t); [6]byte(f.Bytes) != all || f.Bytes[13] != 0 {
		t.Errorf("no packet but % x", f.Bytes)
	}
	r.putFrame(tap.Header{}, from(first, stacktest.Datagram(inside4, outside4, nil)))
	sendPing(t, s)
	if f := r.peer.Receive(t); [6]byte(f.Bytes) != first {
		t.Errorf("goes to % x", f.Bytes[:6])
	}
}

// sendPing has netstack send a packet to the container.
func sendPing(t *testing.T, s *stack.Stack) {
	t.Helper()
	to := tcpip.AddrFrom4(inside4.Addr().As4())
	route, tcpErr := s.FindRoute(1, tcpip.AddrFrom4(outside4.Addr().As4()), to, header.IPv4ProtocolNumber, false)
	if tcpErr != nil {
		t.Fatal(tcpErr)
	}
	defer route.Release()
	pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{
		ReserveHeaderBytes: int(route.MaxHeaderLength()), Payload: buffer.MakeWithData(make([]byte, 8)),
	})
	defer pkt.DecRef()
	params := stack.NetworkHeaderParams{Protocol: header.ICMPv4ProtocolNumber, TTL: 64}
	if tcpErr := route.WritePacket(params, pkt); tcpErr != nil {
		t.Fatal(tcpErr)
	}
}

// TestFixedAddressIsNotLearned: what was given stays.
func TestFixedAddressIsNotLearned(t *testing.T) {
	r := newRig(t, 1500, tap.Offloads{})
	r.putFrame(tap.Header{}, from(second, stacktest.Datagram(inside4, outside4, nil)))
	if got := r.sentTo(t); got != stacktest.ContainerMAC {
		t.Errorf("frames go to %x", got)
	}
}

// TestMaxFrame: what is longer than the MTU allows is dropped, and of what is longer
// than the buffers nothing is looked at.
func TestMaxFrame(t *testing.T) {
	r := newLine(t, 1500)
	fits := stacktest.Frame(stacktest.Datagram(inside4, outside4, make([]byte, 1472)))
	r.putFrame(tap.Header{}, fits)
	if len(fits) != 1514 || len(r.udp) != 1 {
		t.Fatalf("%d bytes: %d passed", len(fits), len(r.udp))
	}
	for i, n := range []int{1515, 9014, headLen + bodyLen, headLen + bodyLen + 1, 1 << 20} {
		r.put(tap.Header{}, fits, n)
		if got := r.count.Load(flow.DropOversized); got != uint64(i+1) || len(r.udp) != 1 {
			t.Errorf("%d bytes: %d drops, %d passed", n, got, len(r.udp))
		}
	}
	unlimited := newRig(t, 1500, stacktest.AllOffloads)
	unlimited.put(tap.Header{}, fits, headLen+bodyLen+1)
	if unlimited.count.Load(flow.DropOversized) != 1 || unlimited.passed() != 0 {
		t.Errorf("longer than the buffers: %v", unlimited.count.Snapshot())
	}
}

// FuzzLearn: no frame moves the address to anybody but its unicast sender.
func FuzzLearn(f *testing.F) {
	for _, s := range samples() {
		f.Add(s.frame)
		f.Add(s.frame[:len(s.frame)/2])
	}
	f.Add(arpOf(first, first, "10.0.2.100"))
	r := newLine(f, 1500)
	r.peer.Discard()
	f.Fuzz(func(t *testing.T, frame []byte) {
		if len(frame) > headLen+bodyLen {
			return
		}
		r.reset()
		r.far.mac.Store(0)
		r.putFrame(tap.Header{}, frame)
		if mac, known := r.far.address(); known && ([6]byte(frame[6:]) != mac || mac[0]&1 != 0 || mac == stacktest.GatewayMAC) {
			t.Fatalf("% x sends frames to %x", frame, mac)
		}
	})
}
