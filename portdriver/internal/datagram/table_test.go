package datagram

import (
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack/stacktest"
)

// bench is a table without a service.
type bench struct {
	*table
	ln *listener
}

func newBench(limit int) *bench {
	return &bench{newTable(limit, new(portdriver.Counters)), new(listener)}
}

func addr(n int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, byte(n >> 8), byte(n)}) }

// add begins a flow, answered or not, and returns it with the one that gave way.
func (b *bench) add(client netip.Addr, port int, answered bool) (f, evicted *Flow) {
	from := netip.AddrPortFrom(client, uint16(port))
	to := netip.AddrPortFrom(plan.Container4, target.Port())
	f, evicted = b.insert(key{listener: b.ln, from: from}, portdriver.Route{Source: from, Target: to}, 0)
	if answered {
		b.answered(f)
	}
	return f, evicted
}

// has returns how many flows a client has.
func (b *bench) has(client netip.Addr) (n int) {
	for k := range b.flows {
		if k.from.Addr() == client {
			n++
		}
	}
	return n
}

// consistent recounts everything that the table keeps besides the flows.
func (b *bench) consistent(t *testing.T) {
	t.Helper()
	counts := [2]map[netip.Addr]int{{}, {}}
	for _, f := range b.flows {
		counts[f.kind()][f.client.addr]++
		if b.routes[f.route] != f || b.clients[f.client.addr] != f.client || f.element.Value != f {
			t.Fatal("a flow is not where it should be")
		}
	}
	for kind, r := range b.crowds {
		total, top := 0, 0
		for a, n := range counts[kind] {
			total, top = total+n, max(top, n)
			if b.clients[a].shares[kind].flows.Len() != n {
				t.Fatalf("client %v has %d flows of kind %d, not %d", a, n, kind, b.clients[a].shares[kind].flows.Len())
			}
		}
		ranked := 0
		for _, level := range r.levels {
			ranked += level.Len()
		}
		if r.total != total || r.top != top || ranked != len(counts[kind]) {
			t.Fatalf("kind %d: total %d, top %d, %d clients, want %d, %d, %d", kind, r.total, r.top, ranked, total, top, len(counts[kind]))
		}
	}
	if len(b.routes) != len(b.flows) {
		t.Fatalf("%d routes of %d flows", len(b.routes), len(b.flows))
	}
}

func TestTableStaysConsistent(t *testing.T) {
	b := newBench(50)
	r := rand.New(rand.NewPCG(1, 2))
	var known []*Flow
	for range 20_000 {
		switch f := pick(r, known); {
		case f == nil || r.IntN(3) == 0:
			client, port := addr(r.IntN(9)), 1+r.IntN(60_000)
			if b.find(key{listener: b.ln, from: netip.AddrPortFrom(client, uint16(port))}) == nil {
				f, _ := b.add(client, port, false)
				known = append(known, f)
			}
		case r.IntN(2) == 0:
			b.answered(f)
		case r.IntN(2) == 0:
			b.renew(f)
		case r.IntN(2) == 0:
			b.remove(f)
		default:
			b.otherSource(f)
		}
		if len(known) > 100 {
			known = known[50:]
		}
		b.consistent(t)
	}
	if len(b.flows) == 0 || len(b.flows) > 50 {
		t.Errorf("%d flows", len(b.flows))
	}
}

func pick(r *rand.Rand, flows []*Flow) *Flow {
	if len(flows) == 0 {
		return nil
	}
	return flows[r.IntN(len(flows))]
}

func TestWhoGivesWay(t *testing.T) {
	const limit = 400
	greedy, modest := addr(1), addr(2)
	for _, c := range []struct {
		name     string
		answered bool // the greedy client's flows
	}{{"sprays ports and gets no answer", false}, {"sprays ports and is answered", true}} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(limit)
			for port := 1; port <= 20; port++ {
				b.add(modest, port, port%2 == 0)
			}
			for port := 1; port <= 5000; port++ {
				b.add(greedy, port, c.answered)
			}
			if n := b.has(modest); n != 20 || len(b.flows) != limit {
				t.Errorf("the modest client has %d of 20 flows, %d in all", n, len(b.flows))
			}
			// The greedy one's flows that are left are its latest.
			for f := range b.flows {
				if f.from.Addr() == greedy && f.from.Port() <= 5000-(limit-20) {
					t.Fatalf("port %d is left", f.from.Port())
				}
			}
			b.consistent(t)
		})
	}
	t.Run("forged sources", func(t *testing.T) {
		b := newBench(limit)
		for port := 1; port <= limit; port++ {
			b.add(modest, port, true)
		}
		for n := range 5000 {
			b.add(addr(10+n), 5, false)
		}
		if n := b.has(modest); n != limit-limit/4 {
			t.Errorf("%d of %d answered flows are left", n, limit)
		}
	})
	t.Run("own flows without a reply go first", func(t *testing.T) {
		b := newBench(4)
		b.add(modest, 1, true)
		b.add(greedy, 1, true)
		b.add(greedy, 2, true)
		b.add(greedy, 3, false)
		if _, gone := b.add(addr(3), 1, false); gone == nil || gone.key.from != netip.AddrPortFrom(greedy, 3) {
			t.Errorf("%v gave way", gone)
		}
	})
	t.Run("the one not used for longest goes first", func(t *testing.T) {
		b := newBench(3)
		first, _ := b.add(greedy, 1, true)
		b.add(greedy, 2, true)
		b.add(greedy, 3, true)
		first.touch(2 * reorder)
		if _, gone := b.add(modest, 1, false); gone.key.from.Port() != 2 {
			t.Errorf("port %d gave way", gone.key.from.Port())
		}
	})
}

func TestAnIPv6HostIsOneClient(t *testing.T) {
	for _, c := range []struct{ a, want string }{
		{"192.0.2.7", "192.0.2.7"}, {"::ffff:192.0.2.7", "192.0.2.7"},
		{"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"}, {"fe80::1%lo", "fe80::"}, {"::1", "::"},
	} {
		if got := clientOf(netip.MustParseAddr(c.a)); got != netip.MustParseAddr(c.want) {
			t.Errorf("%s is counted as %v", c.a, got)
		}
	}
}

func TestSourcePortSearchIsBounded(t *testing.T) {
	b := newBench(100)
	source := netip.AddrPortFrom(plan.Gateway4, 5555)
	to := netip.AddrPortFrom(plan.Container4, 53)
	insert := func(n int) *Flow {
		f, _ := b.insert(key{listener: b.ln, from: netip.AddrPortFrom(addr(n), 5555)}, portdriver.Route{Source: source, Target: to}, 0)
		return f
	}
	for n := range maxSearch + 1 {
		if insert(n) == nil {
			t.Fatalf("no flow %d", n)
		}
	}
	b.next = firstDynamic // where all the others are
	if f := insert(1000); f != nil {
		t.Errorf("flow %v after %d ports", f.route, maxSearch)
	}
	b.next = 65535
	f := insert(1001)
	if f == nil || f.route.Source.Port() != 65535 || b.next != firstDynamic {
		t.Errorf("%v, next %d", f, b.next)
	}
	b.consistent(t)
}

func TestIdleFlowsEnd(t *testing.T) {
	s, _ := newService(t, func(c *Config, _ *container) { c.Idle, c.IdleUnreplied = time.Hour, time.Minute })
	at := serve(t, s, 1, loopback4)
	answered := dial(t, from(loopback4), at)
	answered.ask(t, []byte("x"))
	silent, _ := s.table.insert(key{listener: answeredListener(s), from: netip.MustParseAddrPort("127.0.0.1:9")},
		portdriver.Route{Source: netip.MustParseAddrPort("10.0.2.2:9")}, s.age())
	s.expire(s.age() + 50*time.Second)
	if n := s.Status().UDP; n != 2 {
		t.Errorf("%d flows before anything is idle", n)
	}
	s.expire(s.age() + 2*time.Minute)
	if n := s.Status().UDP; n != 1 || !silent.ended.Load() {
		t.Errorf("%d flows after the shorter time", n)
	}
	s.expire(s.age() + 2*time.Hour)
	if n := s.Status().UDP; n != 0 {
		t.Errorf("%d flows after the longer time", n)
	}
	answered.ask(t, []byte("a new flow"))
}

func answeredListener(s *Service) *listener {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ln := range s.listeners {
		return ln
	}
	return nil
}

func TestJanitorEndsFlows(t *testing.T) {
	s, _ := newService(t, func(c *Config, _ *container) { c.Idle, c.IdleUnreplied = 30*time.Millisecond, -1 })
	dial(t, from(loopback4), serve(t, s, 1, loopback4)).ask(t, []byte("x"))
	stacktest.Eventually(t, "the end of the flow", func() bool { return s.Status().UDP == 0 })
}

// One client runs through its ports; another one's flow stays, and memory is
// bounded by the number of flows.
func TestFloodFromOneClient(t *testing.T) {
	s, _ := newService(t, func(_ *Config, c *container) { c.quiet = true })
	at := serve(t, s, 1, netip.IPv4Unspecified()).Port()
	friend := dial(t, from(host4[1]), netip.AddrPortFrom(host4[0], at))
	friend.ask(t, []byte("before"))
	route := plan.Routes(friend.addr(), target)[0]
	flow := s.Find(route)
	before := heap()
	const ports = 60_000
	spray(t, s, netip.AddrPortFrom(loopback4, at), ports)
	friend.ask(t, []byte("after"))
	if s.Find(route) != flow {
		t.Error("the other client's flow was evicted")
	}
	if n := s.Status().UDP; n > portdriver.MaxUDP {
		t.Errorf("%d flows", n)
	}
	if n := count(s, portdriver.Evicted); n == 0 {
		t.Error("nothing was evicted")
	}
	if grown := int64(heap()) - int64(before); grown > 32<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
}

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// spray sends a datagram from each of n ports of the loopback address, no faster
// than the service can follow: what the socket's buffer cannot take proves nothing.
func spray(t *testing.T, s *Service, to netip.AddrPort, n int) {
	t.Helper()
	begun := count(s, portdriver.Flows)
	for port := 1; port <= n; port++ {
		if err := sendFrom(port, to); err != nil {
			if port == int(to.Port()) {
				continue // the service's own
			}
			t.Fatalf("port %d: %v", port, err)
		}
		begun++
		if port%200 == 0 || port == n {
			stacktest.Eventually(t, "the service to follow", func() bool { return count(s, portdriver.Flows) >= begun })
		}
	}
}

func sendFrom(port int, to netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: loopback4.As4()}); err != nil {
		return err
	}
	return unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()})
}
