package udpout

import (
	"bytes"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/stack/guard"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/netplan"
)

// Addresses of the "outside": all on the loopback device of the test's namespace.
var (
	outside4 = addrs("198.51.100.1", "198.51.100.2", "198.51.100.3")
	outside6 = addrs("2001:db8::1", "2001:db8::2", "2001:db8::3")
	client4  = netip.MustParseAddrPort("10.0.2.100:5000")
	client6  = netip.MustParseAddrPort("[fd00::100]:5000")
)

func addrs(list ...string) (as []netip.Addr) {
	for _, s := range list {
		as = append(as, netip.MustParseAddr(s))
	}
	return as
}

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

var addresses = sync.OnceValue(func() error {
	for _, a := range slices.Concat(outside4, outside6) {
		if err := nstest.AddAddr("lo", netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
	}
	return nil
})

// arrival is one call of the fake Sender.
type arrival struct {
	from, to netip.AddrPort
	payload  []byte
	segment  int
}

type failure struct {
	kind     icmp.Kind
	mtu      uint32
	from, to netip.Addr
	quote    []byte
}

// container is the fake other side of a table.
type container struct {
	mu       sync.Mutex
	arrivals []arrival
	failures []failure
}

func (c *container) SendUDP(from, to netip.AddrPort, payload []byte, segment int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.arrivals = append(c.arrivals, arrival{from, to, bytes.Clone(payload), segment})
}

func (c *container) SendError(kind icmp.Kind, mtu uint32, from, to netip.Addr, quote []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures = append(c.failures, failure{kind, mtu, from, to, bytes.Clone(quote)})
}

func (c *container) numArrivals() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.arrivals)
}

func (c *container) received(t *testing.T, n int) []arrival {
	t.Helper()
	eventually(t, "arrivals", func() bool { return c.numArrivals() >= n })
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.arrivals)
}

func (c *container) failed(t *testing.T, n int) []failure {
	t.Helper()
	get := func() []failure {
		c.mu.Lock()
		defer c.mu.Unlock()
		return slices.Clone(c.failures)
	}
	eventually(t, "ICMP errors", func() bool { return len(get()) >= n })
	return get()
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("no %s within 10 s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// newTable returns a table with the default plan, and the container behind it.
func newTable(t testing.TB, change func(*Config)) (*Table, *container) {
	t.Helper()
	if err := addresses(); err != nil {
		t.Fatal(err)
	}
	c := &container{}
	cfg := Config{Guard: guard.Policy{Plan: netplan.Default()}, Flows: flow.NewTable(), Sender: c}
	if change != nil {
		change(&cfg)
	}
	tb, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tb.Close() })
	return tb, c
}

// server is a socket of the outside.
type server struct {
	*net.UDPConn
	addr netip.AddrPort
}

func listen(t testing.TB, at netip.AddrPort) server {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetReadBuffer(1 << 20)
	addr := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	return server{conn, netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())}
}

func listenOn(t testing.TB, a netip.Addr) server { return listen(t, netip.AddrPortFrom(a, 0)) }

// read returns the next datagram and who sent it.
func (s server) read(t testing.TB) ([]byte, netip.AddrPort) {
	t.Helper()
	_ = s.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 1<<16)
	n, from, err := s.ReadFromUDPAddrPort(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// silent fails the test if a datagram waits. Whatever it would come from must
// have happened before.
func (s server) silent(t testing.TB) {
	t.Helper()
	_ = s.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, from, err := s.ReadFromUDPAddrPort(make([]byte, 1<<16)); err == nil {
		t.Fatalf("%d bytes from %v", n, from)
	}
}

func (s server) write(t testing.TB, b []byte, to netip.AddrPort) {
	t.Helper()
	if _, err := s.WriteToUDPAddrPort(b, to); err != nil {
		t.Fatal(err)
	}
}

// send passes one datagram through the table.
func send(tb *Table, from, to netip.AddrPort, payload string) {
	tb.Handle(Datagram{From: from, To: to, Payload: []byte(payload), TTL: 64})
	tb.Flush()
}

func count(tb *Table, c flow.Counter) uint64 { return tb.cfg.Flows.Counters.Load(c) }

func withPort(ap netip.AddrPort, port uint16) netip.AddrPort {
	return netip.AddrPortFrom(ap.Addr(), port)
}
