package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
)

// nestedPorts are rules that send published ports on to a nested container: 8080 to its
// server, 8081 to a port of it that is closed.
var nestedPorts = map[string][]string{
	"portmap": portmapRules("iptables", "10.88.0.2", "10.88.0.0/16", "127.0.0.1", portmapRules("ip6tables", "[fd88::2]", "fd88::/64", "::1", nil)),
	"nft": {
		"nft add table inet cni",
		"nft add chain inet cni out { type nat hook output priority -100; }",
		"nft add rule inet cni out fib daddr type local tcp dport 8080 meta nfproto ipv4 dnat ip to 10.88.0.2:80",
		"nft add rule inet cni out fib daddr type local tcp dport 8080 meta nfproto ipv6 dnat ip6 to [fd88::2]:80",
		"nft add rule inet cni out fib daddr type local tcp dport 8081 meta nfproto ipv4 dnat ip to 10.88.0.2:81",
		"nft add rule inet cni out fib daddr type local tcp dport 8081 meta nfproto ipv6 dnat ip6 to [fd88::2]:81",
	},
	// Docker 20.10 spares the loopback, where its proxy listens.
	"docker": {
		"iptables -t nat -N DOCKER",
		"iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER",
		"iptables -t nat -A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER",
		"iptables -t nat -A POSTROUTING -s 10.88.0.0/16 ! -o cni0 -j MASQUERADE",
		"iptables -t nat -A DOCKER -i cni0 -j RETURN",
		"iptables -t nat -A DOCKER ! -i cni0 -p tcp --dport 8080 -j DNAT --to-destination 10.88.0.2:80",
		"iptables -t nat -A DOCKER ! -i cni0 -p tcp --dport 8081 -j DNAT --to-destination 10.88.0.2:81",
	},
}

// portmapRules are those of CNI's portmap plugin.
func portmapRules(program, to, net, lo string, more []string) []string {
	var list []string
	for _, rule := range []string{
		"-N CNI-DN", "-N CNI-SETMARK", "-N CNI-MASQ",
		"-A CNI-SETMARK -j MARK --set-xmark 0x2000/0x2000",
		"-A CNI-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE",
		"-A POSTROUTING -j CNI-MASQ",
		"-A OUTPUT -m addrtype --dst-type LOCAL -j CNI-DN",
		"-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-DN",
		"-A CNI-DN -s " + net + " -p tcp --dport 8080 -j CNI-SETMARK",
		"-A CNI-DN -s " + lo + " -p tcp --dport 8080 -j CNI-SETMARK",
		"-A CNI-DN -s " + lo + " -p tcp --dport 8081 -j CNI-SETMARK",
		"-A CNI-DN -p tcp --dport 8080 -j DNAT --to-destination " + to + ":80",
		"-A CNI-DN -p tcp --dport 8081 -j DNAT --to-destination " + to + ":81",
	} {
		list = append(list, program+" -t nat "+rule)
	}
	return append(list, more...)
}

// nestedServerRole: RULES — nests a container with a witness at port 80, and has another
// beside it at 9090.
func nestedServerRole(args []string) error {
	ns, err := nest(nestedPorts[args[0]])
	if err != nil {
		return err
	}
	err = errors.Join(ns.do(func() error { return errors.Join(testify("tcp4", "0.0.0.0:80"), testify("tcp6", "[::]:80")) }),
		testify("tcp4", "0.0.0.0:9090"), testify("tcp6", "[::]:9090"))
	if args[0] == "portmap" { // as the plugin does, for clients on the loopback
		err = errors.Join(err, sysctl("net/ipv4/conf/cni0/route_localnet", "1"))
	}
	if err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// nestedPublished are the ports of the tests on the host, by where they lead in the
// container: its address and its loopback.
var nestedPublished = []struct {
	name         string
	loopback     bool
	good, closed int // of the nested container
	beside       int // of the server beside it
	none         int // nobody's
}{
	{"container address", false, 8180, 8181, 8190, 8199},
	{"container loopback", true, 8280, 8281, 8290, 8299},
}

func nestedSpecs() (specs []string) {
	for _, p := range nestedPublished {
		to := [2]string{}
		if p.loopback {
			to = [2]string{"127.0.0.1:", "[::1]:"}
		}
		for host, inside := range map[int]int{p.good: 8080, p.closed: 8081, p.beside: 9090, p.none: 9999} {
			specs = append(specs, fmt.Sprintf("0.0.0.0:%d:%s%d", host, to[0], inside), fmt.Sprintf("[::]:%d:%s%d", host, to[1], inside))
		}
	}
	return specs
}

// TestPublishedNested: a server behind a bridge in the container, to which somebody's
// destination NAT sends a published port on, sees its clients; forwarding and bridge
// come after the start. What has no server resets, and a server beside it is as before.
func TestPublishedNested(t *testing.T) {
	tool(t, "nft")
	tool(t, "iptables")
	for _, rules := range []string{"portmap", "nft", "docker"} {
		for _, s := range []setting{{"run", "tap", "splice"}, {"attach", "packet", "splice"}} {
			t.Run(rules+"/"+s.String(), func(t *testing.T) {
				i := s.begin(t, ordinary(t), nestedSpecs()...)
				i.stand(t, "@nestserve", rules)
				nestedVisits(t, rules)
				// An engine that is new finds it so.
				i.mayTalk = true
				kill(t, i.mustStatus(t).EnginePID)
				if err := eventually(patience, func() error { _, err := client{limit: patience}.ask("tcp4", "127.0.0.1:8190"); return err }); err != nil {
					t.Fatal(err)
				}
				nestedVisits(t, rules)
			})
		}
	}
}

func nestedVisits(t *testing.T, rules string) {
	t.Helper()
	for _, p := range nestedPublished {
		for family := range 2 {
			for _, v := range visitors {
				c := client{limit: patience}
				if v.from[0] == remote4 {
					c.ns = lab.remote
				}
				network := []string{"tcp4", "tcp6"}[family]
				to := func(port int) string { return net.JoinHostPort(v.to[family], fmt.Sprint(port)) }
				what := fmt.Sprintf("%s, %s, %s", network, v.name, p.name)
				for port, want := range map[int]string{p.good: nestedShown(rules, v, family, p.loopback), p.beside: v.shown(family, p.loopback)} {
					if want == "" {
						continue
					}
					a, err := c.ask(network, to(port))
					if err != nil || a.seen.Addr() != netip.MustParseAddr(want) {
						t.Errorf("%s, port %d: the server saw %v, %v; want %s", what, port, a.seen, err, want)
					}
				}
				for _, port := range []int{p.closed, p.none} {
					if port == p.closed && rules != "docker" && nestedShown(rules, v, family, p.loopback) == "" {
						continue
					}
					// The reset comes before or after the client's own end.
					if a, err := c.ask(network, to(port)); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.ENOTCONN) {
						t.Errorf("%s, closed port %d: %v, %v; want a reset", what, port, a.seen, err)
					}
				}
			}
		}
	}
}

// nestedShown is whom the nested server sees; empty where the rules do not send on what
// goes there, or the kernel cannot.
func nestedShown(rules string, v visitor, family int, toLoopback bool) string {
	shown := v.shown(family, toLoopback)
	switch {
	case rules == "docker" && (family == 1 || toLoopback):
		return "" // no rules for IPv6, nor for the loopback
	case shown != loopbacks[family]:
		return shown
	case rules == "portmap" && family == 0:
		return bridge4 // masqueraded, as for a client in there
	}
	return "" // the kernel routes no other loopback address to a bridge
}
