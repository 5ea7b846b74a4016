package e2e

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"
)

// witnesses starts witnesses for datagrams in the remote, one for each address, and
// returns where they are. One that is told to go goes.
func udpWitnesses(t *testing.T, addrs ...string) (at []string) {
	t.Helper()
	err := lab.remote.do(func() error {
		for _, addr := range addrs {
			c, err := net.ListenPacket("udp", net.JoinHostPort(addr, "0"))
			if err != nil {
				return err
			}
			t.Cleanup(func() { c.Close() })
			at = append(at, c.LocalAddr().String())
			go func() {
				defer c.Close()
				b := make([]byte, 64<<10)
				for {
					n, from, err := c.ReadFrom(b)
					if err != nil || string(b[:n]) == "go" {
						return
					}
					_, _ = c.WriteTo(append([]byte(from.String()+"\n"), b[:n]...), from)
				}
			}()
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// moved tells from what @datagrams and others print whether their datagrams still cross
// the interface.
func moved(said string, count int) (bool, error) {
	_, counts, ok := strings.Cut(said, "packets on the interface: ")
	var out, in int
	if n, err := fmt.Sscanf(counts, "%d out, %d in", &out, &in); !ok || n != 2 {
		return false, fmt.Errorf("%q: %v", said, err)
	}
	return out < count/4 && in < count/4, nil
}

// TestExpressDatagrams: a flow that keeps talking moves over, and no datagram is lost,
// doubled, reordered or changed, of any size, before, while and after.
func TestExpressDatagrams(t *testing.T) {
	count := 1000
	if large() {
		count = 50000
	}
	overHighways(t, append(expressEverywhere, highway{"run", "tap", 65520, "netstack"}), func(t *testing.T, h highway) {
		i := h.begin(t, ordinary(t))
		bothFamilies(t, func(t *testing.T, addr string) {
			flow := i.stand(t, "@datagrams", addr, strconv.Itoa(count))
			later := flow.end(t)
			t.Logf("%s%s", flow.first, later)
			if is, err := moved(later, count); err != nil || is != (h.tcp != "netstack") {
				t.Errorf("moved over: %t, %v", is, err)
			}
		})
		s := i.express(t)
		if s.EngineRestarts != 0 {
			t.Error("the engine died")
		}
		t.Log(about(s.Counters, "udp"), about(s.Counters, "express"))
	})
}

// TestExpressMapping: one socket is one port outside, whomever it talks to, before and
// after its flows move over; who has not been talked to does not get through.
func TestExpressMapping(t *testing.T) {
	const second6 = "fd98::3"
	if err := lab.remote.do(func() error { return ip("addr add " + second6 + "/64 dev eth0 nodad") }); err != nil {
		t.Fatal(err)
	}
	// Others expect the remote to have one address. The instances, which run at once,
	// have ended by then.
	t.Cleanup(func() { _ = lab.remote.do(func() error { return ip("addr del " + second6 + "/64 dev eth0") }) })
	overHighwaysAtOnce(t, append(someKinds(), highway{"run", "tap", 65520, "netstack"}), func(t *testing.T, h highway) {
		i := h.begin(t, ordinary(t))
		bothFamilies(t, func(t *testing.T, addr string) {
			at := udpWitnesses(t, addr, addr, addr, addr, addr)
			flow := i.stand(t, append([]string{"@mapping"}, at...)...)
			f := strings.Fields(flow.first)
			if len(f) != 3 || f[1] != f[2] || strings.Contains(f[1], ",") {
				t.Fatalf("the witnesses saw %v, want one and the same address all the time", f[1:])
			}
			t.Log("outside address ", f[1])
			stranger, known := second4, addr
			if addr == remote6 {
				stranger = second6
			}
			from := map[string]string{}
			err := lab.remote.do(func() error {
				for _, a := range []string{stranger, known} {
					c, err := net.ListenPacket("udp", net.JoinHostPort(a, "0"))
					if err != nil {
						return err
					}
					defer c.Close()
					to, err := net.ResolveUDPAddr("udp", f[1])
					if err != nil {
						return err
					}
					from[a] = c.LocalAddr().String()
					for range 10 {
						if _, err := c.WriteTo([]byte("surprise"), to); err != nil {
							return err
						}
						time.Sleep(time.Millisecond)
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := flow.end(t); got != from[known] {
				t.Errorf("datagrams came from %q; want those from %s, an address that was talked to, and not those from %s", got, from[known], from[stranger])
			}
		})
	})
}

// TestExpressRefusedDatagram: that a server has gone is heard after its flow has moved
// over, too.
func TestExpressRefusedDatagram(t *testing.T) {
	overHighways(t, append(expressKinds, highway{"run", "tap", 65520, "netstack"}), func(t *testing.T, h highway) {
		i := h.begin(t, ordinary(t))
		bothFamilies(t, func(t *testing.T, addr string) {
			got := i.mustExec(t, probe(), "@refusal", udpWitnesses(t, addr)[0])
			if !strings.HasPrefix(got, "ECONNREFUSED ") {
				t.Errorf("%s, want ECONNREFUSED", got)
			}
			t.Log(got)
		})
	})
}

// TestExpressManyFlows: more flows than can go express lose nothing when they take turns,
// and name service goes on.
func TestExpressManyFlows(t *testing.T) {
	sockets, rounds := 300, 2
	if large() {
		sockets, rounds = 900, 6
	}
	overHighways(t, expressKinds, func(t *testing.T, h highway) {
		i := h.begin(t, ordinary(t))
		var ports []string
		for _, at := range echoPorts(t, 3) {
			_, port, _ := net.SplitHostPort(at)
			ports = append(ports, port)
		}
		engine := i.express(t).EnginePID
		before := descriptors(t, engine)
		crowd := make(chan outcome, 1)
		go func() {
			crowd <- i.exec(t, append([]string{probe(), "@crowd", remote4, strconv.Itoa(sockets), strconv.Itoa(rounds)}, ports...)...)
		}()
		t.Log(i.mustExec(t, probe(), "@lookup", "10.0.2.3", "A", "web.e2e.test", "200"))
		o := <-crowd
		if o.code != 0 || !strings.HasSuffix(o.out, " 0 lost") {
			t.Errorf("%s: %s", o.out, o.err)
		}
		s := i.express(t)
		t.Logf("%s in %v; descriptors %d, then %d; %s; %s", o.out, o.took.Round(time.Millisecond), before, descriptors(t, engine), about(s.Counters, "udp"), about(s.Counters, "express"))
	})
}

// echoPorts starts echo servers for datagrams in the remote.
func echoPorts(t *testing.T, n int) (at []string) {
	t.Helper()
	err := lab.remote.do(func() error {
		for range n {
			c, err := net.ListenPacket("udp", remote4+":0")
			if err != nil {
				return err
			}
			t.Cleanup(func() { c.Close() })
			at = append(at, c.LocalAddr().String())
			go echoUDP(c)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// TestExpressDatagramsAfterKill: the flows of datagrams live on when the engine is
// replaced, whether they had moved over or not.
func TestExpressDatagramsAfterKill(t *testing.T) {
	overHighways(t, expressKinds, func(t *testing.T, h highway) {
		i := h.begin(t, ordinary(t))
		i.mayTalk = true
		flow := i.stand(t, "@datagrams", remote4, "200", "lax")
		kill(t, i.express(t).EnginePID)
		err := eventually(patience, func() error {
			s := i.express(t)
			return failIf(s.EngineRestarts != 1 || s.EnginePID == 0, "%d restarts", s.EngineRestarts)
		})
		if err != nil {
			t.Fatal(err)
		}
		later := flow.end(t)
		t.Logf("%s%s", flow.first, later)
		if strings.Contains(later, ", 200 lost") {
			t.Error("nothing gets through any more")
		}
	})
}
