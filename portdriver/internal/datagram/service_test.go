package datagram

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/stacktest"
)

func count(s *Service, c portdriver.Counter) uint64 { return s.cfg.Counters.Load(c) }

func TestDatagramsOfEverySizeGoThereAndBack(t *testing.T) {
	for _, at := range []netip.Addr{loopback4, loopback6, host4[0], host6[0]} {
		t.Run(at.String(), func(t *testing.T) {
			s, c := newService(t, nil)
			p := dial(t, from(at), serve(t, s, 1, at))
			sizes := []int{0, 1, 1400, 8972, 8973, 65507, 0, 30000}
			for i, size := range sizes {
				p.ask(t, bytes.Repeat([]byte{byte(i + 1)}, size))
			}
			want := plan.Routes(p.addr(), target)[0]
			for i, a := range c.received(t, len(sizes)) {
				if a.route != want || len(a.payload) != sizes[i] {
					t.Errorf("%d: %d bytes by %v, want %d by %v", i, len(a.payload), a.route, sizes[i], want)
				}
			}
			n := uint64(len(sizes))
			stacktest.Eventually(t, "the counts", func() bool {
				return count(s, portdriver.Datagrams) == n && count(s, portdriver.Replies) == n
			})
			if st := s.Status(); st.UDP != 1 || st.Counters["published_udp_flows"] != 1 {
				t.Errorf("%+v", st)
			}
		})
	}
}

// A wildcard socket answers from the address that the client chose; the kernel
// alone would take the one of its route.
func TestReplyLeavesFromWhereItWasAsked(t *testing.T) {
	s, c := newService(t, nil)
	for _, w := range []struct {
		wildcard netip.Addr
		local    []netip.Addr
	}{
		{netip.IPv4Unspecified(), append(host4, loopback4, netip.MustParseAddr("127.0.0.77"))},
		{netip.IPv6Unspecified(), append(host6, loopback6)},
	} {
		port := serve(t, s, 1, w.wildcard).Port()
		client := from(w.local[0])
		for _, local := range w.local {
			p := dial(t, client, netip.AddrPortFrom(local, port))
			p.ask(t, []byte(local.String()))
			client = p.addr() // the next one has the same address and port
			_ = p.Close()
		}
	}
	// One client at four, or three, addresses is as many flows.
	if n := s.Status().UDP; n != 7 {
		t.Errorf("%d flows", n)
	}
	seen := make(map[portdriver.Route]bool)
	for _, a := range c.received(t, 7) {
		seen[a.route] = true
	}
	if len(seen) != 7 {
		t.Errorf("%d routes of 7 flows", len(seen))
	}
}

// A socket of socket activation may serve both families.
func TestDualStackSocket(t *testing.T) {
	s, c := newService(t, nil)
	l := listenerOf(t, 1, "udp", from(netip.IPv6Unspecified()))
	if err := s.Open(l); err != nil {
		t.Fatal(err)
	}
	for i, local := range []netip.Addr{host4[1], host6[1], loopback4} {
		p := dial(t, from(local), netip.AddrPortFrom(local, l.Bound.Port()))
		p.ask(t, []byte("hello"))
		got := c.received(t, i+1)[i]
		if want := plan.Routes(p.addr(), target)[0]; got.route != want {
			t.Errorf("%v by %v, want %v", local, got.route, want)
		}
		if f := s.Find(got.route); f == nil || f.Client() != p.addr() {
			t.Errorf("no flow of %v", p.addr())
		}
	}
}

func TestLinkLocalClientIsAnsweredOnItsInterface(t *testing.T) {
	s, c := newService(t, nil)
	far := nstest.New(t)
	here, there := netip.MustParseAddr("fe80::1"), netip.MustParseAddr("fe80::2")
	t.Cleanup(func() { _ = nstest.LinkDelete("v0") })
	for _, err := range []error{
		nstest.AddVeth("v0", "v1", far.File), nstest.AddAddr("v0", netip.PrefixFrom(here, 64)), nstest.LinkUp("v0"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	port := serve(t, s, 1, netip.IPv6Unspecified()).Port()
	var p peer
	far.Do(t, func() error {
		if err := errors.Join(nstest.AddAddr("v1", netip.PrefixFrom(there, 64)), nstest.LinkUp("v1")); err != nil {
			return err
		}
		p = dial(t, from(there.WithZone("v1")), netip.AddrPortFrom(here.WithZone("v1"), port))
		return nil
	})
	p.ask(t, []byte("hello"))
	if a := c.received(t, 1)[0]; a.route.Source.Addr() != plan.Gateway6 {
		t.Errorf("the container saw %v", a.route.Source)
	}
}

func TestClientsThatShowTheSameSourceAreKeptApart(t *testing.T) {
	s, c := newService(t, func(cfg *Config, _ *container) {
		// Everything goes to the container's IPv4 address.
		cfg.Routes = func(client, _ netip.AddrPort) []portdriver.Route {
			return plan.Routes(client, netip.AddrPortFrom(plan.Container4, target.Port()))
		}
	})
	at4, at6 := serve(t, s, 1, loopback4), serve(t, s, 2, loopback6)
	p4 := dial(t, from(loopback4), at4)
	p6 := dial(t, netip.AddrPortFrom(loopback6, p4.addr().Port()), at6)
	p4.ask(t, []byte("four"))
	p6.ask(t, []byte("six"))
	p4.ask(t, []byte("four again"))
	got := c.received(t, 3)
	first, second := got[0].route, got[1].route
	if first.Source != netip.AddrPortFrom(plan.Gateway4, p4.addr().Port()) || second.Source.Addr() != plan.Gateway4 ||
		second.Source == first.Source || got[2].route != first {
		t.Errorf("sources %v", got)
	}
	if n := count(s, portdriver.OtherSource); n != 1 {
		t.Errorf("%d other sources counted", n)
	}
	if f := s.Find(second); f == nil || f.Client() != p6.addr() {
		t.Errorf("the second flow is not found by its route")
	}
}

func TestTrainsArriveExactly(t *testing.T) {
	for _, at := range []netip.Addr{loopback4, loopback6} {
		t.Run(at.String(), func(t *testing.T) { testTrains(t, at) })
	}
}

func testTrains(t *testing.T, at netip.Addr) {
	s, c := newService(t, nil)
	p := dial(t, from(at), serve(t, s, 1, at))
	var want [][]byte
	for i, train := range []struct{ size, n, last int }{{1400, 40, 1400}, {100, 64, 7}, {1400, 1, 1400}, {32000, 2, 1}} {
		payload := make([]byte, train.size*(train.n-1)+train.last)
		for j := range payload {
			payload[j] = byte(i + j/train.size)
		}
		p.sendTrain(t, payload, train.size)
		for cut := payload; len(cut) > 0; cut = cut[min(train.size, len(cut)):] {
			want = append(want, cut[:min(train.size, len(cut))])
		}
	}
	for i, a := range c.received(t, len(want)) {
		if !bytes.Equal(a.payload, want[i]) {
			t.Fatalf("datagram %d has %d bytes, want %d", i, len(a.payload), len(want[i]))
		}
	}
	for i := range want {
		if got := p.read(t); !bytes.Equal(got, want[i]) {
			t.Fatalf("reply %d has %d bytes, want %d", i, len(got), len(want[i]))
		}
	}
}

// sendTrain has the kernel cut a payload into datagrams.
func (p peer) sendTrain(t testing.TB, payload []byte, size int) {
	t.Helper()
	raw, err := p.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size) })
	if err != nil {
		t.Fatal(err)
	}
	p.send(t, payload)
	_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 0) })
}

// Many clients, each with a few datagrams under way, of sizes that sometimes join.
func TestNoCrossTalkAndNoLoss(t *testing.T) {
	s, _ := newService(t, func(_ *Config, c *container) { c.quiet = true })
	listeners := []netip.AddrPort{serve(t, s, 1, loopback4), serve(t, s, 1, loopback6), serve(t, s, 2, host4[0])}
	const clients, rounds, window = 24, 60, 6
	var wg sync.WaitGroup
	for id := range clients {
		at := listeners[id%len(listeners)]
		p := dial(t, from(at.Addr()), at)
		r := rand.New(rand.NewPCG(uint64(id), 1))
		wg.Go(func() {
			for round := range rounds {
				var sent [][]byte
				size := 40 + r.IntN(1400)
				for i := range window {
					b := []byte(fmt.Sprintf("client %d round %d datagram %d ", id, round, i))
					b = append(b, make([]byte, size+r.IntN(2)*r.IntN(20))...)
					sent = append(sent, b)
					if _, err := p.Write(b); err != nil {
						t.Error(err)
						return
					}
				}
				for i := range window {
					buf := make([]byte, 1<<16)
					_ = p.SetReadDeadline(time.Now().Add(stacktest.Patience))
					n, err := p.Read(buf)
					if err != nil || !bytes.Equal(buf[:n], sent[i]) {
						t.Errorf("client %d, round %d, reply %d: %q, %v", id, round, i, buf[:min(n, 40)], err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	if n := s.Status().UDP; n != clients {
		t.Errorf("%d flows", n)
	}
}

func TestShutEndsOneRule(t *testing.T) {
	s, c := newService(t, nil)
	keep, gone := serve(t, s, 1, loopback4), serve(t, s, 2, loopback4)
	gone2 := serve(t, s, 2, loopback6)
	pk, pg, pg2 := dial(t, from(loopback4), keep), dial(t, from(loopback4), gone), dial(t, from(loopback6), gone2)
	for _, p := range []peer{pk, pg, pg2} {
		p.ask(t, []byte("x"))
	}
	s.Shut(2)
	if opened, closed := c.numbers(); opened != 3 || closed != 2 || s.Status().UDP != 1 {
		t.Errorf("%d opened, %d closed, %+v", opened, closed, s.Status())
	}
	pk.ask(t, []byte("still here"))
	// The port is free again: nobody else held it here.
	if err := s.Open(listenerAt(t, 3, gone)); err != nil {
		t.Fatal(err)
	}
	dial(t, from(loopback4), gone).ask(t, []byte("again"))
	s.Shut(99)
}

func TestShutWhileClientsSend(t *testing.T) {
	s, _ := newService(t, func(_ *Config, c *container) { c.quiet = true })
	for round := range 20 {
		at := serve(t, s, round, loopback4)
		p := dial(t, from(loopback4), at)
		var wg sync.WaitGroup
		wg.Go(func() {
			for range 200 {
				_, _ = p.Write(make([]byte, 1200)) // refused once the port is gone
			}
		})
		s.Shut(round)
		wg.Wait()
	}
	if n := s.Status().UDP; n != 0 {
		t.Errorf("%d flows left", n)
	}
}

func TestOpenRefusesWhatItCannotServe(t *testing.T) {
	s, _ := newService(t, nil)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	f, err := tcp.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Open(portdriver.Listener{Network: portdriver.NetUDP, Target: target, File: f}); !errors.Is(err, unix.EPROTONOSUPPORT) {
		t.Errorf("a TCP socket: %v", err)
	}
	wrong := listenerAt(t, 1, from(loopback4))
	wrong.Network = portdriver.NetTCP
	if err := s.Open(wrong); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("network tcp: %v", err)
	}
	if err := s.Open(portdriver.Listener{Network: portdriver.NetUDP, Target: target}); !errors.Is(err, os.ErrInvalid) {
		t.Errorf("no socket: %v", err)
	}
	s.Close()
	if err := s.Open(listenerAt(t, 1, from(loopback4))); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestContainerThatCannotTakeAFlow(t *testing.T) {
	s, c := newService(t, nil)
	p := dial(t, from(loopback4), serve(t, s, 1, loopback4))
	for i, err := range []error{errors.New("no way"), ErrSourceTaken} {
		c.mu.Lock()
		c.refusal = err
		c.mu.Unlock()
		p.send(t, []byte("lost"))
		stacktest.Eventually(t, "the loss", func() bool { return count(s, portdriver.DatagramsLost) == uint64(i+1) })
		if n := s.Status().UDP; n != 0 {
			t.Errorf("%d flows", n)
		}
	}
	if opened, _ := c.numbers(); opened != 0 || count(s, portdriver.OtherSource) != maxConnects {
		t.Errorf("%d ways, %d other sources", opened, count(s, portdriver.OtherSource))
	}
}

func TestReplyToAClientThatIsGoneHarmsNobody(t *testing.T) {
	s, c := newService(t, func(_ *Config, c *container) { c.echo = false })
	at := serve(t, s, 1, loopback4)
	gone, live := dial(t, from(loopback4), at), dial(t, from(loopback4), at)
	gone.send(t, []byte("x"))
	live.send(t, []byte("y"))
	got := c.received(t, 2)
	_ = gone.Close()
	for range 50 {
		s.Find(got[0].route).Reply([]byte("nobody"), 0)
		s.Find(got[1].route).Reply([]byte("somebody"), 0)
	}
	for range 50 {
		if b := live.read(t); string(b) != "somebody" {
			t.Fatalf("%q", b)
		}
	}
}

func TestCloseWhileTheContainerIsFull(t *testing.T) {
	gate := make(chan struct{})
	s, _ := newService(t, func(_ *Config, c *container) { c.gate = gate })
	at := serve(t, s, 1, loopback4)
	for range 3 * maxTrains { // more flows than there is room for
		dial(t, from(loopback4), at).send(t, []byte("x"))
	}
	stacktest.Eventually(t, "full batches", func() bool {
		s.in.mu.Lock()
		defer s.in.mu.Unlock()
		return s.in.filling.n == maxTrains && s.in.spare == nil
	})
	done := make(chan struct{})
	go func() { s.Close(); close(done) }()
	stacktest.Eventually(t, "Close to begin", func() bool {
		s.in.mu.Lock()
		defer s.in.mu.Unlock()
		return s.in.closed
	})
	close(gate)
	<-done
	s.Close()
}
