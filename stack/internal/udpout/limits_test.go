package udpout

import (
	"errors"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/internal/flow"
)

// container addresses and ports that differ, for floods.
func clientN(n int) netip.AddrPort {
	a := netip.AddrFrom4([4]byte{10, 0, 2, byte(101 + n/60000)})
	return netip.AddrPortFrom(a, uint16(2000+n%60000))
}

func (t *Table) has(from netip.AddrPort) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mappings[from] != nil
}

func (t *Table) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.mappings)
}

func fds(t testing.TB) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// shrink sets the limits of a new table.
func shrink(tb *Table, limit, reserve int) { tb.limit, tb.reserve = limit, reserve }

// reply has the outside answer a mapping, and waits for the answer.
func reply(t *testing.T, tb *Table, c *container, from netip.AddrPort, s server) {
	t.Helper()
	n := c.numArrivals()
	send(tb, from, s.addr, "x")
	_, mapped := s.read(t)
	s.write(t, []byte("y"), mapped)
	c.received(t, n+1)
}

func TestEvictionOrder(t *testing.T) {
	tb, c := newTable(t, nil)
	shrink(tb, 6, 2)
	s, sink := listenOn(t, outside4[0]), listenOn(t, outside4[1])
	reply(t, tb, c, clientN(0), s)
	send(tb, clientN(1), sink.addr, "x")
	send(tb, clientN(2), sink.addr, "x")
	reply(t, tb, c, clientN(3), s)
	send(tb, clientN(1), sink.addr, "again") // now 2 is the one not used for longest
	for i, gone := range []int{2, 1} {
		send(tb, clientN(10+i), sink.addr, "x")
		if tb.has(clientN(gone)) {
			t.Errorf("newcomer %d: %d is still there", i, gone)
		}
	}
	for _, n := range []int{0, 3} {
		if !tb.has(clientN(n)) {
			t.Errorf("%d had a reply and was evicted before those without", n)
		}
	}
	reply(t, tb, c, clientN(10), s)
	reply(t, tb, c, clientN(11), s)
	send(tb, clientN(12), sink.addr, "x") // only mappings with replies are left
	if tb.has(clientN(0)) || !tb.has(clientN(3)) || !tb.has(clientN(12)) {
		t.Error("the oldest with a reply did not give way")
	}
	if n := count(tb, flow.UDPEvicted); n != 3 || tb.size() != 4 || tb.cfg.Flows.Len(flow.UDP) != 4 {
		t.Errorf("evicted %d, size %d, flows %d", n, tb.size(), tb.cfg.Flows.Len(flow.UDP))
	}
}

func TestReserveForNameServers(t *testing.T) {
	tb, _ := newTable(t, nil)
	shrink(tb, 8, 3)
	s := listenOn(t, outside4[0])
	name := netip.AddrPortFrom(s.addr.Addr(), 53)
	dot := netip.AddrPortFrom(s.addr.Addr(), 853)
	send(tb, clientN(0), name, "q")
	send(tb, clientN(1), dot, "q")
	for i := range 50 {
		send(tb, clientN(100+i), s.addr, "flood")
	}
	if !tb.has(clientN(0)) || !tb.has(clientN(1)) || tb.size() != 7 {
		t.Errorf("flood: name service %v %v, size %d", tb.has(clientN(0)), tb.has(clientN(1)), tb.size())
	}
	// A flood of queries does not take the others' share away for good.
	for i := range 50 {
		send(tb, clientN(200+i), name, "flood")
	}
	if tb.size() != 8 || tb.lru[general].len() != 5 {
		t.Errorf("query flood: size %d, general %d", tb.size(), tb.lru[general].len())
	}
	tb.expire(time.Hour)
	for i := range 50 {
		send(tb, clientN(200+i), name, "flood")
	}
	for i := range 5 {
		send(tb, clientN(300+i), s.addr, "x")
	}
	if tb.size() != 8 || tb.lru[general].len() != 5 {
		t.Errorf("after a query flood: size %d, general %d", tb.size(), tb.lru[general].len())
	}
}

func TestIdleExpiry(t *testing.T) {
	tb, c := newTable(t, func(c *Config) { c.Idle, c.IdleUnreplied = 2*time.Hour, time.Hour })
	s := listenOn(t, outside4[0])
	send(tb, clientN(0), s.addr, "x")
	s.read(t)
	reply(t, tb, c, clientN(1), s)
	tb.expire(59 * time.Minute)
	if tb.size() != 2 {
		t.Fatalf("too early: %d left", tb.size())
	}
	tb.expire(time.Hour + time.Minute)
	if tb.has(clientN(0)) || !tb.has(clientN(1)) {
		t.Error("after the unreplied time the wrong mappings are left")
	}
	tb.expire(2*time.Hour + time.Minute)
	if tb.size() != 0 || tb.cfg.Flows.Len(flow.UDP) != 0 {
		t.Errorf("after the idle time %d are left", tb.size())
	}
	reply(t, tb, c, clientN(1), s) // the same port can be used again
}

func TestTrafficFromOutsideKeepsAMapping(t *testing.T) {
	tb, c := newTable(t, func(c *Config) { c.Idle = time.Hour })
	clock := struct {
		sync.Mutex
		now time.Time
	}{now: tb.start}
	tb.now = func() time.Time { clock.Lock(); defer clock.Unlock(); return clock.now }
	s := listenOn(t, outside4[0])
	send(tb, clientN(0), s.addr, "x")
	_, mapped := s.read(t)
	for i := range 4 {
		clock.Lock()
		clock.now = clock.now.Add(40 * time.Minute)
		clock.Unlock()
		s.write(t, []byte("stream"), mapped)
		c.received(t, i+1)
		tb.expire(tb.age())
	}
	if !tb.has(clientN(0)) {
		t.Error("a one-way stream lost its mapping")
	}
}

func TestExpiryRunsByItself(t *testing.T) {
	tb, _ := newTable(t, func(c *Config) { c.IdleUnreplied = 20 * time.Millisecond })
	before := fds(t)
	send(tb, client4, netip.AddrPortFrom(outside4[0], 9), "x")
	eventually(t, "expiry", func() bool { return tb.size() == 0 })
	eventually(t, "release of the descriptor", func() bool { return fds(t) <= before })
}

func TestNegativeIdleIsNever(t *testing.T) {
	tb, _ := newTable(t, func(c *Config) { c.Idle, c.IdleUnreplied = -1, -1 })
	send(tb, client4, netip.AddrPortFrom(outside4[0], 9), "x")
	tb.expire(1000 * time.Hour)
	if tb.size() != 1 {
		t.Error("the mapping ended")
	}
}

func TestFloodKeepsDescriptorsBounded(t *testing.T) {
	before, goroutines := fds(t), runtime.NumGoroutine()
	tb, c := newTable(t, nil)
	s := listenOn(t, outside4[0])
	sink := netip.AddrPortFrom(outside4[1], 9)
	reply(t, tb, c, client4, s)
	most := 0
	start := time.Now()
	for i := range 100_000 {
		tb.Handle(Datagram{From: clientN(i), To: sink, Payload: []byte("flood"), TTL: 64})
		if i%10_000 == 0 {
			most = max(most, fds(t))
		}
	}
	t.Logf("100,000 tuples in %v, at most %d descriptors", time.Since(start), most)
	if most > before+flow.MaxUDP+8 {
		t.Errorf("%d descriptors, %d before", most, before)
	}
	if n := runtime.NumGoroutine(); n > goroutines+4 {
		t.Errorf("%d goroutines, %d before", n, goroutines)
	}
	if !tb.has(client4) {
		t.Error("the mapping with a reply fell to the flood")
	}
	reply(t, tb, c, client4, s)
	if err := tb.Close(); err != nil {
		t.Error(err)
	}
	if n := tb.cfg.Flows.Len(flow.UDP); n != 0 {
		t.Errorf("%d flows after Close", n)
	}
	_ = s.Close()
	eventually(t, "end of goroutines", func() bool { return runtime.NumGoroutine() <= goroutines })
	if n := fds(t); n > before {
		t.Errorf("%d descriptors after Close, %d before", n, before)
	}
}

func TestDescriptorsRunOut(t *testing.T) {
	tb, c := newTable(t, nil)
	s := listenOn(t, outside4[0])
	reply(t, tb, c, clientN(0), s)
	for i := range 4 {
		send(tb, clientN(1+i), s.addr, "x")
		s.read(t)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	limit := unix.Rlimit{Cur: 3, Max: old.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	restore := func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old) }
	defer restore()
	// The victim's number is above the limit, so the retry fails as well: what
	// matters is that flows with replies live and the loss is counted.
	for i := range 8 {
		send(tb, clientN(100+i), s.addr, "x")
	}
	restore()
	if n := count(tb, flow.UDPRefusedLimit); n != 8 {
		t.Errorf("%d refusals counted", n)
	}
	if !tb.has(clientN(0)) {
		t.Error("the mapping with a reply was given up")
	}
	reply(t, tb, c, clientN(0), s)
	reply(t, tb, c, clientN(100), s) // service is back as soon as descriptors are
}

func TestDescriptorOfTheVictimIsUsed(t *testing.T) {
	tb, c := newTable(t, nil)
	s := listenOn(t, outside4[0])
	reply(t, tb, c, clientN(0), s)
	send(tb, clientN(1), s.addr, "x")
	s.read(t)
	// Take all descriptors that are left below a limit close by.
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	limit := unix.Rlimit{Cur: uint64(fds(t) + 16), Max: old.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old) }()
	var taken []int
	for {
		fd, err := unix.Dup(0)
		if errors.Is(err, unix.EMFILE) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, fd)
	}
	defer func() {
		for _, fd := range taken {
			_ = unix.Close(fd)
		}
	}()
	send(tb, clientN(2), s.addr, "made it")
	if b, _ := s.read(t); string(b) != "made it" {
		t.Errorf("%q", b)
	}
	if tb.has(clientN(1)) || !tb.has(clientN(0)) || count(tb, flow.UDPEvicted) != 1 {
		t.Error("the wrong mapping gave its descriptor")
	}
}

func TestCloseDuringTraffic(t *testing.T) {
	tb, c := newTable(t, nil)
	s := listenOn(t, outside4[0])
	reply(t, tb, c, client4, s)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				send(tb, clientN(i%2000), s.addr, "x")
			}
		}
	})
	eventually(t, "some traffic", func() bool { return tb.size() > 100 })
	if err := tb.Close(); err != nil {
		t.Error(err)
	}
	if err := tb.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	close(stop)
	wg.Wait()
	if n := tb.size(); n != 0 {
		t.Errorf("%d mappings after Close", n)
	}
	if n := tb.cfg.Flows.Len(flow.UDP); n != 0 {
		t.Errorf("%d flows after Close", n)
	}
}
