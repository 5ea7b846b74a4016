package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// attack is what a container root does to the express path.
type attack struct {
	name string
	// lines are executed by a shell inside; LISTENER stands for the port of the engine's
	// listener for IPv4.
	lines string
	// undo takes back what nobody but the container root can.
	undo string
	// broken says that connections may fail until then: what it takes is his loopback,
	// or every packet of theirs.
	broken bool
	// lacking says that nothing can go express until then, but everything the other way.
	lacking bool
}

var attacks = []attack{
	{name: "flush ruleset", lines: "nft flush ruleset"},
	{name: "delete table", lines: "nft delete table inet postern"},
	{name: "delete rules", lines: "ip rule del priority 51; ip -6 rule del priority 51; true"},
	{name: "flush routes", lines: "ip route flush table 20561; ip -6 route flush table 20561; true"},
	{name: "reverse path filter", lines: "for i in all tap0 lo; do echo 1 >/proc/sys/net/ipv4/conf/$i/rp_filter; echo 0 >/proc/sys/net/ipv4/conf/$i/accept_local; done"},
	{name: "kill listeners", lacking: true, lines: "ss -K state listening"}, // ss(8): kills sockets
	{name: "loopback down", lines: "ip link set lo down", undo: "ip link set lo up", lacking: true},
	{name: "marks cleared", undo: "nft delete table inet evil", broken: true, lines: "nft add table inet evil; nft add chain inet evil o '{ type route hook output priority -140; }';" +
		"nft add rule inet evil o meta l4proto tcp meta mark set 0"},
	{name: "loopback dropped", undo: "nft delete table inet evil", lacking: true, lines: "nft add table inet evil; nft add chain inet evil i '{ type filter hook input priority 0; }';" +
		"nft add rule inet evil i iif lo meta l4proto tcp drop"},
	{name: "conntrack bypassed", undo: "nft delete table inet evil", broken: true, lines: "nft add table inet evil; nft add chain inet evil o '{ type filter hook output priority -300; }';" +
		"nft add chain inet evil p '{ type filter hook prerouting priority -300; }'; nft add rule inet evil o notrack; nft add rule inet evil p notrack"},
	// What the manuals of firewalls recommend: a SYN that comes back is one from outside.
	{name: "firewall", undo: "nft delete table inet evil", lacking: true, lines: "nft add table inet evil; nft add chain inet evil i '{ type filter hook input priority 0; policy drop; }';" +
		"nft add rule inet evil i iif lo accept; nft add rule inet evil i ct state established,related accept; nft add rule inet evil i meta l4proto ipv6-icmp accept"},
	{name: "everything to the listener", undo: "nft delete table inet evil", broken: true, lines: "nft add table inet evil; nft add chain inet evil o '{ type route hook output priority -140; }';" +
		"nft add chain inet evil p '{ type filter hook prerouting priority -140; }'; nft add rule inet evil o meta l4proto tcp meta mark 0 meta mark set 0x1051;" +
		"nft add rule inet evil p iif lo meta l4proto tcp meta mark 0x1051 tproxy ip to 127.0.0.1:LISTENER accept"},
}

// TestExpressAttacked: container root breaks the express path. His connections fall back
// or fail, nobody else's; the engine lives, says little, and comes back to it.
func TestExpressAttacked(t *testing.T) {
	tool(t, "nft")
	tool(t, "ss")
	b := newBanners(t)
	var all sync.WaitGroup
	for n, a := range attacks {
		h := expressKinds[n%2]
		needEndpoint(t, h.endpoint)
		i := h.begin(t, ordinary(t))
		i.mayTalk = true
		all.Go(func() {
			if err := a.attempt(t, i); err != nil {
				t.Errorf("%s over %v: %v; %v; said: %s", a.name, h, err, about(i.express(t).Counters, "express"), i.stderr)
			}
		})
	}
	all.Wait()
	if peers := b.seen(); len(peers) > 0 {
		t.Errorf("the host's servers saw %s", strings.Join(peers, ", "))
	}
}

// fallbackLimit is how long a connect may take that the express path loses.
const fallbackLimit = 15 * time.Second

func (a attack) attempt(t *testing.T, i *inst) error {
	engine := i.express(t).EnginePID
	i.awaitExpress(t)
	port := i.listenerPort(t)
	old := i.stand(t, "@hold", "addr="+remote4, "n=3", "lax", "limit=5s")
	if o := i.exec(t, "sh", "-c", strings.ReplaceAll(a.lines, "LISTENER", port)); o.code != 0 {
		// Our table has an owner, which alone may change it (nft(8), "flags owner").
		t.Logf("%s: refused by the kernel: %s", a.name, lineOf(o.err, 0))
	}
	var slowest time.Duration
	for n := range 4 {
		start := time.Now()
		addr := []string{remote4, remote6}[n%2]
		words := []string{"addr=" + addr, "n=1", "limit=" + fallbackLimit.String()}
		if a.broken {
			words = append(words, "lax", "limit=2s")
		}
		held := i.stand(t, append([]string{"@hold"}, words...)...)
		held.end(t)
		slowest = max(slowest, time.Since(start))
	}
	if s := i.express(t); a.lacking && s.Counters["tcp_express_fallback"] == 0 {
		return fmt.Errorf("nothing fell back: this attack is none")
	}
	o := i.exec(t, probe(), "@lookup", "10.0.2.3", "A", "web.e2e.test", "3")
	if o.code != 0 && !a.broken {
		return fmt.Errorf("name service: %s", o.err)
	}
	if a.undo != "" {
		if o := i.exec(t, "sh", "-c", a.undo); o.code != 0 {
			return fmt.Errorf("undo: %s%s", o.out, o.err)
		}
	}
	survivors := old.end(t)
	start := time.Now()
	i.awaitExpress(t)
	s := i.express(t)
	t.Logf("%s: slowest of 4 connects %v, express again after %v; old connections: %s; said %d lines; %s", a.name, slowest.Round(time.Millisecond),
		time.Since(start).Round(time.Millisecond), survivors, strings.Count(i.stderr.String(), "\n"), about(s.Counters, "express"))
	if s.EnginePID != engine || s.EngineRestarts != 0 {
		return fmt.Errorf("the engine was %d and is %d, %d restarts", engine, s.EnginePID, s.EngineRestarts)
	}
	if n := strings.Count(i.stderr.String(), "\n"); n > 6 {
		return fmt.Errorf("%d lines in the log", n)
	}
	return nil
}

// listenerPort finds the engine's listener for IPv4 inside the container.
func (i *inst) listenerPort(t testing.TB) string {
	t.Helper()
	for line := range strings.Lines(i.mustExec(t, probe(), "@listener", "find")) {
		name, port, _ := strings.Cut(strings.TrimSpace(line), " ")
		if n, _ := strconv.Atoi(port); name == "tcp" && n > 60999 {
			return port
		}
	}
	t.Fatalf("no listener:\n%s", i.mustExec(t, probe(), "@listener", "find"))
	return ""
}

// TestExpressListener: whoever connects to the engine's listeners is reset; whoever wants
// its port cannot have it, and goes without.
func TestExpressListener(t *testing.T) {
	overHighways(t, expressKinds, func(t *testing.T, h highway) {
		i := h.begin(t, ordinary(t))
		i.mayTalk = true
		port := i.listenerPort(t)
		engine := i.express(t).EnginePID
		before := descriptors(t, engine)
		flood := i.mustExec(t, probe(), "@listener", "flood", port, "1000")
		t.Log("flood:", flood)
		if strings.Contains(flood, "then EOF") || strings.Contains(flood, "timeout") {
			t.Error("want nothing but resets")
		}
		t.Log("bind:", i.mustExec(t, probe(), "@listener", "bind", port))
		i.awaitExpress(t)
		s := i.express(t)
		if s.EnginePID != engine {
			t.Error("the engine died")
		}
		if now := descriptors(t, engine); now > before+baselineSlack {
			t.Errorf("%d descriptors, %d before", now, before)
		}
		if n := strings.Count(i.stderr.String(), "\n"); n > 3 {
			t.Errorf("%d lines in the log: %s", n, i.stderr)
		}
		t.Log(about(s.Counters, "express"))
	})
}

// The marks of userns/express, and what one may think of.
var forgedMarks = []string{"0x1051", "0x1052", "0x1050", "0x10ff", "0x51", "0xffffffff", "0x1053"}

// TestExpressMarks: sockets that carry the express path's marks harm themselves at most.
func TestExpressMarks(t *testing.T) {
	overHighways(t, expressKinds, func(t *testing.T, h highway) {
		i := h.begin(t, ordinary(t))
		i.mayTalk = true
		good := i.stand(t, "@listener", "gaps", remote4)
		for _, mark := range forgedMarks {
			for _, addr := range []string{remote4, remote6} {
				held := i.stand(t, "@hold", "addr="+addr, "n=2", "mark="+mark, "lax", "limit=3s")
				flows := i.express(t).Flows
				t.Logf("mark %s to %s: %s flows %+v, %s", mark, addr, strings.TrimSpace(held.first), flows, held.end(t))
			}
		}
		t.Log("others: ", good.end(t))
		i.awaitExpress(t)
		s := i.express(t)
		if s.EngineRestarts != 0 {
			t.Error("the engine died")
		}
		t.Log(about(s.Counters, "express"), i.stderr.String())
	})
}

// TestExpressGuard: what is refused is refused to kernel sockets that could go express
// too, whatever marks they forge, and whatever they redirect to the engine's listener.
func TestExpressGuard(t *testing.T) {
	nft := tool(t, "nft")
	overHighways(t, someKinds(), func(t *testing.T, h highway) {
		b := newBanners(t)
		i := h.begin(t, ordinary(t))
		i.mayTalk = true
		i.expect(t, "@kernel", "banner", control(b))
		if n := len(b.seen()); n != 4 {
			t.Errorf("the host's servers saw %d of 4 attempts that may come", n)
		}
		var list []attempt
		for _, mark := range append(forgedMarks[:3], "0x0") {
			m, err := strconv.ParseUint(mark, 0, 32)
			if err != nil {
				t.Fatal(err)
			}
			for _, bind := range []bool{false, true} {
				for _, a := range refusals(b, append(refused, owned...)) {
					a.Bind, a.Mark = bind, int(m)
					list = append(list, a)
				}
			}
		}
		i.reject(t, b, "@kernel", list)
		for _, line := range []string{
			"add table inet evil", "add chain inet evil p { type filter hook prerouting priority -160; }",
			"add rule inet evil p iif lo meta l4proto tcp meta mark 0x1051 tproxy ip to 127.0.0.1:" + i.listenerPort(t) + " accept",
		} {
			i.mustExec(t, append([]string{nft}, strings.Fields(line)...)...)
		}
		i.reject(t, b, "@kernel", list)
		i.mustExec(t, nft, "delete", "table", "inet", "evil")
		i.expect(t, "@kernel", "banner", control(b))
		s := i.express(t)
		if s.EngineRestarts != 0 {
			t.Error("the engine died")
		}
		t.Log(about(s.Counters, "express"), about(s.Counters, "guard"))
	})
}
