package udpout

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/hostsock"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/link"
)

// talking returns servers at all outside addresses of a family, which have one
// port, and a table with a client.
func talking(t *testing.T, outside []netip.Addr, client netip.AddrPort, change func(*Config)) (*Table, *container, *inside, *app, []server) {
	t.Helper()
	if err := addresses(); err != nil {
		t.Fatal(err)
	}
	servers := []server{listenOn(t, outside[0])}
	for _, a := range outside[1:] {
		servers = append(servers, listen(t, netip.AddrPortFrom(a, servers[0].addr.Port())))
	}
	tb, c, in := newExpressTable(t, servers[0].addr.Port(), change)
	return tb, c, in, in.open(client), servers
}

func TestFlowMovesOverWhenTheContainerKeepsTalking(t *testing.T) {
	families(t, func(t *testing.T, client netip.AddrPort, outside []netip.Addr) {
		tb, c, _, a, s := talking(t, outside, client, nil)
		mapped := a.moveOver(t, tb, s[0])
		for i := range 100 {
			a.send(t, s[0].addr, fmt.Sprint(i))
			b, from := s[0].read(t)
			if string(b) != fmt.Sprint(i) || from != mapped {
				t.Fatalf("%d: %q from %v, want from %v", i, b, from, mapped)
			}
			s[0].write(t, b, from)
			if got, from := (server{a.UDPConn, a.addr}).read(t); string(got) != string(b) || from != s[0].addr {
				t.Fatalf("%d: the container got %q from %v", i, got, from)
			}
		}
		if n := c.numArrivals(); n != 0 {
			t.Errorf("%d arrivals by the device", n)
		}
		f := tb.cfg.Flows.Flows()[0]
		eventually(t, "bytes counted", func() bool { return f.BytesOut.Load() == 8*4+190 && f.BytesIn.Load() == 190 })
		if f.Path() != flow.Express {
			t.Errorf("path %v", f.Path())
		}
	})
}

func TestFlowMovesOverWhenTheOutsideKeepsTalking(t *testing.T) {
	families(t, func(t *testing.T, client netip.AddrPort, outside []netip.Addr) {
		tb, c, in, a, s := talking(t, outside, client, nil)
		a.say(tb, s[0].addr, "begin")
		_, mapped := s[0].read(t)
		for range 2 * busy { // the container has only just said something
			s[0].write(t, []byte("early"), mapped)
		}
		eventually(t, "bytes", func() bool { return tb.cfg.Flows.Flows()[0].BytesIn.Load() == 2*busy*5 })
		if n := count(tb, flow.UDPExpressFlows); n != 0 {
			t.Fatalf("%d flows moved over while something may be in the device", n)
		}
		in.later(window)
		for i := range 100 {
			s[0].write(t, []byte(fmt.Sprint(i)), mapped)
		}
		eventually(t, "flow on the express path", func() bool { return count(tb, flow.UDPExpressFlows) == 1 })
		eventually(t, "bytes", func() bool { return tb.cfg.Flows.Flows()[0].BytesIn.Load() == 2*busy*5+190 })
		got := -2 * busy
		for _, arr := range c.received(t, 1) {
			got += hostsock.Packet{Payload: arr.payload, Segment: arr.segment}.Datagrams()
		}
		for ; got < 100; got++ {
			if b, from := (server{a.UDPConn, a.addr}).read(t); string(b) != fmt.Sprint(got) || from != s[0].addr {
				t.Fatalf("%q from %v, want %d", b, from, got)
			}
		}
		a.send(t, s[0].addr, "end")
		if b, from := s[0].read(t); string(b) != "end" || from != mapped {
			t.Errorf("%q from %v", b, from)
		}
	})
}

// Datagrams that are collected and sent at once count too.
func TestBatchesCount(t *testing.T) {
	tb, _, _, a, s := talking(t, outside4, client4, nil)
	b := inet.AppendUDP(nil, a.addr, s[0].addr, []byte("talk"))
	h, _ := inet.Parse(b)
	d := Datagram{From: a.addr, To: s[0].addr, Payload: []byte("talk"), TTL: 64, Packet: link.Packet{Header: h, Bytes: b}}
	for range 2 * busy {
		tb.Handle(d)
	}
	tb.Flush()
	tb.Handle(d)
	tb.Flush()
	for range 2*busy + 1 {
		s[0].read(t)
	}
	if tb.numPairs() != 1 {
		t.Errorf("%d pairs", tb.numPairs())
	}
}

func TestSeldomTalkersStay(t *testing.T) {
	tb, _, in, a, s := talking(t, outside4, client4, nil)
	for range 5 {
		for range busy - 1 {
			a.say(tb, s[0].addr, "talk")
			s[0].read(t)
		}
		in.later(window)
	}
	if n := count(tb, flow.UDPExpressFlows); n != 0 {
		t.Errorf("%d flows moved over", n)
	}
}

func TestNameServersAreSpared(t *testing.T) {
	tb, _, in, a, _ := talking(t, outside4, client4, nil)
	dns := netip.AddrPortFrom(outside4[0], 53)
	listen(t, dns)
	for i := range busyDNS {
		if taken, _, _ := in.numbers(); taken != 0 {
			t.Fatalf("moved over after %d queries", i)
		}
		a.say(tb, dns, "query")
	}
	if n := count(tb, flow.UDPExpressFlows); n != 1 {
		t.Errorf("%d flows moved over", n)
	}
}

func TestFilterStaysAsItIs(t *testing.T) {
	tb, c, _, a, s := talking(t, outside4, client4, nil)
	mapped := a.moveOver(t, tb, s[0])
	for range 2 * busy {
		s[1].write(t, []byte("uninvited"), mapped)
	}
	eventually(t, "refusals", func() bool { return count(tb, flow.UDPRefusedFilter) > 0 })
	s[0].write(t, []byte("invited"), mapped)
	if b, from := (server{a.UDPConn, a.addr}).read(t); string(b) != "invited" || from != s[0].addr {
		t.Errorf("%q from %v", b, from)
	}
	// Another port of an address that was sent to passes, by the device.
	other := listen(t, netip.AddrPortFrom(outside4[0], 0))
	other.write(t, []byte("neighbour"), mapped)
	if arr := c.received(t, 1)[0]; arr.from != other.addr || string(arr.payload) != "neighbour" {
		t.Errorf("%+v", arr)
	}
	if tb.numPairs() != 1 {
		t.Errorf("%d pairs", tb.numPairs())
	}
}

func TestGuardIsAskedOnTheExpressPath(t *testing.T) {
	tb, c, _, a, s := talking(t, outside4, client4, nil)
	a.moveOver(t, tb, s[0])
	metadata := netip.MustParseAddrPort("169.254.169.254:80")
	m := tb.mappings[a.addr]
	msg := hostsock.Message{From: a.addr, Target: metadata, TTL: 64, Payload: []byte("x")}
	(&pair{x: tb.express, m: m, to: metadata}).send(new(hostsock.Writer), msg)
	stray{tb.express}.Receive(msg)
	if n := count(tb, flow.UDPRefusedGuard); n != 2 {
		t.Errorf("%d refusals, want 2", n)
	}
	for _, f := range c.failed(t, 2) {
		if f.kind != icmp.AdminProhibited {
			t.Errorf("%+v", f)
		}
	}
}

func TestAddressTakenInTheContainer(t *testing.T) {
	tb, _, in, a, s := talking(t, outside4, client4, nil)
	busyPort := listen(t, netip.AddrPortFrom(s[0].addr.Addr(), 0))
	in.open(netip.AddrPortFrom(outside4[0], busyPort.addr.Port()))
	for range 5 * busy {
		a.say(tb, busyPort.addr, "talk")
		busyPort.read(t)
	}
	if n := count(tb, flow.UDPExpressFailed); n != 1 || tb.numPairs() != 0 {
		t.Errorf("%d failures, %d pairs", n, tb.numPairs())
	}
	in.later(failedRest)
	for range busy {
		a.say(tb, busyPort.addr, "talk")
		busyPort.read(t)
	}
	if n := count(tb, flow.UDPExpressFailed); n != 2 {
		t.Errorf("%d failures after a while, want 2", n)
	}
}

func TestNoSocketInStock(t *testing.T) {
	tb, _, in, a, s := talking(t, outside4, client4, nil)
	in.mu.Lock()
	in.empty = true
	in.mu.Unlock()
	for range 3 * busy {
		a.say(tb, s[0].addr, "talk")
		s[0].read(t)
	}
	if _, prepared, _ := in.numbers(); prepared == 0 || count(tb, flow.UDPExpressMissing) == 0 {
		t.Errorf("prepared %d, missing %d", prepared, count(tb, flow.UDPExpressMissing))
	}
	in.mu.Lock()
	in.empty = false
	in.mu.Unlock()
	in.later(window)
	a.moveOver(t, tb, s[0])
}

func TestLeastRecentlyUsedGoesBack(t *testing.T) {
	families(t, func(t *testing.T, client netip.AddrPort, outside []netip.Addr) {
		tb, _, in, a, s := talking(t, outside, client, nil)
		tb.express.limit = 2
		mapped := a.moveOver(t, tb, s[0])
		a.moveOver(t, tb, s[1])
		for range 2 * busy {
			a.say(tb, s[2].addr, "talk")
			s[2].read(t)
		}
		if n := count(tb, flow.UDPExpressReturned); n != 0 || tb.numPairs() != 2 {
			t.Fatalf("%d gave way although all are in use, %d pairs", n, tb.numPairs())
		}
		in.later(2 * window)
		a.send(t, s[1].addr, "still here")
		s[1].read(t)
		a.moveOver(t, tb, s[2])
		if n := count(tb, flow.UDPExpressReturned); n != 1 || tb.numPairs() != 2 {
			t.Fatalf("%d gave way, %d pairs", n, tb.numPairs())
		}
		in.later(2 * window)
		for i := range 2 * busy { // back on the universal path, and over again
			a.send(t, s[0].addr, fmt.Sprint(i))
			if b, from := s[0].read(t); string(b) != fmt.Sprint(i) || from != mapped {
				t.Fatalf("%q from %v, want %d from %v", b, from, i, mapped)
			}
		}
		if n := count(tb, flow.UDPExpressLate); n < busy || n > busy+1 || count(tb, flow.UDPExpressReturned) != 2 {
			t.Errorf("%d strays, %d gave way", n, count(tb, flow.UDPExpressReturned))
		}
	})
}

// What a pair has received when it gives way is sent all the same.
func TestGivingWayLosesNothing(t *testing.T) {
	tb, _, in, a, s := talking(t, outside4, client4, nil)
	a.moveOver(t, tb, s[0])
	entered, release := make(chan struct{}), make(chan struct{})
	var blocked atomic.Bool
	in.setClaim(func(netip.AddrPort, netip.AddrPort, []byte, int) bool {
		if !blocked.Swap(true) {
			close(entered)
			<-release
		}
		return false
	})
	const n = 150
	seen := make(map[string]bool)
	a.send(t, s[0].addr, "0")
	<-entered // the poller is busy with the first
	for i := 1; i < n; i++ {
		a.send(t, s[0].addr, fmt.Sprint(i))
	}
	if !tb.express.spare() {
		t.Fatal("nothing to give way")
	}
	close(release)
	for range n {
		b, _ := s[0].read(t)
		seen[string(b)] = true
	}
	if len(seen) != n || tb.numPairs() != 0 || count(tb, flow.UDPExpressReturned) != 1 {
		t.Errorf("%d of %d arrived, %d pairs", len(seen), n, tb.numPairs())
	}
}

func TestPairsEnd(t *testing.T) {
	tb, _, in, a, s := talking(t, outside4, client4, func(c *Config) { c.IdleUnreplied = time.Hour })
	before := fds(t)
	a.moveOver(t, tb, s[0])
	a.moveOver(t, tb, s[1])
	in.later(pairIdle - time.Second)
	tb.expire(tb.age())
	if tb.numPairs() != 2 {
		t.Fatalf("too early: %d pairs", tb.numPairs())
	}
	in.later(time.Second)
	tb.expire(tb.age())
	if tb.numPairs() != 0 || fds(t) != before+1 || !tb.has(a.addr) || len(tb.express.talks) != 0 {
		t.Fatalf("%d pairs, %d descriptors more, mapping %v, %d watched", tb.numPairs(), fds(t)-before, tb.has(a.addr), len(tb.express.talks))
	}
	if p := tb.cfg.Flows.Flows()[0].Path(); p != flow.Universal {
		t.Errorf("path %v", p)
	}
	a.moveOver(t, tb, s[0])
	in.later(time.Hour)
	tb.expire(tb.age())
	if tb.numPairs() != 0 || tb.has(a.addr) || fds(t) != before {
		t.Errorf("with the mapping: %d pairs, %d descriptors more", tb.numPairs(), fds(t)-before)
	}
}

func TestCloseEndsEverything(t *testing.T) {
	before := fds(t)
	t.Run("table", func(t *testing.T) {
		tb, _, _, a, s := talking(t, outside4, client4, nil)
		a.moveOver(t, tb, s[0])
		a.moveOver(t, tb, s[1])
		if err := tb.Close(); err != nil {
			t.Error(err)
		}
		if tb.numPairs() != 0 || tb.size() != 0 {
			t.Errorf("%d pairs, %d mappings", tb.numPairs(), tb.size())
		}
		for range 2 * busy {
			a.say(tb, s[0].addr, "talk")
		}
	})
	eventually(t, "end of descriptors", func() bool { return fds(t) <= before })
}

func TestNewClosesItsFiles(t *testing.T) {
	in := newInside(t, 4000)
	for _, wrong := range []*os.File{in.stray("udp6", "::"), os.Stdin} {
		own := in.stray("udp6", "::")
		_, err := New(Config{Express: &Express{Catch4: wrong, Catch6: own, Sockets: in}})
		if err == nil {
			t.Fatal("took a socket of the wrong kind")
		}
		if _, serr := own.SyscallConn(); serr == nil {
			if own.Close() == nil {
				t.Error("left a file open")
			}
		}
	}
}

func TestHopLimitOnTheExpressPath(t *testing.T) {
	families(t, func(t *testing.T, client netip.AddrPort, outside []netip.Addr) {
		tb, c, _, a, s := talking(t, outside, client, nil)
		a.moveOver(t, tb, s[0])
		for _, hops := range []struct{ in, want int }{{2, 1}, {63, 62}, {64, 64}, {255, 64}} {
			a.setHops(t, hops.in)
			a.send(t, s[0].addr, "x")
			if got := s[0].hopLimit(t); int(got) != hops.want {
				t.Errorf("hop limit %d became %d, want %d", hops.in, got, hops.want)
			}
		}
		a.setHops(t, 1)
		a.send(t, s[0].addr, "x")
		if f := c.failed(t, 1)[0]; f.kind != icmp.TimeExceeded || f.to != client.Addr() {
			t.Errorf("%+v", f)
		}
		s[0].silent(t)
	})
}

func (a *app) setHops(t *testing.T, n int) {
	t.Helper()
	raw, err := a.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) {
		if a.addr.Addr().Is4() {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, n)
		} else {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, n)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
}

// Somebody has changed what makes the container's kernel hand flows over.
func TestKernelThatDoesNotHandOver(t *testing.T) {
	tb, _, in, a, s := talking(t, outside4, client4, nil)
	in.broken.Store(true)
	for i := range maxUnanswered {
		for range busy - 1 {
			a.say(tb, s[i].addr, "talk")
			s[i].read(t)
		}
		a.say(tb, s[i].addr, "lost")
		in.later(patience)
		for range busy { // goes on as before
			a.say(tb, s[i].addr, "talk")
			if b, _ := s[i].read(t); string(b) != "talk" {
				t.Fatalf("got %q", b)
			}
		}
	}
	if _, _, lost := in.numbers(); lost != 1 || count(tb, flow.UDPExpressUnanswered) != maxUnanswered || tb.numPairs() != 0 {
		t.Errorf("told %d times, unanswered %d, %d pairs", lost, count(tb, flow.UDPExpressUnanswered), tb.numPairs())
	}
	in.broken.Store(false)
	other := in.open(withPort(client4, client4.Port()+1))
	for range 2 * busy {
		other.say(tb, s[0].addr, "talk")
		s[0].read(t)
	}
	if tb.numPairs() != 0 {
		t.Error("a flow moved over during the pause")
	}
	in.later(pause)
	other.moveOver(t, tb, s[0])
}

// The container's kernel has forgotten that a flow had moved over.
func TestForgottenFlowIsTurnedAgain(t *testing.T) {
	tb, _, in, a, s := talking(t, outside4, client4, nil)
	a.moveOver(t, tb, s[0])
	in.later(patience)
	a.say(tb, s[0].addr, "again")
	if b, _ := s[0].read(t); string(b) != "again" || tb.numPairs() != 1 {
		t.Errorf("got %q, %d pairs", b, tb.numPairs())
	}
}

func TestForeignFlowsStay(t *testing.T) {
	tb, _, in, a, s := talking(t, outside4, client4, func(c *Config) {
		c.Express.Own = func(from, _ netip.AddrPort) bool { return from != client4 }
	})
	for range 3 * busy {
		a.say(tb, s[0].addr, "talk")
		s[0].read(t)
	}
	if n := count(tb, flow.UDPExpressForeign); n != 1 || tb.numPairs() != 0 {
		t.Errorf("counted %d, %d pairs", n, tb.numPairs())
	}
	nested := netip.MustParseAddrPort("10.0.2.30:5000") // not the container's own address
	for range 3 * busy {
		send(tb, nested, s[0].addr, "talk")
		s[0].read(t)
	}
	if taken, _, _ := in.numbers(); taken != 0 {
		t.Errorf("%d sockets taken", taken)
	}
}

func TestPublishedRepliesAreClaimed(t *testing.T) {
	tb, _, in, a, s := talking(t, outside4, client4, nil)
	a.moveOver(t, tb, s[0])
	got := make(chan string, 10)
	in.setClaim(func(from, to netip.AddrPort, payload []byte, _ int) bool {
		if from != client4 || to != s[0].addr && to != s[1].addr {
			t.Errorf("from %v to %v", from, to)
		}
		got <- string(payload)
		return true
	})
	for _, to := range s[:2] { // by a pair and as a stray
		a.send(t, to.addr, "reply")
		if b := <-got; b != "reply" {
			t.Errorf("claimed %q", b)
		}
		to.silent(t)
	}
}

func TestClosedPortOfTheContainer(t *testing.T) {
	tb, _, in, a, s := talking(t, outside4, client4, nil)
	mapped := a.moveOver(t, tb, s[0])
	_ = a.Close()
	for range 50 {
		s[0].write(t, []byte("anyone"), mapped)
	}
	eventually(t, "bytes", func() bool { return tb.cfg.Flows.Flows()[0].BytesIn.Load() == 300 })
	again := in.open(client4)
	s[0].write(t, []byte("hello"), mapped)
	if b, _ := (server{again.UDPConn, again.addr}).read(t); string(b) != "hello" {
		t.Errorf("got %q", b)
	}
	again.send(t, s[0].addr, "hello")
	if b, from := s[0].read(t); string(b) != "hello" || from != mapped {
		t.Errorf("got %q from %v", b, from)
	}
}

func TestDescriptorsAreGivenToMappings(t *testing.T) {
	tb, _, _, a, s := talking(t, outside4, client4, nil)
	a.moveOver(t, tb, s[0])
	if !tb.spare() || tb.numPairs() != 0 || !tb.has(a.addr) {
		t.Errorf("%d pairs, mapping %v", tb.numPairs(), tb.has(a.addr))
	}
}

func TestWatchedFlowsAreBounded(t *testing.T) {
	tb, _, in, a, s := talking(t, outside4, client4, nil)
	m, err := tb.mapping(a.addr, general)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 * maxTalks {
		tb.express.talked(m, netip.AddrPortFrom(s[0].addr.Addr(), uint16(i+1)), 1)
	}
	if n := len(tb.express.talks); n > maxTalks || n < maxTalks/2 {
		t.Errorf("%d watched", n)
	}
	in.later(window)
	a.moveOver(t, tb, s[0])
}

// Everything at once, for the race detector: both directions, many remotes, pairs
// that give way all the time. Nothing that the container sends is lost.
func TestExpressUnderChange(t *testing.T) {
	tb, _, in, a, s := talking(t, outside4, client4, nil)
	tb.express.limit = 1
	var wg sync.WaitGroup
	stop := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Millisecond):
				in.later(2 * window)
				tb.expire(0)
			}
		}
	})
	seen := make(map[string]int)
	for i := range 300 {
		to := s[i/20%3]
		a.say(tb, to.addr, fmt.Sprint(i))
		b, from := to.read(t)
		seen[string(b)]++
		to.write(t, []byte("echo"+string(b)), from)
	}
	close(stop)
	wg.Wait()
	for i := range 300 {
		if seen[fmt.Sprint(i)] != 1 {
			t.Errorf("%d arrived %d times", i, seen[fmt.Sprint(i)])
		}
	}
	for name := range tb.cfg.Flows.Counters.Snapshot() {
		if strings.HasSuffix(name, "_failed") {
			t.Errorf("%s: %v", name, tb.cfg.Flows.Counters.Snapshot())
		}
	}
}
