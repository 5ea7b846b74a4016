package e2e

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"text/tabwriter"
)

// setting is how an instance comes to be that publishes ports.
type setting struct {
	mode     string // "run", "detached", "attach" or "path"
	endpoint string
	driver   string
}

func (s setting) String() string { return s.mode + "/" + s.endpoint + "/" + s.driver }

// begin starts the instance with rules, written as for --publish.
func (s setting) begin(t *testing.T, a account, rules ...string) *inst {
	t.Helper()
	needEndpoint(t, s.endpoint)
	flags := []string{"--endpoint", s.endpoint, "--port-driver", s.driver}
	for _, r := range rules {
		flags = append(flags, "-p", r)
	}
	switch s.mode {
	case "attach":
		f := newForeign(t, a)
		return f.attach(t, append(flags, f.pid())...)
	case "path": // of whose processes nothing is known
		f := newForeign(t, a)
		i := f.attach(t, append(flags, "--netns", "/proc/"+f.pid()+"/ns/net", "--userns", "/proc/"+f.pid()+"/ns/user")...)
		i.inside = f.pid()
		return i
	case "detached":
		flags = append(flags, "--detach-netns")
	}
	return a.start(t, "pub", flags...)
}

// splicing are the settings with sockets of the container's own, through netstack
// those without.
var (
	splicing = []setting{
		{"run", "tap", "splice"},
		{"run", "packet", "splice"},
		{"detached", "tap", "splice"},
		{"attach", "tap", "splice"},
		{"attach", "packet", "splice"},
		{"path", "tap", "splice"},
	}
	throughNetstack = []setting{
		{"run", "tap", "netstack"},
		{"run", "packet", "netstack"},
		{"attach", "tap", "netstack"},
		{"attach", "packet", "netstack"},
	}
)

// overSettings runs a test over settings.
func overSettings(t *testing.T, settings []setting, f func(t *testing.T, s setting)) {
	for _, s := range settings {
		t.Run(s.String(), func(t *testing.T) { f(t, s) })
	}
}

// visitor is a line of the table of client addresses: who asks, and whom the
// container's server sees.
type visitor struct {
	name string
	// from are the client's address, to the host's; by family.
	from, to [2]string
}

var visitors = []visitor{
	{"remote client", [2]string{remote4, remote6}, [2]string{host4, host6}},
	{"host's LAN address", [2]string{host4, host6}, [2]string{host4, host6}},
	{"loopback client", [2]string{"127.0.0.1", "::1"}, [2]string{"127.0.0.1", "::1"}},
}

var (
	gateways  = [2]string{"10.0.2.2", "fd00::2"}
	loopbacks = [2]string{"127.0.0.1", "::1"}
)

// shown is what the container sees of the visitor: its own address, except that a
// loopback client outside is not one inside.
func (v visitor) shown(family int, toLoopback bool) string {
	switch {
	case v.from[family] != loopbacks[family]:
		return v.from[family]
	case toLoopback:
		return loopbacks[family]
	}
	return gateways[family]
}

// place is a part of the table: where the rules lead, and on which host port they are.
type place struct {
	name     string
	loopback bool
	port     map[string]int
}

var places = []place{
	{"container address", false, map[string]int{"tcp": 8001, "udp": 8003}},
	{"container loopback", true, map[string]int{"tcp": 8002, "udp": 8004}},
}

// sourceRules are the rules of the table, sourceServers its witnesses.
func sourceRules(p place) (rules []string) {
	for _, proto := range []string{"tcp", "udp"} {
		to := [2]string{}
		if p.loopback {
			to = [2]string{"127.0.0.1:", "[::1]:"}
		}
		port := p.port[proto]
		rules = append(rules, fmt.Sprintf("0.0.0.0:%d:%s%d/%s", port, to[0], port, proto), fmt.Sprintf("[::]:%d:%s%d/%s", port, to[1], port, proto))
	}
	return rules
}

func sourceServers(p place) (servers []string) {
	at := [2]string{"0.0.0.0", "[::]"}
	if p.loopback {
		at = [2]string{"127.0.0.1", "[::1]"}
	}
	for _, proto := range []string{"tcp", "udp"} {
		servers = append(servers, fmt.Sprintf("%s4,%s:%d", proto, at[0], p.port[proto]), fmt.Sprintf("%s6,%s:%d", proto, at[1], p.port[proto]))
	}
	return servers
}

// TestPublishedSources is the table of client addresses: TCP and UDP, IPv4 and IPv6,
// every kind of client, servers on the container's address and on its loopback.
func TestPublishedSources(t *testing.T) {
	overSettings(t, splicing, func(t *testing.T, s setting) { sourceTable(t, s, places) })
	// Without sockets of the container's own its loopback is out of reach.
	overSettings(t, throughNetstack, func(t *testing.T, s setting) { sourceTable(t, s, places[:1]) })
}

func sourceTable(t *testing.T, s setting, places []place) {
	var rules, servers []string
	for _, p := range places {
		rules, servers = append(rules, sourceRules(p)...), append(servers, sourceServers(p)...)
	}
	i := s.begin(t, ordinary(t), rules...)
	i.witness(t, servers...)
	var table strings.Builder
	w := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "proto\tclient\tserver on\tclient's address\tthe server saw")
	for _, p := range places {
		for _, proto := range []string{"tcp", "udp"} {
			for family := range 2 {
				for _, v := range visitors {
					sourceCase(t, w, p, proto, family, v)
				}
			}
		}
	}
	_ = w.Flush()
	t.Logf("%v\n%s", s, table.String())
}

func sourceCase(t *testing.T, w *tabwriter.Writer, p place, proto string, family int, v visitor) {
	t.Helper()
	c := client{limit: patience}
	if v.from[0] == remote4 {
		c.ns = lab.remote
	}
	network := proto + []string{"4", "6"}[family]
	to := netip.AddrPortFrom(netip.MustParseAddr(v.to[family]), uint16(p.port[proto]))
	a, err := c.ask(network, to.String())
	fmt.Fprintf(w, "%s\t%s\t%s\t%v\t%v\n", network, v.name, p.name, a.own, a.seen)
	if err != nil {
		t.Errorf("%s, %s, %s: %v", network, v.name, p.name, err)
		return
	}
	want := netip.AddrPortFrom(netip.MustParseAddr(v.shown(family, p.loopback)), a.own.Port())
	if a.own.Addr().String() != v.from[family] || a.seen != want {
		t.Errorf("%s, %s, %s: client %v, the server saw %v, want %v", network, v.name, p.name, a.own, a.seen, want)
	}
}

// TestPublishedTransfer: what is published carries much, both ways at once, and an
// end of one direction.
func TestPublishedTransfer(t *testing.T) {
	overSettings(t, []setting{{"run", "tap", "splice"}, {"run", "packet", "netstack"}}, func(t *testing.T, s setting) {
		i := s.begin(t, ordinary(t), "0.0.0.0:8001:80", "[::]:8001:80")
		i.witness(t, "tcp4,0.0.0.0:80", "tcp6,[::]:80")
		for _, to := range []string{"127.0.0.1:8001", "[::1]:8001", host4 + ":8001"} {
			if got, want := echoed(t, to, publishedSize()), sumOf(publishedSize()); got != want {
				t.Errorf("through %s: %s came back, want %s", to, got, want)
			}
		}
	})
}

// publishedSize is what TestPublishedTransfer moves each way.
func publishedSize() int64 {
	if large() {
		return 1 << 30
	}
	return 32 << 20
}
