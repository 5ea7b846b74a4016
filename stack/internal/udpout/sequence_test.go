package udpout

import (
	"fmt"
	"net/netip"
	"strconv"
	"testing"

	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/link"
)

// queued is say for a datagram with others behind it in the device.
func (a *app) queued(tb *Table, to netip.AddrPort, payload string) {
	b := inet.AppendUDP(nil, a.addr, to, []byte(payload))
	h, _ := inet.Parse(b)
	tb.Handle(Datagram{From: a.addr, To: to, Payload: []byte(payload), TTL: 64, Packet: link.Packet{Header: h, Bytes: b}})
}

// inOrder reads numbers from first to last.
func (s server) inOrder(t *testing.T, first, last int) {
	t.Helper()
	for i := first; i <= last; i++ {
		b, _ := s.read(t)
		if n, err := strconv.Atoi(string(b)); err != nil || n != i {
			t.Fatalf("instead of %d came %q", i, b)
		}
	}
}

// almost has a flow talk until the next datagram moves it over.
func (a *app) almost(t *testing.T, tb *Table, s server) {
	t.Helper()
	for range busy - 1 {
		a.say(tb, s.addr, "talk")
		s.read(t)
	}
}

// keeping waits until messages of so many bytes are kept back.
func keeping(t *testing.T, tb *Table, payload int) {
	t.Helper()
	eventually(t, "datagrams kept back", func() bool {
		for p := range tb.express.pairsNow() {
			p.seq.Lock()
			n := 0
			for _, msg := range p.kept {
				n += len(msg.Payload)
			}
			p.seq.Unlock()
			if n == payload {
				return true
			}
		}
		return false
	})
}

func (x *express) pairsNow() map[*pair]bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := make(map[*pair]bool)
	for p := range x.pairs {
		all[p] = true
	}
	return all
}

// The datagram that moves a flow over leaves first, then what is left in the device,
// then what has come to the pair's socket meanwhile.
func TestMovingKeepsOrder(t *testing.T) {
	families(t, func(t *testing.T, client netip.AddrPort, outside []netip.Addr) {
		tb, _, _, a, s := talking(t, outside, client, nil)
		a.almost(t, tb, s[0])
		a.queued(tb, s[0].addr, "0")
		s[0].inOrder(t, 0, 0) // at once
		for i := 3; i <= 5; i++ {
			a.send(t, s[0].addr, fmt.Sprint(i))
		}
		keeping(t, tb, 3)
		s[0].silent(t)
		a.queued(tb, s[0].addr, "1")
		a.queued(tb, s[0].addr, "2")
		tb.Flush()
		for i := 6; i <= 9; i++ {
			a.send(t, s[0].addr, fmt.Sprint(i))
		}
		s[0].inOrder(t, 1, 9)
		if n := tb.express.kept.Load(); n != 0 || len(tb.express.moving) != 0 {
			t.Errorf("%d bytes kept back, %d moving", n, len(tb.express.moving))
		}
	})
}

// A reader that never runs dry does not hold a flow up.
func TestMovingEndsUnderLoad(t *testing.T) {
	for name, goOn := range map[string]func(tb *Table, a *app, s []server){
		"reader": func(tb *Table, a *app, s []server) { a.queued(tb, s[1].addr, "other") },
		"poller": func(_ *Table, a *app, s []server) { _, _ = a.WriteToUDPAddrPort([]byte("2"), s[0].addr) },
	} {
		t.Run(name, func(t *testing.T) {
			tb, _, in, a, s := talking(t, outside4, client4, nil)
			a.almost(t, tb, s[0])
			a.queued(tb, s[0].addr, "0")
			a.send(t, s[0].addr, "1")
			keeping(t, tb, 1)
			in.later(patience)
			goOn(tb, a, s)
			s[0].inOrder(t, 0, 1)
		})
	}
}

// What is kept back is bounded, and not lost beyond that.
func TestKeptBackIsBounded(t *testing.T) {
	tb, _, _, a, s := talking(t, outside4, client4, nil)
	a.almost(t, tb, s[0])
	a.queued(tb, s[0].addr, "0")
	tb.express.kept.Add(maxKept - keptCost - 1)
	a.send(t, s[0].addr, "1")
	keeping(t, tb, 1)
	a.send(t, s[0].addr, "2")
	s[0].inOrder(t, 0, 2)
	if n := tb.express.kept.Load(); n != maxKept-keptCost-1 {
		t.Errorf("%d bytes kept back", n)
	}
}

// A pair that ends while it keeps something back sends it.
func TestKeptBackIsSentAtTheEnd(t *testing.T) {
	tb, _, _, a, s := talking(t, outside4, client4, nil)
	a.almost(t, tb, s[0])
	a.queued(tb, s[0].addr, "0")
	a.send(t, s[0].addr, "1")
	keeping(t, tb, 1)
	if !tb.express.spare() {
		t.Fatal("nothing to give way")
	}
	a.send(t, s[0].addr, "2")
	s[0].inOrder(t, 0, 2)
	tb.Flush()
	s[0].silent(t)
	if n := tb.express.kept.Load(); n != 0 {
		t.Errorf("%d bytes kept back", n)
	}
}

// Strays are older than what comes to the pair that they have opened.
func TestStraysKeepOrder(t *testing.T) {
	families(t, func(t *testing.T, client netip.AddrPort, outside []netip.Addr) {
		tb, _, in, a, s := talking(t, outside, client, nil)
		a.moveOver(t, tb, s[0])
		if !tb.express.spare() {
			t.Fatal("nothing to give way")
		}
		const strays, all = 300, 400 // more than the poller takes in one turn
		blocked, release := make(chan struct{}), make(chan struct{})
		calls := 0 // of the poller's goroutine
		var opened bool
		in.setClaim(func(netip.AddrPort, netip.AddrPort, []byte, int) bool {
			now := count(tb, flow.UDPExpressFlows) == 2
			if calls++; calls == 1 || now && !opened {
				opened = now
				blocked <- struct{}{}
				<-release
			}
			return false
		})
		in.later(window)
		send := func(first, end int) {
			for i := first; i < end; i++ {
				a.send(t, s[0].addr, fmt.Sprintf("%03d", i))
			}
		}
		send(0, 1)
		<-blocked // by the first stray
		send(1, strays)
		release <- struct{}{}
		<-blocked // by one after the pair was opened
		send(strays, all)
		release <- struct{}{}
		s[0].inOrder(t, 0, all-1)
		if n := count(tb, flow.UDPExpressLate); n != strays {
			t.Errorf("%d strays, want %d", n, strays)
		}
	})
}

// What comes from outside while a pair ends goes by the device.
func TestEndingPairLosesNoAnswer(t *testing.T) {
	tb, c, _, a, s := talking(t, outside4, client4, nil)
	mapped := a.moveOver(t, tb, s[0])
	for p := range tb.express.pairsNow() {
		if err := p.sock.Part(); err != nil {
			t.Fatal(err)
		}
	}
	s[0].write(t, []byte("answer"), mapped)
	if arr := c.received(t, 1)[0]; string(arr.payload) != "answer" || count(tb, flow.UDPExpressDropped) != 0 {
		t.Errorf("%q, %v", arr.payload, tb.cfg.Flows.Counters.Snapshot())
	}
}
