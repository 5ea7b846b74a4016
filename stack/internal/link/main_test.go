package link

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/guard"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/tap"
)

func TestMain(m *testing.M) { os.Exit(stacktest.RunChecked(m.Run)) }

var (
	inside4  = netip.MustParseAddrPort("10.0.2.100:4000")
	outside4 = netip.MustParseAddrPort("192.0.2.1:80")
	inside6  = netip.MustParseAddrPort("[fd00::100]:4000")
	outside6 = netip.MustParseAddrPort("[2001:db8::1]:80")
)

// families are the two ends of a flow, once per family.
var families = []struct {
	name            string
	inside, outside netip.AddrPort
}{{"IPv4", inside4, outside4}, {"IPv6", inside6, outside6}}

// rig is an endpoint between a fake device and recorders.
type rig struct {
	*Endpoint
	dev   *stacktest.Device
	peer  *stacktest.Peer
	count *flow.Counters
	r     *receiver

	udp, icmp []Packet
	delivered [][]byte
	served    int
	// quiet makes the recorders keep nothing.
	quiet bool
}

func newRig(tb testing.TB, mtu int, o tap.Offloads) *rig {
	tb.Helper()
	r := &rig{count: new(flow.Counters), r: newReceiver()}
	r.dev, r.peer = stacktest.NewPair(o)
	policy := guard.Policy{Plan: netplan.Default()}
	r.Endpoint = New(Config{
		Device: r.dev, MTU: mtu, GatewayMAC: stacktest.GatewayMAC[:], ContainerMAC: stacktest.ContainerMAC[:],
		Source:  func(h inet.Header) string { return policy.Source(h.Src) },
		Service: r, Counters: r.count,
		Handlers: Handlers{UDP: r.handle(&r.udp), ICMP: r.handle(&r.icmp)},
	})
	r.Attach(r)
	tb.Cleanup(func() {
		r.r.release()
		r.Close()
		r.dev.Close()
	})
	return r
}

// Handle is the link's service: it answers for ARP only.
func (r *rig) Handle(_ time.Time, frame []byte) ([][]byte, bool) {
	if len(frame) < ethernetLen || binary.BigEndian.Uint16(frame[12:]) != uint16(header.ARPProtocolNumber) {
		return nil, false
	}
	r.served++
	return nil, true
}

func (r *rig) handle(list *[]Packet) func(Packet) {
	return func(p Packet) {
		if !r.quiet {
			p.Bytes = bytes.Clone(p.Bytes)
			*list = append(*list, p)
		}
	}
}

// DeliverNetworkPacket records what netstack would get, from the IP header on.
func (r *rig) DeliverNetworkPacket(_ tcpip.NetworkProtocolNumber, pkt *stack.PacketBuffer) {
	if !r.quiet {
		r.delivered = append(r.delivered, pkt.Data().AsRange().ToSlice())
	}
}

// DeliverLinkPacket implements stack.NetworkDispatcher.
func (*rig) DeliverLinkPacket(tcpip.NetworkProtocolNumber, *stack.PacketBuffer) {}

// put plays one frame of which the device says that it has n bytes, with more
// behind them that must not be looked at.
func (r *rig) put(h tap.Header, memory []byte, n int) {
	h.Put(r.r.hdr[:])
	if h.DataValid {
		r.r.hdr[0] |= 2
	}
	k := copy(r.r.head.AsSlice(), memory)
	copy(r.r.body.AsSlice(), memory[k:])
	r.receive(r.r, n)
}

func (r *rig) putFrame(h tap.Header, frame []byte) { r.put(h, frame, len(frame)) }

// passed is how many frames went on to somebody.
func (r *rig) passed() int { return len(r.udp) + len(r.icmp) + len(r.delivered) + r.served }

func (r *rig) reset() { r.udp, r.icmp, r.delivered, r.served = nil, nil, nil, 0 }

// drops is how many frames were counted as dropped, for whatever reason.
func (r *rig) drops() (n uint64) {
	for _, c := range []flow.Counter{flow.DropRunt, flow.DropOversized, flow.DropMalformed, flow.DropForeignMAC, flow.DropChecksum, flow.DropSpoofed, flow.DropUnknownProtocol} {
		n += r.count.Load(c)
	}
	return n
}

// withNetstack attaches a real netstack, whose reassembled datagrams come back
// as the engine takes them.
func (r *rig) withNetstack(tb testing.TB) *stack.Stack {
	tb.Helper()
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := s.CreateNIC(1, r.Endpoint); err != nil {
		tb.Fatal(err)
	}
	s.SetPromiscuousMode(1, true)
	s.SetSpoofing(1, true)
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}, {Destination: header.IPv6EmptySubnet, NIC: 1}})
	whole := func(list *[]Packet) func(stack.TransportEndpointID, *stack.PacketBuffer) bool {
		keep := r.handle(list)
		return func(_ stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
			if p, ok := Flatten(pkt); ok {
				keep(p)
			} else {
				r.count.Inc(flow.DropMalformed)
			}
			return true
		}
	}
	s.SetTransportProtocolHandler(header.UDPProtocolNumber, whole(&r.udp))
	s.SetTransportProtocolHandler(header.ICMPv4ProtocolNumber, whole(&r.icmp))
	s.SetTransportProtocolHandler(header.ICMPv6ProtocolNumber, whole(&r.icmp))
	tb.Cleanup(s.Destroy)
	return s
}

// pattern is a payload whose every byte depends on its place.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*13 + i>>8)
	}
	return b
}

// extended puts an extension header in front of an IPv6 packet's payload.
func extended(packet []byte, kind uint8, ext ...byte) []byte {
	b := append([]byte(nil), packet[:inet.IPv6HeaderLen]...)
	ext[0] = b[6]
	b[6] = kind
	b = append(append(b, ext...), packet[inet.IPv6HeaderLen:]...)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-inet.IPv6HeaderLen))
	return b
}

// withOptions puts options into an IPv4 header.
func withOptions(packet []byte, options ...byte) []byte {
	b := append(append([]byte(nil), packet[:20]...), options...)
	b = append(b, packet[20:]...)
	b[0] = 0x40 | byte(5+len(options)/4)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return fixIPv4(b)
}

// fixIPv4 makes the header checksum right again.
func fixIPv4(b []byte) []byte {
	b[10], b[11] = 0, 0
	n := int(b[0]&15) * 4
	binary.BigEndian.PutUint16(b[10:], inet.Checksum(b[:n], 0))
	return b
}
