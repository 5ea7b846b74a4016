package udpout

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/link"
)

// inside is the namespace of a container whose kernel keeps datagrams to the outside
// to itself, as that of a real one does with flows that have moved over: the outside's
// addresses are local ones. What a pair takes is decided by the kernel's own lookup;
// what none takes goes to a socket bound to the wildcard and to the outside's one port.
type inside struct {
	*nstest.Namespace
	t    testing.TB
	port uint16

	offset atomic.Int64 // of the table's clock
	broken atomic.Bool  // what is written back does not come over

	mu       sync.Mutex // guards the fields below
	apps     map[netip.AddrPort]*app
	empty    bool // no socket in stock
	taken    int
	prepared int
	lost     int
	claim    func(from, to netip.AddrPort, payload []byte, segment int) bool
}

// app is a socket of the container.
type app struct {
	*net.UDPConn
	in   *inside
	addr netip.AddrPort
}

var _ Sockets = (*inside)(nil)

// reusing lets several sockets have an address, as those of the namespace do.
var reusing = net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
	if cerr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}); cerr != nil {
		return cerr
	}
	return err
}}

func newInside(t testing.TB, port uint16) *inside {
	in := &inside{Namespace: nstest.New(t), t: t, port: port, apps: make(map[netip.AddrPort]*app)}
	in.Do(t, func() error {
		for _, a := range slices.Concat(outside4, outside6, []netip.Addr{client4.Addr(), client6.Addr()}) {
			if err := nstest.AddAddr("lo", netip.PrefixFrom(a, a.BitLen())); err != nil {
				return err
			}
		}
		return nil
	})
	in.await(slices.Concat(outside6, []netip.Addr{client6.Addr()}))
	return in
}

// await waits for the routes that deliver packets for IPv6 addresses. The kernel adds
// them from a work queue.
func (in *inside) await(as []netip.Addr) {
	eventually(in.t, "routes", func() (ready bool) {
		in.Do(in.t, func() error {
			b, err := os.ReadFile("/proc/thread-self/net/ipv6_route")
			ready = !slices.ContainsFunc(as, func(a netip.Addr) bool { return !local(string(b), a) })
			return err
		})
		return ready
	})
}

// local looks for the local route of an address, as opposed to that of its prefix.
func local(routes string, a netip.Addr) bool {
	const rtfLocal = 0x80000000 // linux/ipv6_route.h
	for line := range strings.Lines(routes) {
		// Destination, prefix length, source, its length, gateway, metric, two counts, flags.
		f := strings.Fields(line)
		flags, err := strconv.ParseUint(f[8], 16, 32)
		if err == nil && flags&rtfLocal != 0 && f[0] == fmt.Sprintf("%x", a.As16()) {
			return true
		}
	}
	return false
}

// open opens a socket of the container.
func (in *inside) open(addr netip.AddrPort) *app {
	in.t.Helper()
	a := &app{in: in, addr: addr}
	in.Do(in.t, func() (err error) {
		a.UDPConn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr))
		return err
	})
	_ = a.SetReadBuffer(1 << 20)
	in.mu.Lock()
	in.apps[addr] = a
	in.mu.Unlock()
	in.t.Cleanup(func() { _ = a.Close() })
	return a
}

// Prepare implements Sockets.
func (in *inside) Prepare(handoff.SocketKind) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.prepared++
}

// Take implements Sockets.
func (in *inside) Take(kind handoff.SocketKind) (fd int, ok bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.empty {
		return -1, false
	}
	in.taken++
	domain := unix.AF_INET
	if kind == handoff.SocketExpressUDP6 {
		domain = unix.AF_INET6
	}
	in.Do(in.t, func() (err error) {
		fd, err = unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err == nil {
			err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		}
		return err
	})
	return fd, true
}

// reinject has the container send a packet once more.
func (in *inside) reinject(p link.Packet) error {
	if in.broken.Load() {
		return nil
	}
	u, ok := inet.ParseUDP(p.Payload(p.Bytes))
	if !ok {
		return unix.EINVAL
	}
	in.mu.Lock()
	a := in.apps[netip.AddrPortFrom(p.Src, u.SrcPort)]
	in.mu.Unlock()
	_, err := a.WriteToUDPAddrPort(u.Payload, netip.AddrPortFrom(p.Dst, u.DstPort))
	return err
}

func (in *inside) claims(from, to netip.AddrPort, payload []byte, segment int) bool {
	in.mu.Lock()
	fn := in.claim
	in.mu.Unlock()
	return fn != nil && fn(from, to, payload, segment)
}

func (in *inside) setClaim(fn func(from, to netip.AddrPort, payload []byte, segment int) bool) {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.claim = fn
}

func (in *inside) numbers() (taken, prepared, lost int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.taken, in.prepared, in.lost
}

// later moves the table's clock.
func (in *inside) later(d time.Duration) { in.offset.Add(int64(d)) }

// newExpressTable returns a table whose flows to the port of the servers can move over.
func newExpressTable(t testing.TB, port uint16, change func(*Config)) (*Table, *container, *inside) {
	t.Helper()
	in := newInside(t, port)
	tb, c := newTable(t, func(cfg *Config) {
		cfg.now = func() time.Time { return time.Now().Add(time.Duration(in.offset.Load())) }
		cfg.Express = &Express{
			Catch4: in.stray("udp4", "0.0.0.0"), Catch6: in.stray("udp6", "::"),
			Sockets: in, Reinject: in.reinject, Claim: in.claims,
			Lost: func() { in.mu.Lock(); defer in.mu.Unlock(); in.lost++ },
		}
		if change != nil {
			change(cfg)
		}
	})
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("counters %v", tb.cfg.Flows.Counters.Snapshot())
		}
	})
	return tb, c, in
}

// stray opens the socket for strays of a family.
func (in *inside) stray(network, any string) (f *os.File) {
	in.t.Helper()
	in.Do(in.t, func() error {
		conn, err := reusing.ListenPacket(context.Background(), network, netip.AddrPortFrom(netip.MustParseAddr(any), in.port).String())
		if err != nil {
			return err
		}
		defer conn.Close()
		f, err = conn.(*net.UDPConn).File()
		return err
	})
	return f
}

// say sends by the universal path, as the reader does.
func (a *app) say(tb *Table, to netip.AddrPort, payload string) {
	b := inet.AppendUDP(nil, a.addr, to, []byte(payload))
	h, _ := inet.Parse(b)
	tb.Handle(Datagram{
		From: a.addr, To: to, Payload: []byte(payload), TTL: 64, Quote: b, Packet: link.Packet{Header: h, Bytes: b},
	})
	tb.Flush()
}

// send sends by the container's kernel: to a pair or to the socket for strays.
func (a *app) send(t testing.TB, to netip.AddrPort, payload string) {
	t.Helper()
	if _, err := a.WriteToUDPAddrPort([]byte(payload), to); err != nil {
		t.Fatal(err)
	}
}

// moveOver has a flow talk until it has moved over, and returns its host address.
func (a *app) moveOver(t testing.TB, tb *Table, s server) (mapped netip.AddrPort) {
	t.Helper()
	before := count(tb, flow.UDPExpressFlows)
	for range busy {
		a.say(tb, s.addr, "talk")
		_, mapped = s.read(t)
	}
	if count(tb, flow.UDPExpressFlows) != before+1 {
		t.Fatalf("%v to %v has not moved over: %v", a.addr, s.addr, tb.cfg.Flows.Counters.Snapshot())
	}
	return mapped
}

func (t *Table) numPairs() int {
	t.express.mu.Lock()
	defer t.express.mu.Unlock()
	return len(t.express.pairs)
}
