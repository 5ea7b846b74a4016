package express

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/fdpass"
	"github.com/postern-net/postern/userns/internal/usertest"
	"github.com/postern-net/postern/userns/join"
	"github.com/postern-net/postern/userns/rtnl"
)

// behind is a container nested behind a bridge, with servers.
type behind struct {
	*world
	// servers are in the nested container (port 80) and beside it (port 9090), by family.
	inner, outer [2]*os.File
}

var (
	bridges = [2]netip.Addr{netip.MustParseAddr("10.88.0.1"), netip.MustParseAddr("fd88::1")}
	nesteds = [2]netip.Addr{netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("fd88::2")}
	clients = [2]netip.Addr{netip.MustParseAddr("198.51.100.7"), netip.MustParseAddr("2001:db8:9::7")}
	kinds   = [2]handoff.SocketKind{handoff.SocketTCP4, handoff.SocketTCP6}
)

// natRulesOf are who else's rules send ports on: 8080 to the nested server, 8081 to a
// closed port of the nested container, 8082 to the server beside it.
var natRulesOf = map[string]string{
	"portmap, iptables-nft":    portmap("iptables-nft", "ip6tables-nft"),
	"portmap, iptables-legacy": "export XTABLES_LOCKFILE=$(mktemp);" + portmap("iptables-legacy", "ip6tables-legacy") + "rm $XTABLES_LOCKFILE\n",
	"nft": `nft -f - <<'RULES'
table inet other {
	chain ports {
		tcp dport 8080 meta nfproto ipv4 dnat ip to 10.88.0.2:80
		tcp dport 8080 meta nfproto ipv6 dnat ip6 to [fd88::2]:80
		tcp dport 8081 meta nfproto ipv4 dnat ip to 10.88.0.2:81
		tcp dport 8081 meta nfproto ipv6 dnat ip6 to [fd88::2]:81
		tcp dport 8082 redirect to :9090
	}
	chain output { type nat hook output priority -100; fib daddr type local jump ports; }
	chain prerouting { type nat hook prerouting priority dstnat; fib daddr type local jump ports; }
	chain postrouting { type nat hook postrouting priority srcnat; oif lo masquerade; }
}
RULES
`,
}

// portmap are the rules of CNI's portmap plugin, as it writes them.
func portmap(v4, v6 string) string {
	const rules = `set -e
	$T -t nat -N DN; $T -t nat -N SETMARK; $T -t nat -N MASQ
	$T -t nat -A SETMARK -j MARK --set-xmark 0x2000/0x2000
	$T -t nat -A MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE; $T -t nat -A POSTROUTING -j MASQ
	$T -t nat -A OUTPUT -m addrtype --dst-type LOCAL -j DN; $T -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DN
	$T -t nat -A DN -s $NET -p tcp --dport 8080 -j SETMARK; $T -t nat -A DN -s $LO -p tcp --dport 8080 -j SETMARK
	$T -t nat -A DN -p tcp --dport 8080 -j DNAT --to-destination $IN:80
	$T -t nat -A DN -p tcp --dport 8081 -j DNAT --to-destination $IN:81
	$T -t nat -A DN -p tcp --dport 8082 -j REDIRECT --to-ports 9090
	`
	return "T=" + v4 + " NET=10.88.0.0/16 LO=127.0.0.1 IN=10.88.0.2;" + rules +
		"T=" + v6 + " NET=fd88::/64 LO=::1 IN=[fd88::2];" + rules + "echo 1 >/proc/sys/net/ipv4/conf/br0/route_localnet\n"
}

// newBehind makes a world with the express path and published ports, and then a bridge.
func newBehind(t *testing.T) *behind {
	t.Helper()
	w := newWorld(t, endpoints[1])
	w.express(t)
	check(t, w.target.PreparePublishing())
	b := &behind{world: w}
	for n := range b.outer {
		b.outer[n] = listenIn(t, w.target, n, 9090)
	}
	return b
}

func listenIn(t *testing.T, target *join.Target, family int, port uint16) *os.File {
	t.Helper()
	all := [2]netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	f, err := target.Listen(kinds[family], netip.AddrPortFrom(all[family], port))
	check(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// nest makes the bridge, and the nested container behind it.
func (b *behind) nest(t *testing.T, rules string) {
	t.Helper()
	s, err := b.target.Open(join.Request{Packet: true})
	check(t, err)
	t.Cleanup(func() { s.Close() })
	check(t, rtnl.AddVeth(s.Route, "in0", "eth0", s.FarNetNS))
	b.in(t, `set -e; echo 1 >/proc/sys/net/ipv4/ip_forward; echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
		ip link add br0 type bridge; ip addr add 10.88.0.1/16 dev br0; ip addr add fd88::1/64 dev br0 nodad
		ip link set in0 master br0; ip link set in0 up; ip link set br0 up`)
	_, err = rtnl.Configure(s.FarRoute, rtnl.Interface{Name: "eth0", MTU: 1500,
		Addrs: []netip.Prefix{netip.PrefixFrom(nesteds[0], 16), netip.PrefixFrom(nesteds[1], 64)}, Gateways: bridges[:]})
	check(t, err)
	inside := b.inside(t, s.FarNetNS)
	for n := range b.inner {
		b.inner[n] = listenIn(t, inside, n, 80)
	}
	b.in(t, rules)
}

// awaitNested does what the supervisor does.
func (b *behind) awaitNested(t *testing.T) {
	t.Helper()
	wake, stop, err := os.Pipe()
	check(t, err)
	defer wake.Close()
	timer := time.AfterFunc(patience, func() { stop.Close() })
	defer timer.Stop()
	defer stop.Close()
	check(t, b.path.AwaitNested(wake))
	check(t, b.path.Nest())
}

// client connects as splice does. The error is connect's.
func (b *behind) client(t *testing.T, family int, from netip.Addr, to netip.AddrPort) (fd int, err error) {
	t.Helper()
	fd = b.published(t, kinds[family])
	check(t, unix.Bind(fd, sockaddr(netip.AddrPortFrom(from, 0))))
	err = unix.Connect(fd, sockaddr(to))
	if err == unix.EINPROGRESS {
		if !ready(fd, unix.POLLOUT, patience) {
			return fd, unix.ETIMEDOUT
		}
		err = unix.Connect(fd, sockaddr(to))
	}
	if err == unix.EISCONN {
		err = nil
	}
	return fd, err
}

// published gets a socket of a published port.
func (b *behind) published(t *testing.T, kind handoff.SocketKind) int {
	t.Helper()
	to, from, err := fdpass.Pair()
	check(t, err)
	defer to.Close()
	conn, err := fdpass.NewConn(from)
	check(t, err)
	defer conn.Close()
	check(t, b.target.SendSockets(to, kind, 1))
	conn.SetDeadline(time.Now().Add(patience))
	_, fds, err := conn.RecvRaw(make([]byte, 8), nil)
	if err != nil || len(fds) != 1 {
		t.Fatalf("%d sockets, %v", len(fds), err)
	}
	t.Cleanup(func() { unix.Close(fds[0]) })
	return fds[0]
}

// meets accepts the connection at the server, sees whose it is, and sends both ways.
func meets(t *testing.T, what string, server *os.File, client int, want netip.Addr) int {
	t.Helper()
	if !ready(int(server.Fd()), unix.POLLIN, patience) {
		t.Fatalf("%s: nothing to accept", what)
	}
	s, peer, err := unix.Accept(int(server.Fd()))
	check(t, err)
	t.Cleanup(func() { unix.Close(s) })
	if got := addrPort(peer).Addr(); got != want {
		t.Errorf("%s: the server sees %s, want %s", what, got, want)
	}
	both(t, what, client, s)
	return s
}

// both sends more than a segment each way.
func both(t *testing.T, what string, a, b int) {
	t.Helper()
	data := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
	for _, pair := range [][2]int{{a, b}, {b, a}} {
		for sent, got := 0, 0; got < len(data); {
			if n, err := unix.SendmsgN(pair[0], data[sent:], nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL); err == nil {
				sent += n
			}
			if !ready(pair[1], unix.POLLIN, patience) {
				t.Fatalf("%s: %d of %d bytes came", what, got, len(data))
			}
			buf := make([]byte, len(data))
			n, err := unix.Read(pair[1], buf)
			if err != nil || n == 0 {
				t.Fatalf("%s: after %d bytes: %d, %v", what, got, n, err)
			}
			got += n
		}
	}
}

// A published port leads through other people's destination NAT to a nested container,
// which sees the client; a port without a server refuses, and servers beside it stay.
func TestPublishedToNested(t *testing.T) {
	needs(t, "nft", "ip", "iptables-nft", "iptables-legacy")
	usertest.AsUser(t)
	for name, rules := range natRulesOf {
		t.Run(name, func(t *testing.T) {
			b := newBehind(t)
			b.nest(t, rules)
			b.awaitNested(t)
			check(t, b.path.Repair()) // stays
			b.cases(t)
			b.works(t)
		})
	}
}

// cases are the ways to go.
func (b *behind) cases(t *testing.T) {
	t.Helper()
	addrs := [2][]netip.Addr{{netip.MustParseAddr("127.0.0.1"), container4}, {netip.IPv6Loopback(), container6}}
	for family := range addrs {
		from := clients[family]
		for _, addr := range addrs[family] {
			for port, server := range map[uint16]*os.File{8080: b.inner[family], 8082: b.outer[family], 9090: b.outer[family], 8081: nil, 9999: nil} {
				to := netip.AddrPortFrom(addr, port)
				fd, err := b.client(t, family, from, to)
				switch {
				case server == nil && err != unix.ECONNREFUSED:
					t.Errorf("%s: %v, want ECONNREFUSED", to, err)
				case server != nil && err != nil:
					t.Errorf("%s: %v", to, err)
				case server != nil:
					meets(t, to.String(), server, fd, from)
				}
			}
		}
	}
	if list := b.to(clients[0]); len(list) != 0 {
		t.Errorf("the interface saw packets to the client: %s", describe(list))
	}
}

// What begins before there is a nested network goes on, whoever sends next, although
// rules would send new connections to the same port on; so do sockets that wait in
// stock.
func TestPublishedBeforeNested(t *testing.T) {
	needs(t, "nft", "ip", "iptables-nft", "iptables-legacy")
	usertest.AsUser(t)
	for name, rules := range natRulesOf {
		t.Run(name, func(t *testing.T) {
			b := newBehind(t)
			type pair struct{ client, server int }
			var old []pair
			to := [2]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8080"), netip.MustParseAddrPort("[::1]:8080")}
			for family := range to {
				server := listenIn(t, b.target, family, 8080)
				for range 2 {
					fd, err := b.client(t, family, clients[family], to[family])
					check(t, err)
					old = append(old, pair{fd, meets(t, "before", server, fd, clients[family])})
				}
			}
			stocked := [2]int{b.published(t, kinds[0]), b.published(t, kinds[1])}
			b.nest(t, rules)
			b.awaitNested(t)
			for n, p := range old {
				if n%2 == 1 {
					p.client, p.server = p.server, p.client
				}
				both(t, fmt.Sprint("old connection ", n), p.client, p.server)
			}
			for family, fd := range stocked {
				check(t, unix.Bind(fd, sockaddr(netip.AddrPortFrom(clients[family], 0))))
				if err := unix.Connect(fd, sockaddr(to[family])); err != unix.EINPROGRESS {
					t.Fatal(err)
				}
				// As for every local client, NAT comes before the server.
				meets(t, "stocked", b.inner[family], fd, clients[family])
			}
		})
	}
}

// A nested container that is not there is an ICMP error of the kernel's own.
func TestPublishedToNobody(t *testing.T) {
	needs(t, "nft", "ip")
	usertest.AsUser(t)
	b := newBehind(t)
	b.nest(t, `nft -f - <<'RULES'
table inet other {
	chain output { type nat hook output priority -100; meta nfproto ipv4 tcp dport 8083 dnat ip to 10.88.0.77:80; tcp dport 8083 dnat ip6 to [fd88::77]:80; }
}
RULES
`)
	b.awaitNested(t)
	for family, to := range []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8083"), netip.AddrPortFrom(container6, 8083)} {
		if _, err := b.client(t, family, clients[family], to); err != unix.EHOSTUNREACH {
			t.Errorf("%s: %v, want EHOSTUNREACH", to, err)
		}
	}
}

// Nothing is tracked while there is no nested network, whatever is down; AwaitNested
// ends when it is told to.
func TestNotNested(t *testing.T) {
	needs(t, "nft", "ip")
	usertest.AsUser(t)
	b := newBehind(t)
	b.in(t, "ip link add br0 type bridge; echo 1 >/proc/sys/net/ipv4/ip_forward")
	wake, stop, err := os.Pipe()
	check(t, err)
	defer wake.Close()
	ended := make(chan error, 1)
	go func() { ended <- b.path.AwaitNested(wake) }()
	select {
	case err := <-ended:
		t.Errorf("found: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	if rules := b.in(t, "nft list table inet postern"); !strings.Contains(rules, "notrack") || strings.Contains(rules, "behind") {
		t.Errorf("rules:\n%s", rules)
	}
	stop.Close()
	if err := <-ended; err == nil {
		t.Error("AwaitNested ends without an error when it is told to end")
	}
	b.in(t, "nft list ruleset | grep -q notrack")
	check(t, b.path.Nest())
	if rules := b.in(t, "nft list table inet postern"); strings.Contains(rules, "notrack") || !strings.Contains(rules, "behind") {
		t.Errorf("rules of nested networks:\n%s", rules)
	}
}

// Without nft_fib or nft_nat the rules that need them are left out.
func TestNestedOfAPoorKernel(t *testing.T) {
	needs(t, "nft", "ip")
	usertest.AsUser(t)
	b := newBehind(t)
	b.nest(t, natRulesOf["nft"])
	p := b.path.plan()
	p.nested = true
	for _, has := range []parts{{flags: tableOwner, nat: true}, {flags: tableOwner, fib: true}, {flags: tableOwner}} {
		check(t, replace(b.path.nft, p, has))
		for family, to := range []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:8080"), netip.MustParseAddrPort("[::1]:8080")} {
			fd, err := b.client(t, family, clients[family], to)
			check(t, err)
			meets(t, fmt.Sprintf("%+v", has), b.inner[family], fd, clients[family])
		}
	}
}

// inside is the nested container's network namespace as a target of its own.
func (b *behind) inside(t *testing.T, netns *os.File) *join.Target {
	t.Helper()
	path := func(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }
	target, err := join.OpenPaths(path(netns), path(b.target.UserNS()))
	check(t, err)
	t.Cleanup(func() { target.Close() })
	return target
}
