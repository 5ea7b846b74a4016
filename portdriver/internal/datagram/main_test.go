package datagram

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/stacktest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

var (
	loopback4, loopback6 = netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()

	// Addresses of the host besides loopback, all on lo.
	host4 = []netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")}
	host6 = []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")}

	plan = portdriver.Addresses{
		Container4: netip.MustParseAddr("10.0.2.100"), Gateway4: netip.MustParseAddr("10.0.2.2"),
		Container6: netip.MustParseAddr("fd00::100"), Gateway6: netip.MustParseAddr("fd00::2"),
	}
)

var hostAddresses = sync.OnceValue(func() error {
	for _, a := range slices.Concat(host4, host6) {
		if err := nstest.AddAddr("lo", netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
	}
	return nil
})

// arrival is one call of a fake Way's Send.
type arrival struct {
	route   portdriver.Route
	payload []byte
	segment int
}

// datagrams cuts an arrival into what the client sent.
func (a arrival) datagrams() [][]byte {
	if a.segment == 0 {
		return [][]byte{a.payload}
	}
	return slices.Collect(slices.Chunk(a.payload, a.segment))
}

// container is the fake side of the container.
type container struct {
	service *Service
	echo    bool          // send back what comes
	quiet   bool          // keep nothing
	gate    chan struct{} // unless nil, Send waits for it

	mu       sync.Mutex
	refusal  error // of Connect
	arrivals []arrival
	opened   int
	closed   int
}

type way struct {
	c *container
	f *Flow
}

func (c *container) Connect(f *Flow) (Way, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refusal != nil {
		return nil, c.refusal
	}
	c.opened++
	return &way{c, f}, nil
}

func (w *way) Send(payload []byte, segment int) (lost int) {
	if w.c.gate != nil {
		<-w.c.gate
	}
	if !w.c.quiet {
		w.c.mu.Lock()
		w.c.arrivals = append(w.c.arrivals, arrival{w.f.Route(), bytes.Clone(payload), segment})
		w.c.mu.Unlock()
	}
	if w.c.echo {
		w.f.Reply(payload, segment)
	}
	return 0
}

func (w *way) Close() {
	w.c.mu.Lock()
	defer w.c.mu.Unlock()
	w.c.closed++
}

// numbers returns how many ways were opened and closed.
func (c *container) numbers() (opened, closed int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.opened, c.closed
}

// received returns the first n datagrams, with their routes.
func (c *container) received(t testing.TB, n int) []arrival {
	t.Helper()
	var all []arrival
	stacktest.Eventually(t, fmt.Sprintf("%d datagrams", n), func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		all = all[:0]
		for _, a := range c.arrivals {
			for _, d := range a.datagrams() {
				all = append(all, arrival{route: a.route, payload: d})
			}
		}
		return len(all) >= n
	})
	return all
}

// newService returns a service whose container echoes.
func newService(t testing.TB, change func(*Config, *container)) (*Service, *container) {
	t.Helper()
	stacktest.NoLeaks(t)
	if err := hostAddresses(); err != nil {
		t.Fatal(err)
	}
	c := &container{echo: true}
	cfg := Config{Container: c, Routes: plan.Routes}
	if change != nil {
		change(&cfg, c)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c.service = s
	t.Cleanup(func() {
		s.Close()
		if opened, closed := c.numbers(); opened != closed {
			t.Errorf("%d ways opened, %d closed", opened, closed)
		}
	})
	return s, c
}

// target is where the tests' listeners lead, at the container's address.
var target = netip.AddrPortFrom(netip.Addr{}, 5300)

// serve opens a listener on an address and returns where it listens.
func serve(t testing.TB, s *Service, rule int, at netip.Addr) netip.AddrPort {
	t.Helper()
	l := listenerAt(t, rule, netip.AddrPortFrom(at, 0))
	if err := s.Open(l); err != nil {
		t.Fatal(err)
	}
	return l.Bound
}

func listenerAt(t testing.TB, rule int, at netip.AddrPort) portdriver.Listener {
	t.Helper()
	network := "udp4"
	if at.Addr().Is6() {
		network = "udp6"
	}
	return listenerOf(t, rule, network, at)
}

// listenerOf opens a socket of a kind of package net.
func listenerOf(t testing.TB, rule int, network string, at netip.AddrPort) portdriver.Listener {
	t.Helper()
	conn, err := net.ListenUDP(network, net.UDPAddrFromAddrPort(at))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	f, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	bound := conn.LocalAddr().(*net.UDPAddr).AddrPort()
	return portdriver.Listener{Rule: rule, Network: portdriver.NetUDP, Target: target, File: f,
		Bound: netip.AddrPortFrom(bound.Addr().Unmap(), bound.Port())}
}

// peer is a client. It is connected, so that it takes replies only from exactly the
// address that it sends to.
type peer struct{ *net.UDPConn }

func dial(t testing.TB, from, to netip.AddrPort) peer {
	t.Helper()
	conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetReadBuffer(1 << 20)
	return peer{conn}
}

// from is an address with a port of the kernel's choice.
func from(a netip.Addr) netip.AddrPort { return netip.AddrPortFrom(a, 0) }

func (p peer) addr() netip.AddrPort {
	a := p.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func (p peer) send(t testing.TB, b []byte) {
	t.Helper()
	if _, err := p.Write(b); err != nil {
		t.Fatal(err)
	}
}

func (p peer) read(t testing.TB) []byte {
	t.Helper()
	_ = p.SetReadDeadline(time.Now().Add(stacktest.Patience))
	buf := make([]byte, 1<<16)
	n, err := p.UDPConn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// ask sends a datagram and checks that it comes back.
func (p peer) ask(t testing.TB, b []byte) {
	t.Helper()
	p.send(t, b)
	if got := p.read(t); !bytes.Equal(got, b) {
		t.Fatalf("sent %d bytes, got %d back, or others", len(b), len(got))
	}
}
