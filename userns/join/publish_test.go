package join

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/fdpass"
	"github.com/postern-net/postern/userns/internal/usertest"
	"github.com/postern-net/postern/userns/rtnl"
	"github.com/postern-net/postern/userns/spawn"
)

// published is a network namespace that is prepared for published ports, with an
// interface whose other end is far.
type published struct {
	target *Target
	far    *os.File
	to     *os.File
	from   *fdpass.Conn
}

func publish(t *testing.T) *published {
	t.Helper()
	p := &published{target: mustOpen(t, inhabited(t, spawn.Auto, nil).PID)}
	s := mustVisit(t, p.target, Request{Packet: true})
	if err := rtnl.AddVeth(s.Route, "tap0", "far0", s.FarNetNS); err != nil {
		t.Fatal(err)
	}
	index, err := rtnl.FarUp(s.FarRoute, "far0", 1500)
	if err != nil {
		t.Fatal(err)
	}
	if err := rtnl.BindPacket(s.Packet, index); err != nil {
		t.Fatal(err)
	}
	p.far = s.Packet
	cfg := testInterface
	cfg.MTU = 1500
	if _, err := rtnl.Configure(s.Route, cfg); err != nil {
		t.Fatal(err)
	}
	if err := p.target.PreparePublishing(); err != nil {
		if errors.Is(err, unix.EROFS) {
			usertest.Missing(t, "%v", err)
		}
		t.Fatal(err)
	}
	p.pair(t)
	return p
}

// pair makes the socket on which sockets arrive.
func (p *published) pair(t *testing.T) {
	t.Helper()
	to, from, err := fdpass.Pair()
	if err != nil {
		t.Fatal(err)
	}
	p.to = to
	t.Cleanup(func() { to.Close() })
	if p.from, err = fdpass.NewConn(from); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.from.Close() })
}

// sockets orders sockets and receives them.
func (p *published) sockets(t *testing.T, kind handoff.SocketKind, n int) []int {
	t.Helper()
	if err := p.target.SendSockets(p.to, kind, n); err != nil {
		t.Fatal(err)
	}
	var fds []int
	for len(fds) < n {
		body := make([]byte, 8)
		p.from.SetDeadline(time.Now().Add(10 * time.Second))
		m, all, err := p.from.RecvRaw(body, fds)
		if err != nil || m != 1 || handoff.SocketKind(body[0]) != kind {
			t.Fatalf("%d bytes %v, %v", m, body[:m], err)
		}
		fds = all
	}
	if len(fds) != n {
		t.Fatalf("%d sockets came, want %d", len(fds), n)
	}
	return fds
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

// dial makes a socket a client's connection: bound to its address, connected to a
// server. It returns connect's error, EINPROGRESS resolved.
func dial(fd int, client, server netip.AddrPort) error {
	if err := unix.Bind(fd, sockaddr(client)); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	err := unix.Connect(fd, sockaddr(server))
	if err != unix.EINPROGRESS {
		return err
	}
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	for {
		n, err := unix.Poll(poll, 10_000)
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return errors.Join(err, os.ErrDeadlineExceeded)
		}
		errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
		if err == nil && errno != 0 {
			err = unix.Errno(errno)
		}
		return err
	}
}

func streamOf(t *testing.T, fd int) net.Conn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "socket")
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

// listen is a server in the target.
func (p *published) listen(t *testing.T, addr string) net.Listener {
	t.Helper()
	a := netip.MustParseAddrPort(addr)
	kind := handoff.SocketTCP4
	if a.Addr().Is6() {
		kind = handoff.SocketTCP6
	}
	f, err := p.target.Listen(kind, a)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// Both as an ordinary user and as root: the server sees the client's own address,
// whatever it is, and bytes go both ways.
func TestClientAddressTCP(t *testing.T) {
	usertest.AsUser(t)
	p := publish(t)
	for _, tc := range []struct{ client, server, target string }{
		{"203.0.113.7:40000", "127.0.0.1:8080", "127.0.0.1"},
		{"203.0.113.7:80", "10.0.2.100:8081", "10.0.2.100"},
		{"203.0.113.7:1", "0.0.0.0:8082", "127.0.0.1"},
		{"203.0.113.7:2", "0.0.0.0:8083", "10.0.2.100"},
		{"10.0.2.2:1023", "127.0.0.1:8084", "127.0.0.1"},
		{"[2001:db8::7]:443", "[::1]:8080", "::1"},
		{"[2001:db8::7]:40000", "[fd00::100]:8081", "fd00::100"},
		{"[2001:db8::7]:22", "[::]:8082", "fd00::100"},
		{"127.0.0.1:999", "127.0.0.1:8085", "127.0.0.1"},
		{"[::1]:999", "[::1]:8085", "::1"},
	} {
		t.Run(tc.client+" to "+tc.server, func(t *testing.T) {
			l := p.listen(t, tc.server)
			client, server := netip.MustParseAddrPort(tc.client), netip.MustParseAddrPort(tc.server)
			kind := handoff.SocketTCP4
			if client.Addr().Is6() {
				kind = handoff.SocketTCP6
			}
			fd := p.sockets(t, kind, 1)[0]
			target := netip.AddrPortFrom(netip.MustParseAddr(tc.target), server.Port())
			if err := dial(fd, client, target); err != nil {
				t.Fatal(err)
			}
			near := streamOf(t, fd)
			far, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			defer far.Close()
			far.SetDeadline(time.Now().Add(20 * time.Second))
			if got := far.RemoteAddr().String(); got != tc.client {
				t.Errorf("the server sees %s", got)
			}
			echo(t, near, far)
		})
	}
}

// echo sends 200 kB each way at the same time and checks them.
func echo(t *testing.T, a, b net.Conn) {
	t.Helper()
	want := bytes.Repeat([]byte("postern "), 25_000)
	for _, c := range []net.Conn{a, b} {
		go func() {
			c.Write(want)
			c.(interface{ CloseWrite() error }).CloseWrite()
		}()
	}
	for _, c := range []net.Conn{a, b} {
		if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes arrived, want %d; %v", len(got), len(want), err)
		}
	}
}

func TestClosedPortRefusesAtOnce(t *testing.T) {
	usertest.AsUser(t)
	p := publish(t)
	for _, tc := range []struct {
		kind           handoff.SocketKind
		client, server string
	}{
		{handoff.SocketTCP4, "203.0.113.7:40000", "127.0.0.1:9"},
		{handoff.SocketTCP4, "203.0.113.7:40001", "10.0.2.100:9"},
		{handoff.SocketTCP6, "[2001:db8::7]:40000", "[::1]:9"},
		{handoff.SocketTCP6, "[2001:db8::7]:40001", "[fd00::100]:9"},
	} {
		fd := p.sockets(t, tc.kind, 1)[0]
		err := dial(fd, netip.MustParseAddrPort(tc.client), netip.MustParseAddrPort(tc.server))
		if !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%s to %s: %v, want ECONNREFUSED", tc.client, tc.server, err)
		}
		unix.Close(fd)
	}
}

// plainUDP is a server's UDP socket in the target.
func plainUDP(t *testing.T, target *Target, addr netip.AddrPort) int {
	t.Helper()
	domain := unix.AF_INET
	if addr.Addr().Is6() {
		domain = unix.AF_INET6
	}
	var f *os.File
	v := target.newVisit(1)
	v.socket("open a UDP socket", &f, domain, unix.SOCK_DGRAM, 0)
	v.script.Send(v.sent)
	if err := target.pay(v); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := unix.Bind(int(f.Fd()), sockaddr(addr)); err != nil {
		t.Fatal(err)
	}
	return int(f.Fd())
}

// readable waits for a datagram.
func readable(fd int, patience time.Duration) bool {
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	deadline := time.Now().Add(patience)
	for {
		n, err := unix.Poll(poll, int(time.Until(deadline).Milliseconds()))
		if err != unix.EINTR {
			return err == nil && n == 1
		}
	}
}

func TestClientAddressUDP(t *testing.T) {
	usertest.AsUser(t)
	p := publish(t)
	for _, tc := range []struct{ client, server, target string }{
		{"203.0.113.9:5555", "127.0.0.1:5300", "127.0.0.1:5300"},
		{"203.0.113.9:53", "127.0.0.2:5301", "127.0.0.2:5301"},
		{"[2001:db8::9]:5555", "[::1]:5300", "[::1]:5300"},
		{"127.0.0.1:777", "127.0.0.1:5302", "127.0.0.1:5302"},
		{"[::1]:777", "[::1]:5302", "[::1]:5302"},
	} {
		t.Run(tc.client+" to "+tc.server, func(t *testing.T) {
			client, target := netip.MustParseAddrPort(tc.client), netip.MustParseAddrPort(tc.target)
			server := plainUDP(t, p.target, netip.MustParseAddrPort(tc.server))
			kind := handoff.SocketUDP4
			if client.Addr().Is6() {
				kind = handoff.SocketUDP6
			}
			fd := p.sockets(t, kind, 1)[0]
			defer unix.Close(fd)
			if err := dial(fd, client, target); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(fd, []byte("question")); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			if !readable(server, 10*time.Second) {
				t.Fatal("the datagram did not arrive")
			}
			n, from, err := unix.Recvfrom(server, buf, 0)
			if err != nil || string(buf[:n]) != "question" || addrPort(from) != client {
				t.Fatalf("%q from %v, %v", buf[:n], addrPort(from), err)
			}
			if err := unix.Sendto(server, []byte("answer"), 0, from); err != nil {
				t.Fatal(err)
			}
			if !readable(fd, 10*time.Second) {
				t.Fatal("the answer did not arrive")
			}
			if n, err := unix.Read(fd, buf); err != nil || string(buf[:n]) != "answer" {
				t.Errorf("%q, %v", buf[:n], err)
			}
		})
	}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// A closed UDP port's ICMP error reaches the client's socket.
func TestClosedUDPPort(t *testing.T) {
	usertest.AsUser(t)
	p := publish(t)
	for _, tc := range []struct {
		kind           handoff.SocketKind
		client, target string
	}{
		{handoff.SocketUDP4, "203.0.113.9:5555", "127.0.0.1:9"},
		{handoff.SocketUDP6, "[2001:db8::9]:5555", "[::1]:9"},
	} {
		fd := p.sockets(t, tc.kind, 1)[0]
		defer unix.Close(fd)
		if err := dial(fd, netip.MustParseAddrPort(tc.client), netip.MustParseAddrPort(tc.target)); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(fd, []byte("question")); err != nil {
			t.Fatal(err)
		}
		if !readable(fd, 10*time.Second) {
			t.Fatalf("%s: no ICMP error", tc.target)
		}
		if _, err := unix.Read(fd, make([]byte, 1)); err != unix.ECONNREFUSED {
			t.Errorf("%s: %v, want ECONNREFUSED", tc.target, err)
		}
	}
}

// PreparePublishing repairs what somebody flushed, adds nothing twice and leaves
// the rules of others alone.
func TestPreparePublishingAgain(t *testing.T) {
	usertest.AsUser(t)
	if _, err := os.Stat("/usr/sbin/ip"); err != nil {
		usertest.Missing(t, "needs ip: %v", err)
	}
	p := publish(t)
	ip := func(script string) string { return output(t, p.target, shell("PATH=/usr/sbin:$PATH;"+script)) }
	ip("ip rule add fwmark 0x1050/0x10ff lookup 52 priority 5210; ip route add 192.0.2.0/24 dev tap0 table 52")
	const show = "for f in -4 -6; do ip $f rule show; ip $f route show table all; done | grep -e lookup -e 20560 -e 192.0.2"
	want := ip(show)
	for _, part := range []string{
		"50:\tfrom all fwmark 0x1050/0x10ff lookup 20560\n",
		"50:\tfrom 127.0.0.0/8 ipproto udp lookup 20560\n",
		"50:\tfrom ::1 ipproto udp lookup 20560\n",
		"50:\tfrom 127.0.0.0/8 ipproto icmp lookup 20560\n",
		"50:\tfrom ::1 ipproto ipv6-icmp lookup 20560\n",
		"local default dev lo table 20560",
		"5210:\tfrom all fwmark 0x1050/0x10ff lookup 52",
	} {
		if !strings.Contains(want, part) {
			t.Errorf("missing: %q in\n%s", part, want)
		}
	}
	for _, damage := range []string{
		"true", "ip rule del pref 50", "ip -6 rule del pref 50; ip -6 rule del pref 50; ip -6 rule del pref 50", "ip -6 route flush table 20560",
		"ip route flush table 20560; ip route add unreachable default table 20560", "ip link set lo down",
	} {
		ip(damage)
		if err := p.target.PreparePublishing(); err != nil {
			t.Errorf("after %q: %v", damage, err)
		}
		if got := ip(show); lines(got) != lines(want) {
			t.Errorf("after %q:\n%s\nwant\n%s", damage, got, want)
		}
	}
}

// lines sorts, since rules of one priority are in the order of their making.
func lines(s string) string {
	l := strings.Split(s, "\n")
	slices.Sort(l)
	return strings.Join(l, "\n")
}

// A namespace whose IPv6 is off can be prepared all the same.
func TestPreparePublishingWithoutIPv6(t *testing.T) {
	usertest.AsUser(t)
	p := publish(t)
	output(t, p.target, shell("for f in all default lo; do echo 1 >/proc/sys/net/ipv6/conf/$f/disable_ipv6 || exit; done"))
	if err := p.target.PreparePublishing(); err != nil {
		t.Error(err)
	}
}

// What the drivers have to know: a UDP server that is bound to no address and does
// not ask where a datagram came to (IP_PKTINFO) answers from the address that its
// route to the client has. The answer to one who came to loopback leaves by the
// default route, with the container's address.
func TestUnboundUDPServerAnswersByTheDefaultRoute(t *testing.T) {
	usertest.AsUser(t)
	p := publish(t)
	for _, tc := range []struct {
		kind                   handoff.SocketKind
		client, server, target string
	}{
		{handoff.SocketUDP4, "203.0.113.9:5555", "0.0.0.0:5300", "127.0.0.1:5300"},
		{handoff.SocketUDP6, "[2001:db8::9]:5555", "[::]:5301", "[::1]:5301"},
	} {
		server := plainUDP(t, p.target, netip.MustParseAddrPort(tc.server))
		fd := p.sockets(t, tc.kind, 1)[0]
		defer unix.Close(fd)
		if err := dial(fd, netip.MustParseAddrPort(tc.client), netip.MustParseAddrPort(tc.target)); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(fd, []byte("question")); err != nil || !readable(server, 10*time.Second) {
			t.Fatalf("%s: the datagram did not arrive (%v)", tc.target, err)
		}
		_, from, err := unix.Recvfrom(server, make([]byte, 100), 0)
		if err != nil || addrPort(from).String() != tc.client {
			t.Fatalf("from %v, %v", addrPort(from), err)
		}
		if err := unix.Sendto(server, []byte("answer"), 0, from); err != nil {
			t.Fatal(err)
		}
		// The question for the gateway's MAC address is the answer's first step.
		gateway := netip.MustParseAddr("10.0.2.2").AsSlice()
		if tc.kind == handoff.SocketUDP6 {
			gateway = netip.MustParseAddr("fd00::2").AsSlice()
		}
		deadline := time.Now().Add(10 * time.Second)
		asked := false
		for !asked && time.Now().Before(deadline) {
			frame := make([]byte, 2048)
			if n, _, err := unix.Recvfrom(int(p.far.Fd()), frame, unix.MSG_DONTWAIT); err == nil {
				asked = bytes.Contains(frame[:n], gateway)
			} else {
				readable(int(p.far.Fd()), time.Second)
			}
		}
		if !asked || readable(fd, 50*time.Millisecond) {
			t.Errorf("%s: left by the interface: %t; or it came to the client's socket", tc.server, asked)
		}
	}
}
