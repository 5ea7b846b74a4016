package kernudp

import (
	"bytes"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack/stacktest"
)

func TestServersOnLoopbackSeeWhoTheClientIs(t *testing.T) {
	for _, c := range []struct {
		name             string
		from, at, target netip.Addr
		seen             netip.Addr
	}{
		{"remote IPv4", host4, host4, loopback4, host4},
		{"remote IPv6", host6, host6, loopback6, host6},
		{"loopback IPv4", loopback4, loopback4, loopback4, loopback4},
		{"loopback IPv6", loopback6, loopback6, loopback6, loopback6},
		{"IPv6 client of an IPv4 server", host6, host6, loopback4, plan.Gateway4},
		{"IPv4 client of an IPv6 server", host4, host4, loopback6, plan.Gateway6},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, true, nil)
			s := w.listen(t, port(c.target, 0))
			p := dial(t, port(c.from, 0), w.publish(t, c.at, s.addr))
			for i, size := range []int{5, 0, 1400, 65000} {
				b := bytes.Repeat([]byte{byte(i)}, size)
				p.send(t, b)
				seen := s.expect(t, b)
				if seen != port(c.seen, p.addr().Port()) {
					t.Errorf("the server saw %v, want %v with port %d", seen, c.seen, p.addr().Port())
				}
				s.answer(t, b, seen)
				p.expect(t, b)
			}
			if n := w.Status().UDP; n != 1 {
				t.Errorf("%d flows", n)
			}
		})
	}
}

func TestTrains(t *testing.T) {
	w := newWorld(t, true, nil)
	s := w.listen(t, port(loopback4, 0))
	p := dial(t, port(host4, 0), w.publish(t, host4, s.addr))
	payload := make([]byte, 1200*30+17)
	for i := range payload {
		payload[i] = byte(i / 1200)
	}
	raw, err := p.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1200) })
	if err != nil {
		t.Fatal(err)
	}
	p.send(t, payload)
	var seen netip.AddrPort
	for _, want := range chunks(payload, 1200) {
		seen = s.expect(t, want)
	}
	for _, b := range chunks(payload, 1200) {
		s.answer(t, b, seen)
	}
	for _, want := range chunks(payload, 1200) {
		p.expect(t, want)
	}
}

func TestDatagramsWaitForSockets(t *testing.T) {
	w := newWorld(t, false, nil)
	s := w.listen(t, port(loopback4, 0))
	p := dial(t, port(host4, 0), w.publish(t, host4, s.addr))
	const sent = maxHeld + 3
	for i := range sent {
		// One by one: together they would be one train.
		p.send(t, bytes.Repeat([]byte("x"), i))
		stacktest.Eventually(t, "the datagram", func() bool {
			return w.count(portdriver.Datagrams)+w.count(portdriver.DatagramsLost) == uint64(i+1)
		})
	}
	if n := w.count(portdriver.DatagramsLost); n != sent-maxHeld {
		t.Errorf("%d lost, want %d", n, sent-maxHeld)
	}
	w.stock.Deliver(handoff.SocketUDP4, w.sockets(t, handoff.SocketUDP4, 1))
	for i := range maxHeld {
		s.expect(t, bytes.Repeat([]byte("x"), i))
	}
	p.send(t, []byte("afterwards"))
	s.expect(t, []byte("afterwards"))
	if n := w.heldSize.Load(); n != 0 {
		t.Errorf("%d bytes held", n)
	}
}

func TestFlowsThatEndWhileTheyWait(t *testing.T) {
	w := newWorld(t, false, func(c *Config) { c.IdleUnreplied = 20 * time.Millisecond })
	at := w.publish(t, host4, port(loopback4, 9))
	for range 5 {
		dial(t, port(host4, 0), at).send(t, []byte("x"))
	}
	stacktest.Eventually(t, "the flows' end", func() bool { return w.count(portdriver.Flows) == 5 && w.Status().UDP == 0 })
	stacktest.Eventually(t, "an empty line", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.waiting[handoff.SocketUDP4].Len() == 0 && w.heldSize.Load() == 0
	})
	if n := w.count(portdriver.Datagrams); n != 5 || w.count(portdriver.DatagramsLost) != 5 {
		t.Errorf("%d held, %d lost", n, w.count(portdriver.DatagramsLost))
	}
	w.stock.Deliver(handoff.SocketUDP4, w.sockets(t, handoff.SocketUDP4, 1)) // for nobody
}

func TestRefusedPortIsCountedAndMayOpenLater(t *testing.T) {
	w := newWorld(t, true, nil)
	s := w.listen(t, port(loopback4, 0))
	addr := s.addr
	_ = s.Close()
	p := dial(t, port(host4, 0), w.publish(t, host4, addr))
	p.send(t, []byte("nobody"))
	stacktest.Eventually(t, "the refusal", func() bool { return w.count(portdriver.RefusedTarget) == 1 })
	s = w.listen(t, addr)
	p.send(t, []byte("somebody"))
	s.answer(t, []byte("yes"), s.expect(t, []byte("somebody")))
	p.expect(t, []byte("yes"))
}

func TestSourceThatTheContainerUses(t *testing.T) {
	w := newWorld(t, true, nil)
	s := w.listen(t, port(loopback4, 0))
	p := dial(t, port(loopback4, 0), w.publish(t, loopback4, s.addr))
	other := w.listen(t, p.addr()) // the same address and port, in the container
	p.send(t, []byte("x"))
	seen := s.expect(t, []byte("x"))
	if seen.Addr() != loopback4 || seen == p.addr() {
		t.Errorf("the server saw %v", seen)
	}
	s.answer(t, []byte("y"), seen)
	p.expect(t, []byte("y"))
	// What others in the container send to that port is nobody's answer.
	other.answer(t, []byte("intruder"), seen)
	s.answer(t, []byte("z"), seen)
	p.expect(t, []byte("z"))
	if n := w.count(portdriver.OtherSource); n == 0 {
		t.Error("not counted")
	}
}

func TestAnswerSeenOnTheTAP(t *testing.T) {
	w := newWorld(t, true, nil)
	s := w.listen(t, port(loopback4, 0))
	p := dial(t, port(host4, 0), w.publish(t, host4, s.addr))
	p.send(t, []byte("x"))
	seen := s.expect(t, []byte("x"))
	from := port(plan.Container4, s.addr.Port())
	if !w.Published(from, seen, []byte("from the wildcard"), 0) {
		t.Fatal("not recognized")
	}
	p.expect(t, []byte("from the wildcard"))
	for _, c := range []struct{ from, to netip.AddrPort }{
		{port(plan.Container4, s.addr.Port()+1), seen}, {from, port(host4, seen.Port()+1)}, {port(plan.Container6, s.addr.Port()), seen},
	} {
		if w.Published(c.from, c.to, []byte("x"), 0) {
			t.Errorf("%v to %v is no answer", c.from, c.to)
		}
	}
}

func TestSocketsAreBounded(t *testing.T) {
	const limit = 8
	w := newWorld(t, true, func(c *Config) { c.MaxFlows = limit })
	s := w.listen(t, port(loopback4, 0))
	at := w.publish(t, host4, s.addr)
	for i := range 5 * limit {
		p := dial(t, port(host4, 0), at)
		b := []byte(fmt.Sprint(i))
		p.send(t, b)
		s.answer(t, b, s.expect(t, b))
		p.expect(t, b)
	}
	if n := w.Status().UDP; n != limit {
		t.Errorf("%d flows", n)
	}
	if n := w.count(portdriver.Evicted); n != 4*limit {
		t.Errorf("%d evicted", n)
	}
}

// A socket that is not transparent cannot take a client's address.
func TestUnfitSocketLosesOnlyItsFlow(t *testing.T) {
	w := newWorld(t, false, nil)
	s := w.listen(t, port(loopback4, 0))
	at := w.publish(t, host4, s.addr)
	var fd int
	w.ns.Do(t, func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		return err
	})
	w.stock.Deliver(handoff.SocketUDP4, []int{fd})
	first := dial(t, port(host4, 0), at)
	first.send(t, []byte("lost"))
	stacktest.Eventually(t, "the loss", func() bool { return w.count(portdriver.DatagramsLost) == 1 })
	w.stock.Deliver(handoff.SocketUDP4, w.sockets(t, handoff.SocketUDP4, 1))
	second := dial(t, port(host4, 0), at)
	second.send(t, []byte("found"))
	s.expect(t, []byte("found"))
}

func TestNoCrossTalkWhileSocketsArriveLate(t *testing.T) {
	w := newWorld(t, true, nil)
	s := w.listen(t, port(loopback4, 0))
	var echo sync.WaitGroup
	echo.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := s.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			_, _ = s.WriteToUDPAddrPort(buf[:n], from)
		}
	})
	at4, at6 := w.publish(t, host4, s.addr), w.publish(t, loopback6, s.addr)
	var clients sync.WaitGroup
	for id := range 40 {
		to := at4
		if id%2 == 1 {
			to = at6
		}
		p := dial(t, port(to.Addr(), 0), to)
		clients.Go(func() {
			buf := make([]byte, 1500)
			for round := range 30 {
				want := fmt.Sprintf("client %d round %d", id, round)
				_, _ = p.Write([]byte(want))
				_ = p.SetReadDeadline(time.Now().Add(stacktest.Patience))
				if n, err := p.Read(buf); err != nil || string(buf[:n]) != want {
					t.Errorf("%s: got %q, %v", want, buf[:n], err)
					return
				}
			}
		})
	}
	clients.Wait()
	_ = s.Close()
	echo.Wait()
}

func TestShutAndCloseReleaseSockets(t *testing.T) {
	w := newWorld(t, true, nil)
	s := w.listen(t, port(loopback4, 0))
	p := dial(t, port(host4, 0), w.publish(t, host4, s.addr))
	p.send(t, []byte("x"))
	s.expect(t, []byte("x"))
	w.Shut(1)
	if n := w.Status().UDP; n != 0 {
		t.Errorf("%d flows after Shut", n)
	}
	w.Close()
	w.Close()
}

// BenchmarkPublishedUDP sends datagrams of 1,400 bytes as fast as the client can,
// one by one, to a server on the container's loopback that reads one by one. Gb/s
// counts what the server got; lost is the part that it did not.
func BenchmarkPublishedUDP(b *testing.B) {
	w := newWorld(b, true, nil)
	s := w.listen(b, port(loopback4, 0))
	p := dial(b, port(host4, 0), w.publish(b, host4, s.addr))
	p.send(b, []byte("x"))
	s.expect(b, []byte("x"))
	var got int
	var last time.Time
	_ = s.SetReadDeadline(time.Time{})
	var reader sync.WaitGroup
	reader.Go(func() {
		buf := make([]byte, 1<<16)
		for {
			n, err := s.Read(buf)
			if err != nil {
				return
			}
			if got += n; got/1400%64 == 0 {
				last = time.Now()
			}
		}
	})
	payload := make([]byte, 1400)
	b.SetBytes(1400)
	b.ResetTimer()
	start := time.Now()
	for range b.N {
		_, _ = p.Write(payload)
	}
	b.StopTimer()
	_ = s.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // for what is under way
	reader.Wait()
	if elapsed := last.Sub(start).Seconds(); elapsed > 0 {
		b.ReportMetric(float64(got)*8/elapsed/1e9, "Gb/s")
	}
	b.ReportMetric(1-float64(got/1400)/float64(b.N), "lost")
}
