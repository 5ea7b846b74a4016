package stack_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/postern-net/postern/stack"
	"github.com/postern-net/postern/stack/relay"
	"github.com/postern-net/postern/stack/stacktest"
)

// clients are who connects to which server, by family: one outside and one that
// shows the gateway's address, which stands for the host's loopback.
var clients = []struct{ client, server netip.AddrPort }{
	{netip.MustParseAddrPort("203.0.113.7:50000"), netip.MustParseAddrPort("10.0.2.100:80")},
	{netip.MustParseAddrPort("10.0.2.2:1023"), netip.MustParseAddrPort("10.0.2.100:80")},
	{netip.MustParseAddrPort("[2001:db8:7::7]:50000"), netip.MustParseAddrPort("[fd00::100]:80")},
	{netip.MustParseAddrPort("[fd00::2]:1023"), netip.MustParseAddrPort("[fd00::100]:80")},
}

// dialed is a connection into the container, whose end there is kept by hand.
type dialed struct {
	peer           *stacktest.Peer
	client, server netip.AddrPort
	next, back     uint32 // sequence numbers: the container's, and the next expected
	result         chan dialResult
}

type dialResult struct {
	stream relay.Stream
	err    error
}

// dialIn starts DialTCP and reads its SYN.
func dialIn(t *testing.T, ctx context.Context, e *stack.Engine, peer *stacktest.Peer, client, server netip.AddrPort) *dialed {
	t.Helper()
	d := &dialed{peer: peer, client: client, server: server, next: 7000, result: make(chan dialResult, 1)}
	go func() {
		s, err := e.DialTCP(ctx, client, server)
		d.result <- dialResult{s, err}
	}()
	f := peer.ReceiveWhere(t, func(f stacktest.WireFrame) bool { return stacktest.IsTCP(f, stacktest.SYN) })
	checks := []stacktest.Check{stacktest.DstPort(server.Port()), stacktest.Flags(stacktest.SYN)}
	if client.Port() != 0 {
		checks = append(checks, stacktest.SrcPort(client.Port()))
	}
	p := stacktest.IP(t, client.Addr(), f, stacktest.Src(client.Addr()), stacktest.Dst(server.Addr()), stacktest.TCP(checks...))
	d.client = netip.AddrPortFrom(client.Addr(), uint16(p.Transport[0])<<8|uint16(p.Transport[1]))
	d.back = p.Seq() + 1
	return d
}

func (d *dialed) send(t *testing.T, flags uint8, payload []byte) {
	t.Helper()
	d.peer.InjectIP(t, stacktest.Segment{Src: d.server, Dst: d.client, Seq: d.next, Ack: d.back, Flags: flags, Payload: payload}.Packet())
	d.next += uint32(len(payload))
	if flags&(stacktest.SYN|stacktest.FIN) != 0 {
		d.next++
	}
}

// wait returns what DialTCP returned.
func (d *dialed) wait(t *testing.T) (relay.Stream, error) {
	t.Helper()
	select {
	case r := <-d.result:
		return r.stream, r.err
	case <-time.After(stacktest.Patience):
		t.Fatal("DialTCP has not returned")
		return nil, nil
	}
}

// accept completes the handshake.
func (d *dialed) accept(t *testing.T) relay.Stream {
	t.Helper()
	d.send(t, stacktest.SYN|stacktest.ACK, nil)
	s, err := d.wait(t)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	d.expect(t, stacktest.ACK, nil)
	return s
}

// expect reads up to a segment with the flags and the payload.
func (d *dialed) expect(t *testing.T, flags uint8, payload []byte) {
	t.Helper()
	for {
		f := d.peer.ReceiveWhere(t, func(f stacktest.WireFrame) bool { return stacktest.IsTCP(f, flags) })
		p := stacktest.IP(t, d.client.Addr(), f, stacktest.Src(d.client.Addr()), stacktest.Dst(d.server.Addr()),
			stacktest.TCP(stacktest.SrcPort(d.client.Port()), stacktest.DstPort(d.server.Port())))
		if string(p.Payload) != string(payload) {
			continue // an acknowledgement in between
		}
		if flags&stacktest.RST == 0 && p.Seq() != d.back {
			t.Errorf("sequence number %d, want %d", p.Seq(), d.back)
		}
		d.back += uint32(len(payload))
		if flags&stacktest.FIN != 0 {
			d.back++
		}
		return
	}
}

// fill sends b whole.
func fill(t *testing.T, s relay.Stream, b []byte) {
	t.Helper()
	n, err := s.Fill(len(b), func(to []byte) error {
		b = b[copy(to, b):]
		return nil
	})
	if err != nil || len(b) != 0 {
		t.Fatalf("filled %d, %v", n, err)
	}
}

// take reads one piece, or the end.
func take(t *testing.T, s relay.Stream) ([]byte, error) {
	t.Helper()
	for end := time.After(stacktest.Patience); ; {
		bufs, err := s.Peek(make([][]byte, 0, 4))
		if err != nil {
			return nil, err
		}
		if len(bufs) > 0 {
			b := append([]byte(nil), bufs[0]...)
			s.Consume(len(b))
			return b, nil
		}
		select {
		case <-s.Readable():
		case <-end:
			t.Fatal("nothing to read")
		}
	}
}

func TestDialTCPShowsTheClient(t *testing.T) {
	for _, c := range clients {
		e, peer := wired(t)
		d := dialIn(t, context.Background(), e, peer, c.client, c.server)
		if s := e.Snapshot(); s.TCPIn != 1 || s.TCP != 0 || s.Flows[0].State != "pending" {
			t.Errorf("%v before the answer: %+v", c.client, s)
		}
		s := d.accept(t)
		if n := e.Snapshot().Counters["acks_delayed"]; n != 0 {
			t.Error("the handshake's acknowledgement was held back")
		}
		fill(t, s, []byte("question"))
		d.expect(t, stacktest.ACK, []byte("question"))
		d.send(t, stacktest.ACK, []byte("the answer"))
		if b, err := take(t, s); string(b) != "the answer" || err != nil {
			t.Errorf("%v: read %q, %v", c.client, b, err)
		}
		want := stack.FlowInfo{Proto: "tcp-in", Initiating: c.client, Target: c.server, State: "open", Path: "universal", BytesOut: 8, BytesIn: 10}
		got := e.Snapshot().Flows[0]
		if got.Started.IsZero() {
			t.Error("no start")
		}
		if got.Started = want.Started; got != want {
			t.Errorf("flow %+v, want %+v", got, want)
		}
		// Each direction ends by itself.
		s.CloseWrite()
		d.expect(t, stacktest.FIN, nil)
		d.send(t, stacktest.ACK, []byte("more"))
		if b, err := take(t, s); string(b) != "more" || err != nil {
			t.Errorf("%v: after the end of stream: %q, %v", c.client, b, err)
		}
		d.send(t, stacktest.FIN|stacktest.ACK, nil)
		if _, err := take(t, s); !errors.Is(err, io.EOF) {
			t.Errorf("%v: end of stream: %v", c.client, err)
		}
		s.Close()
		s.Close()
		if s := e.Snapshot(); s.TCPIn != 0 || s.Counters["tcp_in_admitted"] != 1 {
			t.Errorf("%v: afterwards: %+v", c.client, s)
		}
	}
}

func TestDialTCPRefused(t *testing.T) {
	for _, c := range clients {
		e, peer := wired(t)
		for range 3 { // nothing stays that would be in the way
			d := dialIn(t, context.Background(), e, peer, c.client, c.server)
			d.send(t, stacktest.RST|stacktest.ACK, nil)
			if _, err := d.wait(t); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("%v: %v", c.client, err)
			}
		}
		if s := e.Snapshot(); s.TCPIn != 0 || s.Counters["tcp_in_failed"] != 3 {
			t.Errorf("%v: %+v", c.client, s)
		}
	}
}

// deadline is a context whose deadline passes when the test says so, which is after the
// SYN has been sent however slow the machine is.
type deadline struct {
	context.Context
	passed chan struct{}
}

func (d deadline) Done() <-chan struct{} { return d.passed }

func (d deadline) Err() error {
	select {
	case <-d.passed:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// A container that does not answer, and then does.
func TestDialTCPGivesUp(t *testing.T) {
	for _, c := range clients {
		e, peer := wired(t)
		short := deadline{context.Background(), make(chan struct{})}
		d := dialIn(t, short, e, peer, c.client, c.server)
		close(short.passed)
		if _, err := d.wait(t); !errors.Is(err, syscall.ETIMEDOUT) {
			t.Errorf("deadline: %v", err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		d = dialIn(t, ctx, e, peer, c.client, c.server)
		cancel()
		if _, err := d.wait(t); !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		if s := e.Snapshot(); s.TCPIn != 0 {
			t.Errorf("%d flows left", s.TCPIn)
		}
		d.send(t, stacktest.SYN|stacktest.ACK, nil)
		d.expect(t, stacktest.RST, nil)
		d = dialIn(t, context.Background(), e, peer, c.client, c.server)
		e.Close()
		if _, err := d.wait(t); !errors.Is(err, net.ErrClosed) {
			t.Errorf("engine closed: %v", err)
		}
		if _, err := e.DialTCP(context.Background(), c.client, c.server); !errors.Is(err, net.ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
	}
}

// The same client may have connections to several ports, but one only to each.
func TestDialTCPTwice(t *testing.T) {
	for _, c := range clients {
		e, peer := wired(t)
		ctx := context.Background()
		first := dialIn(t, ctx, e, peer, c.client, c.server)
		if _, err := e.DialTCP(ctx, c.client, c.server); !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Errorf("the same while it is pending: %v", err)
		}
		s := first.accept(t)
		if _, err := e.DialTCP(ctx, c.client, c.server); !errors.Is(err, syscall.EADDRNOTAVAIL) {
			t.Errorf("the same: %v", err)
		}
		dialIn(t, ctx, e, peer, c.client, netip.AddrPortFrom(c.server.Addr(), 81)).accept(t)
		other := dialIn(t, ctx, e, peer, netip.AddrPortFrom(c.client.Addr(), 0), c.server)
		other.accept(t)
		if other.client.Port() == c.client.Port() || other.client.Port() == 0 {
			t.Errorf("any port: %v", other.client)
		}
		// The endpoint outlives its stream until the container has ended too.
		s.Abort()
		s.Close()
		dialIn(t, ctx, e, peer, c.client, c.server).accept(t)
		if s := e.Snapshot(); s.TCPIn != 3 {
			t.Errorf("%d flows, want 3", s.TCPIn)
		}
	}
}

func TestDialTCPChecksAddresses(t *testing.T) {
	e, peer := wired(t)
	for _, c := range []struct {
		client, server string
		want           error
	}{
		{"203.0.113.7:1", "[fd00::100]:80", syscall.EAFNOSUPPORT},
		{"203.0.113.7:1", "10.0.2.100:0", syscall.EINVAL},
		{"203.0.113.7:1", "127.0.0.1:80", syscall.EHOSTUNREACH},
		{"203.0.113.7:1", "10.0.2.2:80", syscall.EHOSTUNREACH},
		{"203.0.113.7:1", "192.0.2.1:80", syscall.EHOSTUNREACH},
		{"127.0.0.1:1", "10.0.2.100:80", syscall.EADDRNOTAVAIL},
		{"10.0.2.100:1", "10.0.2.100:80", syscall.EADDRNOTAVAIL},
		{"10.0.2.77:1", "10.0.2.100:80", syscall.EADDRNOTAVAIL},
		{"0.0.0.0:1", "10.0.2.100:80", syscall.EADDRNOTAVAIL},
		{"224.0.0.1:1", "10.0.2.100:80", syscall.EADDRNOTAVAIL},
		{"[::1]:1", "[fd00::100]:80", syscall.EADDRNOTAVAIL},
		{"[fe80::1]:1", "[fd00::100]:80", syscall.EADDRNOTAVAIL},
		{"[2001:db8::1%eth0]:1", "[fd00::100]:80", syscall.EADDRNOTAVAIL},
		{"[::ffff:203.0.113.7]:1", "[fd00::100]:80", syscall.EADDRNOTAVAIL},
	} {
		_, err := e.DialTCP(context.Background(), netip.MustParseAddrPort(c.client), netip.MustParseAddrPort(c.server))
		if !errors.Is(err, c.want) {
			t.Errorf("%s to %s: %v, want %v", c.client, c.server, err, c.want)
		}
	}
	if _, err := e.DialTCP(context.Background(), netip.AddrPort{}, netip.AddrPort{}); err == nil {
		t.Error("nothing to nothing")
	}
	peer.Silent(t)
}

// A reset ends the connection on both sides, whoever begins.
func TestDialTCPReset(t *testing.T) {
	for _, c := range clients {
		e, peer := wired(t)
		d := dialIn(t, context.Background(), e, peer, c.client, c.server)
		s := d.accept(t)
		reset := make(chan struct{}, 10)
		s.OnReset(func() { reset <- struct{}{} })
		d.send(t, stacktest.RST|stacktest.ACK, nil)
		select {
		case <-reset:
		case <-time.After(stacktest.Patience):
			t.Fatal("OnReset was not called")
		}
		if _, err := take(t, s); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("%v: read after a reset: %v", c.client, err)
		}
		s.Close()
		for _, abort := range []func(relay.Stream){relay.Stream.Abort, func(relay.Stream) { e.Close() }} {
			d := dialIn(t, context.Background(), e, peer, c.client, c.server)
			s := d.accept(t)
			abort(s)
			d.expect(t, stacktest.RST, nil)
			if _, err := take(t, s); err == nil || errors.Is(err, io.EOF) {
				t.Errorf("%v: read after Abort: %v", c.client, err)
			}
			s.Close()
		}
		if n := e.Snapshot().TCPIn; n != 0 {
			t.Errorf("%d flows left", n)
		}
	}
}

// SetPublished's function comes before everything, and what it does not want goes
// where it went without it.
func TestPublishedDatagrams(t *testing.T) {
	for _, c := range clients {
		e, peer := wired(t)
		e.SendUDP(c.client, c.server, []byte("in"), 0)
		stacktest.IP(t, c.client.Addr(), peer.Receive(t), stacktest.Src(c.client.Addr()), stacktest.Dst(c.server.Addr()),
			stacktest.UDP(stacktest.SrcPort(c.client.Port()), stacktest.DstPort(c.server.Port()), stacktest.Content([]byte("in"))))
		gateway := netip.AddrPortFrom(clients[1].client.Addr(), c.client.Port())
		if c.client.Addr().Is6() {
			gateway = netip.AddrPortFrom(clients[3].client.Addr(), c.client.Port())
		}
		seen := make(chan netip.AddrPort, 10)
		e.SetPublished(func(from, to netip.AddrPort, payload []byte, segment int) bool {
			if from != c.server || string(payload) != "out" || segment != 0 {
				t.Errorf("from %v: %q, %d", from, payload, segment)
			}
			seen <- to
			return to == c.client
		})
		peer.InjectIP(t, stacktest.Datagram(c.server, c.client, []byte("out")))
		if to := <-seen; to != c.client {
			t.Errorf("to %v", to)
		}
		other := netip.AddrPortFrom(gateway.Addr(), 9)
		peer.InjectIP(t, stacktest.Datagram(c.server, other, []byte("out")))
		<-seen
		stacktest.IP(t, c.client.Addr(), peer.Receive(t), stacktest.Src(gateway.Addr())) // port unreachable
		e.SetPublished(nil)
		peer.InjectIP(t, stacktest.Datagram(c.server, gateway, []byte("out")))
		stacktest.IP(t, c.client.Addr(), peer.Receive(t), stacktest.Src(gateway.Addr()))
		if s := e.Snapshot(); s.UDP != 0 || len(seen) != 0 {
			t.Errorf("%d mappings, %d seen", s.UDP, len(seen))
		}
	}
}

func TestSendUDPChecksAddresses(t *testing.T) {
	e, peer := wired(t)
	for _, c := range [][2]netip.AddrPort{
		{clients[0].client, clients[2].server},
		{clients[0].client, netip.MustParseAddrPort("192.0.2.1:5")},
		{clients[0].client, netip.MustParseAddrPort("127.0.0.1:5")},
		{netip.AddrPort{}, clients[2].server},
		{},
	} {
		e.SendUDP(c[0], c[1], []byte("x"), 0)
	}
	peer.Silent(t)
}
