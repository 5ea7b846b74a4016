package kernudp

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/stock"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack/hostsock/nstest"
	"github.com/postern-net/postern/stack/stacktest"
	"github.com/postern-net/postern/userns/rtnl"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m)) }

var (
	loopback4, loopback6 = netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()
	host4, host6         = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8::1")

	plan = portdriver.Addresses{
		Container4: netip.MustParseAddr("10.0.2.100"), Gateway4: netip.MustParseAddr("10.0.2.2"),
		Container6: netip.MustParseAddr("fd00::100"), Gateway6: netip.MustParseAddr("fd00::2"),
	}
)

var hostAddresses = sync.OnceValue(func() error {
	return errors.Join(nstest.AddAddr("lo", netip.PrefixFrom(host4, 32)), nstest.AddAddr("lo", netip.PrefixFrom(host6, 128)))
})

// world is a container's network namespace with a driver that leads there.
type world struct {
	*Driver
	ns    *nstest.Namespace
	stock *stock.Stock
}

// newWorld makes one. supplied says whether the stock is filled as it is ordered.
func newWorld(t testing.TB, supplied bool, change func(*Config)) *world {
	t.Helper()
	stacktest.NoLeaks(t)
	if err := hostAddresses(); err != nil {
		t.Fatal(err)
	}
	w := &world{ns: nstest.New(t)}
	w.ns.Do(t, func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		route := os.NewFile(uintptr(fd), "netlink")
		defer route.Close()
		return rtnl.InstallPublishing(route)
	})
	w.stock = stock.New(func(kind handoff.SocketKind, n int) {
		if supplied {
			w.stock.Deliver(kind, w.sockets(t, kind, n))
		}
	}, 64)
	t.Cleanup(w.stock.Close)
	c := Config{Stock: w.stock, Routes: plan.Routes}
	if change != nil {
		change(&c)
	}
	d, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	w.Driver = d
	return w
}

// sockets makes what the supervisor's child makes.
func (w *world) sockets(t testing.TB, kind handoff.SocketKind, n int) (fds []int) {
	w.ns.Do(t, func() error {
		for range n {
			fd, err := socket(kind)
			if err != nil {
				return err
			}
			fds = append(fds, fd)
		}
		return nil
	})
	return fds
}

func socket(kind handoff.SocketKind) (int, error) {
	domain, level, name := unix.AF_INET, unix.SOL_IP, unix.IP_TRANSPARENT
	if kind == handoff.SocketUDP6 {
		domain, level, name = unix.AF_INET6, unix.SOL_IPV6, unix.IPV6_TRANSPARENT
	}
	fd, err := unix.Socket(domain, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	return fd, errors.Join(unix.SetsockoptInt(fd, level, name, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, rtnl.PublishedMark),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1))
}

// server is a socket in the container.
type server struct {
	*net.UDPConn
	addr netip.AddrPort
}

func (w *world) listen(t testing.TB, at netip.AddrPort) server {
	t.Helper()
	var conn *net.UDPConn
	w.ns.Do(t, func() (err error) {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetReadBuffer(1 << 20)
	return server{conn, unmapped(conn.LocalAddr())}
}

func unmapped(a net.Addr) netip.AddrPort {
	ap := a.(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// expect reads a datagram and returns who sent it.
func (s server) expect(t testing.TB, want []byte) netip.AddrPort {
	t.Helper()
	_ = s.SetReadDeadline(time.Now().Add(stacktest.Patience))
	buf := make([]byte, 1<<16)
	n, from, err := s.ReadFromUDPAddrPort(buf)
	if err != nil || !bytes.Equal(buf[:n], want) {
		t.Fatalf("got %d bytes, want %d: %v", n, len(want), err)
	}
	return netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

func (s server) answer(t testing.TB, b []byte, to netip.AddrPort) {
	t.Helper()
	if _, err := s.WriteToUDPAddrPort(b, to); err != nil {
		t.Fatal(err)
	}
}

// publish opens a port of the host that leads to a target.
func (w *world) publish(t testing.TB, at netip.Addr, target netip.AddrPort) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	f, err := conn.File()
	if err != nil {
		t.Fatal(err)
	}
	bound := unmapped(conn.LocalAddr())
	l := portdriver.Listener{Rule: 1, Network: portdriver.NetUDP, Bound: bound, Target: target, File: f}
	if err := w.Open(l); err != nil {
		t.Fatal(err)
	}
	return bound
}

// client is a socket of the host, connected to a published port.
type client struct{ *net.UDPConn }

func dial(t testing.TB, from, to netip.AddrPort) client {
	t.Helper()
	conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetReadBuffer(1 << 20)
	return client{conn}
}

func (c client) addr() netip.AddrPort { return unmapped(c.LocalAddr()) }

func (c client) send(t testing.TB, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
}

func (c client) expect(t testing.TB, want []byte) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(stacktest.Patience))
	buf := make([]byte, 1<<16)
	n, err := c.Read(buf)
	if err != nil || !bytes.Equal(buf[:n], want) {
		t.Fatalf("got %d bytes, want %d: %v", n, len(want), err)
	}
}

func (w *world) count(c portdriver.Counter) uint64 { return w.counters.Load(c) }

func port(a netip.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a, p) }

func chunks(b []byte, n int) [][]byte { return slices.Collect(slices.Chunk(b, n)) }
