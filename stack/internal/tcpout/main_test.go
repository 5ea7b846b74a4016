package tcpout

import (
	"context"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/guard"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/link"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/stacktest"
)

func TestMain(m *testing.M) { os.Exit(stacktest.RunChecked(m.Run)) }

// families are the container's end of a flow and targets outside, per family.
var families = []struct {
	name                    string
	inside, target, another netip.AddrPort
}{
	{"IPv4", netip.MustParseAddrPort("10.0.2.100:4000"), netip.MustParseAddrPort("192.0.2.1:80"), netip.MustParseAddrPort("192.0.2.2:80")},
	{"IPv6", netip.MustParseAddrPort("[fd00::100]:4000"), netip.MustParseAddrPort("[2001:db8::1]:80"), netip.MustParseAddrPort("[2001:db8::2]:80")},
}

// rig is an Out on a real netstack between a fake device and a fake network.
type rig struct {
	*Out
	dialer stacktest.Dialer
	peer   *stacktest.Peer
	dev    *stacktest.Device
	flows  *flow.Table
	dns    chan net.Conn
	closed bool
}

// noService is a link without services of its own.
type noService struct{}

func (noService) Handle(time.Time, []byte) ([][]byte, bool) { return nil, false }

func newRig(t testing.TB) *rig {
	t.Helper()
	stacktest.NoLeaks(t)
	r := &rig{flows: flow.NewTable(), dns: make(chan net.Conn, 100)}
	var dev *stacktest.Device
	dev, r.peer = stacktest.NewPair(stacktest.AllOffloads)
	r.dev = dev
	policy := guard.Policy{Plan: netplan.Default()}
	ep := link.New(link.Config{
		Device: dev, MTU: 1500, GatewayMAC: stacktest.GatewayMAC[:], ContainerMAC: stacktest.ContainerMAC[:],
		Source:   func(h inet.Header) string { return policy.Source(h.Src) },
		Service:  noService{},
		Handlers: link.Handlers{UDP: func(link.Packet) {}, ICMP: func(link.Packet) {}},
		Counters: &r.flows.Counters,
	})
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocolCUBIC},
	})
	if err := s.CreateNIC(1, ep); err != nil {
		t.Fatal(err)
	}
	s.SetPromiscuousMode(1, true)
	s.SetSpoofing(1, true)
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}, {Destination: header.IPv6EmptySubnet, NIC: 1}})
	r.Out = New(Config{
		Stack: s, Guard: policy, Flows: r.flows, Sender: ep, Dial: r.dialer.Dial,
		Names: func(at netip.AddrPort) bool {
			return at == netip.AddrPortFrom(policy.Plan.Of(at.Addr()).Resolver, 53)
		},
		ServeDNS: func(ctx context.Context, c net.Conn) {
			defer c.Close()
			r.dns <- c
			<-ctx.Done()
		},
	})
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, r.Handle)
	served := make(chan struct{})
	go func() {
		_ = ep.Serve()
		close(served)
	}()
	t.Cleanup(func() {
		r.close(t)
		dev.Close()
		<-served
		s.Destroy()
	})
	return r
}

// close closes the Out, which must not take long whatever is under way.
func (r *rig) close(t testing.TB) {
	t.Helper()
	if r.closed {
		return
	}
	r.closed = true
	done := make(chan struct{})
	go func() {
		r.Close()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(stacktest.Patience):
		t.Fatal("Close has not returned")
	}
}

func (r *rig) send(t testing.TB, s stacktest.Segment) []byte {
	t.Helper()
	b := s.Packet()
	r.peer.InjectIP(t, b)
	return b
}

func syn(from, to netip.AddrPort) stacktest.Segment {
	return stacktest.Segment{Src: from, Dst: to, Seq: 1000, Flags: stacktest.SYN, Options: stacktest.MSS(1460)}
}

func port(ap netip.AddrPort, p uint16) netip.AddrPort { return netip.AddrPortFrom(ap.Addr(), p) }

// conn is the container's end of a connection, kept by hand.
type conn struct {
	r          *rig
	from, to   netip.AddrPort
	next, peer uint32 // sequence numbers: ours, and the next expected
}

// synAck reads the answer to a SYN of from, which must be a SYN-ACK.
func (r *rig) synAck(t testing.TB, from, to netip.AddrPort) *conn {
	t.Helper()
	f := r.peer.ReceiveWhere(t, func(f stacktest.WireFrame) bool { return stacktest.IsTCP(f, stacktest.SYN) })
	p := stacktest.IP(t, from.Addr(), f, stacktest.Src(to.Addr()), stacktest.Dst(from.Addr()),
		stacktest.TCP(stacktest.SrcPort(to.Port()), stacktest.DstPort(from.Port()), stacktest.Flags(stacktest.SYN|stacktest.ACK), stacktest.AckNum(1001)))
	return &conn{r: r, from: from, to: to, next: 1001, peer: p.Seq() + 1}
}

// dial opens a connection as a container's kernel would.
func (r *rig) dial(t testing.TB, from, to netip.AddrPort) *conn {
	t.Helper()
	r.send(t, syn(from, to))
	c := r.synAck(t, from, to)
	c.send(t, stacktest.ACK, nil)
	return c
}

func (c *conn) send(t testing.TB, flags uint8, payload []byte) {
	t.Helper()
	c.r.send(t, stacktest.Segment{Src: c.from, Dst: c.to, Seq: c.next, Ack: c.peer, Flags: flags, Payload: payload})
	c.next += uint32(len(payload))
	if flags&stacktest.FIN != 0 {
		c.next++
	}
}

// read reads n bytes, acknowledging them, and returns them.
func (c *conn) read(t testing.TB, n int) []byte {
	t.Helper()
	var b []byte
	for len(b) < n {
		f := c.r.peer.ReceiveWhere(t, func(f stacktest.WireFrame) bool { return stacktest.IsTCP(f, stacktest.ACK) })
		p := stacktest.IP(t, c.from.Addr(), f, stacktest.TCP())
		if len(p.Payload) > 0 && p.Seq() == c.peer {
			b = append(b, p.Payload...)
			c.peer += uint32(len(p.Payload))
			c.send(t, stacktest.ACK, nil)
		}
	}
	return b
}

// expect reads up to a segment with all of the flags, which must fit our state.
func (c *conn) expect(t testing.TB, flags uint8) {
	t.Helper()
	f := c.r.peer.ReceiveWhere(t, func(f stacktest.WireFrame) bool { return stacktest.IsTCP(f, flags) })
	stacktest.IP(t, c.from.Addr(), f, stacktest.Src(c.to.Addr()), stacktest.TCP(stacktest.SrcPort(c.to.Port()), stacktest.DstPort(c.from.Port()), stacktest.SeqNum(c.peer)))
	if flags&stacktest.FIN != 0 {
		c.peer++
	}
}

// accepted returns the server's end of the next connection.
func accepted(t testing.TB, ch <-chan *net.TCPConn) *net.TCPConn {
	t.Helper()
	select {
	case c := <-ch:
		t.Cleanup(func() { c.Close() })
		return c
	case <-time.After(stacktest.Patience):
		t.Fatal("no connection at the server")
		return nil
	}
}

func (r *rig) count(c flow.Counter) uint64 { return r.flows.Counters.Load(c) }

// idle waits until no flow is left.
func (r *rig) idle(t testing.TB) {
	t.Helper()
	stacktest.Eventually(t, "all flows to end", func() bool { return r.flows.Len(flow.TCP) == 0 })
}
