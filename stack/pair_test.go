package stack_test

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/stack/tap"
)

// wired is an engine on a device without a kernel.
func wired(t *testing.T) (*stack.Engine, *stacktest.Peer) {
	t.Helper()
	stacktest.NoLeaks(t)
	dev, peer := stacktest.NewPair(stacktest.AllOffloads)
	e, err := stack.New(stack.Config{Device: dev, MTU: 1500, ContainerMAC: stacktest.ContainerMAC, Static: true})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- e.Run(context.Background()) }()
	t.Cleanup(func() {
		e.Close()
		if err := <-ended; err != nil {
			t.Errorf("Run after Close: %v", err)
		}
	})
	return e, peer
}

// insides are the container's ends, by family.
var insides = []netip.AddrPort{netip.MustParseAddrPort("10.0.2.100:4000"), netip.MustParseAddrPort("[fd00::100]:4000")}

func TestOwnAddresses(t *testing.T) {
	for _, from := range insides {
		plan := netplan.Default().Of(from.Addr())
		_, peer := wired(t)
		// The gateway and the resolver are hosts without UDP services but one.
		for _, to := range []netip.AddrPort{netip.AddrPortFrom(plan.Gateway, 53), netip.AddrPortFrom(plan.Gateway, 9), netip.AddrPortFrom(plan.Resolver, 9)} {
			sent := stacktest.Datagram(from, to, []byte("payload"))
			peer.InjectIP(t, sent)
			stacktest.IP(t, from.Addr(), peer.Receive(t), stacktest.Src(to.Addr()), stacktest.ICMPError(icmp.PortUnreachable, sent))
		}
		// Without upstream servers every query fails, and says so.
		query := []byte{0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 'a', 0, 0, 1, 0, 1}
		resolver := netip.AddrPortFrom(plan.Resolver, 53)
		peer.InjectIP(t, stacktest.Datagram(from, resolver, query))
		p := stacktest.IP(t, from.Addr(), peer.Receive(t), stacktest.Src(plan.Resolver), stacktest.UDP(stacktest.SrcPort(53), stacktest.DstPort(from.Port())))
		if len(p.Payload) < 4 || p.Payload[0] != 0x12 || p.Payload[1] != 0x34 || p.Payload[3]&15 != 2 {
			t.Errorf("answer % x, want SERVFAIL for 1234", p.Payload)
		}
		// Echo, in one piece and in fragments.
		for _, size := range []int{10, 6000} {
			request := stacktest.EchoRequest(from.Addr(), plan.Gateway, 7, 8, random(1, size))
			for _, f := range stacktest.Fragments(request, 1500, 1) {
				peer.InjectIP(t, f)
			}
			p := stacktest.IP(t, from.Addr(), peer.Receive(t), stacktest.Src(plan.Gateway), stacktest.Dst(from.Addr()))
			if typ := p.Transport[0]; typ != 0 && typ != 129 || p.IP.MoreFragments != (size > 1500) {
				t.Errorf("%d bytes: ICMP type %d, more fragments %v", size, typ, p.IP.MoreFragments)
			}
			for p.IP.MoreFragments {
				p = stacktest.IP(t, from.Addr(), peer.Receive(t))
			}
		}
	}
}

// Where the container's frames go never depends on what it says about itself.
func TestForeignEthernetSource(t *testing.T) {
	_, peer := wired(t)
	from, gateway := insides[0], netplan.Default().V4.Gateway
	for i := range 1000 {
		packet := stacktest.Datagram(from, netip.AddrPortFrom(gateway, 9), []byte("x"))
		src := [6]byte{2, 9, 9, 9, byte(i >> 8), byte(i)}
		peer.Inject(t, tap.Header{}, stacktest.Ethernet(stacktest.GatewayMAC, src, 0x0800, packet))
		if i < 200 { // the limit of errors holds those behind back
			stacktest.IPv4(t, peer.Receive(t), stacktest.Src(gateway))
		}
	}
}

// Frames of every kind keep coming while the engine is closed.
func TestCloseWhileFramesCome(t *testing.T) {
	for range 20 {
		e, peer := wired(t)
		peer.Discard()
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for i := uint16(1); ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				from := netip.AddrPortFrom(insides[0].Addr(), i)
				peer.InjectIP(t, stacktest.Segment{Src: from, Dst: netip.MustParseAddrPort("127.0.0.1:1"), Flags: stacktest.SYN}.Packet())
				peer.InjectIP(t, stacktest.Segment{Src: from, Dst: netip.MustParseAddrPort("10.0.2.3:53"), Flags: stacktest.SYN}.Packet())
				peer.InjectIP(t, stacktest.Datagram(from, netip.MustParseAddrPort("10.0.2.3:53"), make([]byte, 20)))
				peer.InjectIP(t, stacktest.EchoRequest(from.Addr(), netip.MustParseAddr("10.0.2.2"), i, i, nil))
				h := inet.Header{Src: from.Addr(), Dst: host4, Proto: inet.ProtoUDP}
				peer.InjectIP(t, stacktest.Fragment(h, make([]byte, 800), 0, true, uint32(i)))
			}
		})
		stacktest.Eventually(t, "traffic", func() bool { return e.Snapshot().Counters["frames_in"] > 200 })
		closed := make(chan struct{})
		go func() {
			e.Close()
			close(closed)
		}()
		select {
		case <-closed:
		case <-time.After(stacktest.Patience):
			t.Fatal("Close has not returned")
		}
		close(stop)
		wg.Wait()
	}
}
