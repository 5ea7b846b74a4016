package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Addresses of the bridge inside the container, as CNI's bridge plugin gives them, and
// of the container behind it.
const (
	bridge4, nested4 = "10.88.0.1", "10.88.0.2"
	bridge6, nested6 = "fd88::1", "fd88::2"
)

// nestedRules are the rules of those who nest containers, by who makes them.
var nestedRules = map[string][]string{
	// Podman's netavark and nerdctl with CNI's nftables backend.
	"nft": {
		"nft add table inet cni",
		"nft add chain inet cni post { type nat hook postrouting priority srcnat; }",
		"nft add rule inet cni post ip saddr 10.88.0.0/16 ip daddr != 10.88.0.0/16 masquerade",
		"nft add rule inet cni post ip6 saddr fd88::/64 ip6 daddr != fd88::/64 masquerade",
	},
	// Docker: moby's libnetwork, with what it does to OUTPUT and FORWARD.
	"iptables": {
		"iptables -t nat -N DOCKER", "ip6tables -t nat -N DOCKER",
		"iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
		"iptables -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER",
		"iptables -t nat -A DOCKER ! -i cni0 -p tcp --dport 8088 -j DNAT --to-destination 10.88.0.2:7",
		"iptables -t nat -A POSTROUTING -s 10.88.0.0/16 ! -o cni0 -j MASQUERADE",
		"ip6tables -t nat -A POSTROUTING -s fd88::/64 ! -o cni0 -j MASQUERADE",
		"iptables -P FORWARD DROP", "ip6tables -P FORWARD DROP",
		"iptables -A FORWARD -i cni0 -j ACCEPT", "ip6tables -A FORWARD -i cni0 -j ACCEPT",
		"iptables -A FORWARD -o cni0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		"ip6tables -A FORWARD -o cni0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
		"iptables -A FORWARD -o cni0 -p tcp --dport 7 -j ACCEPT",
		// kube-proxy and CNI's portmap mark what they will masquerade.
		"iptables -t nat -A OUTPUT -p tcp --dport 7 -j MARK --set-xmark 0x4000/0x4000",
	},
}

// nest makes a bridge, a container behind it, and somebody's rules.
func nest(rules []string) (*netns, error) {
	ns, err := newNetNS()
	if err != nil {
		return nil, err
	}
	var tid int
	if err := ns.do(func() error { tid = unix.Gettid(); return nil }); err != nil {
		return nil, err
	}
	err = errors.Join(
		sysctl("net/ipv4/ip_forward", "1"), sysctl("net/ipv6/conf/all/forwarding", "1"),
		ip("link add cni0 type bridge", "addr add "+bridge4+"/16 dev cni0", "addr add "+bridge6+"/64 dev cni0 nodad", "link set cni0 up",
			fmt.Sprintf("link add veth0 type veth peer name eth0 netns %d", tid), "link set veth0 master cni0", "link set veth0 up"),
		ns.do(func() error {
			return ip("link set lo up", "addr add "+nested4+"/16 dev eth0", "addr add "+nested6+"/64 dev eth0 nodad", "link set eth0 up",
				"route add default via "+bridge4, "-6 route add default via "+bridge6)
		}))
	for _, line := range rules {
		fields := strings.Fields(line)
		if out, runErr := exec.Command(fields[0], fields[1:]...).CombinedOutput(); runErr != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w: %s", line, runErr, out))
		}
	}
	return ns, err
}

// nestedRole: RULES N — nests a container; opens N connections from it to the remote
// and holds them, as @hold does. Its UDP and its name service work too, and so does
// what is between it and the sockets of the namespace that it is nested in.
func nestedRole(args []string) error {
	ns, err := nest(nestedRules[args[0]])
	if err != nil {
		return err
	}
	o, err := parseHold([]string{"n=" + args[1]})
	if err != nil {
		return err
	}
	err = eventually(patience, func() error { // the bridge's port learns that it may forward
		return ns.do(func() error { return errors.Join(oneEcho(remote4, "up?"), oneEcho(remote6, "up?")) })
	})
	if err != nil {
		return fmt.Errorf("the nested container's network does not come up: %w", err)
	}
	var took []time.Duration
	held, slowest, err := holdAll(o, func(n int) (c net.Conn, err error) {
		start := time.Now()
		err = ns.do(func() error {
			c, err = net.DialTimeout("tcp", net.JoinHostPort([]string{remote4, remote6}[n%2], portEcho), patience)
			return err
		})
		took = append(took, time.Since(start)) // one after the other
		return c, err
	})
	if err != nil {
		return err
	}
	fmt.Printf("ready %d %d\n", median(took).Milliseconds(), slowest.Milliseconds())
	_, _ = io.Copy(io.Discard, os.Stdin)
	good, err := echoAll(held, patience)
	fmt.Printf("%d of %d echo again\n", good, len(held))
	return errors.Join(err, nestedDatagrams(ns), nestedService(ns, args[0]))
}

// nestedDatagrams exchanges more datagrams from the nested container than an express
// flow needs to come about.
func nestedDatagrams(ns *netns) error {
	for _, addr := range []string{remote4, remote6} {
		var c net.Conn
		err := ns.do(func() (err error) { c, err = net.Dial("udp", net.JoinHostPort(addr, portEcho)); return err })
		if err != nil {
			return err
		}
		defer c.Close()
		for n := range 200 {
			if err := echoOnce(c, fmt.Sprint("datagram ", n), patience); err != nil {
				return fmt.Errorf("nested datagram %d to %s: %w", n, addr, err)
			}
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var text []string
	err := ns.do(func() (err error) {
		text, err = lookup(ctx, "10.0.2.3", "A", "web.e2e.test")
		return err
	})
	fmt.Println("web.e2e.test:", text)
	return err
}

// nestedService has the outer namespace's sockets use servers in the nested container,
// over the bridge and through a published port.
func nestedService(ns *netns, rules string) error {
	var l net.Listener
	var u net.PacketConn
	err := ns.do(func() (err error) {
		if l, err = net.Listen("tcp", ":"+portEcho); err != nil {
			return err
		}
		u, err = net.ListenPacket("udp", ":"+portEcho)
		return err
	})
	if err != nil {
		return err
	}
	defer l.Close()
	defer u.Close()
	go acceptAll(l, echoTCP)
	go echoUDP(u)
	for n := range 20 {
		for _, addr := range []string{nested4, nested6} {
			if err := oneEcho(addr, fmt.Sprint("inside ", n)); err != nil {
				return fmt.Errorf("to the nested container: %w", err)
			}
		}
	}
	c, err := net.Dial("udp", net.JoinHostPort(nested4, portEcho))
	if err != nil {
		return err
	}
	defer c.Close()
	for n := range 200 {
		if err := echoOnce(c, fmt.Sprint("datagram ", n), patience); err != nil {
			return fmt.Errorf("datagram %d to the nested container: %w", n, err)
		}
	}
	if rules != "iptables" {
		return nil
	}
	published, err := net.DialTimeout("tcp", "10.0.2.100:8088", patience)
	if err != nil {
		return fmt.Errorf("the published port of the nested container: %w", err)
	}
	defer published.Close()
	return echoOnce(published, "published", patience)
}

// nestedConnect is how long a nested container's connects may take, most of them: nothing
// waits for the express path before it goes the universal one. On a busy machine one may
// take longer; that it did not wait is counted.
const nestedConnect = 100 * time.Millisecond

// TestExpressNested: a container nested in the namespace keeps its network, without a
// delay, while the namespace's own sockets go express.
func TestExpressNested(t *testing.T) {
	tool(t, "nft")
	tool(t, "iptables")
	for n, rules := range []string{"nft", "iptables"} {
		for _, h := range []highway{{"run", "tap", 65520, "express"}, {"attach", "packet", 1500, "express"}} {
			t.Run(rules+"/"+h.String(), func(t *testing.T) {
				i := h.begin(t, ordinary(t))
				if n == 1 { // rules that are there already, and rules that come later
					i.awaitExpress(t)
				}
				waited := func() uint64 { return i.express(t).Counters["tcp_express_unanswered"] }
				before := waited()
				nested := i.stand(t, "@nested", rules, "20")
				i.awaitFlows(t, 20, 0)
				if now := waited(); now != before {
					t.Errorf("%d nested connects have waited for the express path", now-before)
				}
				own := i.stand(t, "@hold", "addr="+remote4, "n=10")
				own6 := i.stand(t, "@hold", "addr="+remote6, "n=10")
				i.awaitFlows(t, 40, 20)
				var ms, slowest int
				if _, err := fmt.Sscanf(nested.first, "ready %d %d", &ms, &slowest); err != nil || time.Duration(ms)*time.Millisecond > nestedConnect {
					t.Errorf("median nested connect %d ms, want %v at most (%v)", ms, nestedConnect, err)
				}
				t.Logf("nested connects: median %d ms, slowest %d ms; own: %s %s", ms, slowest, own.first, own6.first)
				t.Log(own.end(t), "; ", own6.end(t), "; ", nested.end(t))
				i.awaitExpress(t)
				s := i.express(t)
				if s.EngineRestarts != 0 {
					t.Errorf("the engine died %d times", s.EngineRestarts)
				}
				t.Log(about(s.Counters, "express"), about(s.Counters, "drop"))
			})
		}
	}
}

// awaitExpress waits until new connections of the namespace's own go express.
func (i *inst) awaitExpress(t testing.TB) {
	t.Helper()
	var flows any
	err := eventually(patience, func() error {
		before := i.express(t).Counters["tcp_express"]
		held := i.stand(t, "@hold", "addr="+remote4, "n=3")
		defer held.end(t)
		s := i.express(t)
		flows = s.Flows
		// The engine may have been replaced, and counts anew.
		return failIf(s.Flows.Express < 3 || s.Counters["tcp_express"] == before, "%v", about(s.Counters, "express"))
	})
	if err != nil {
		t.Errorf("no connection goes express: %v; flows %+v", err, flows)
	}
}
