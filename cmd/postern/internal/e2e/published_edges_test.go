package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// bothDrivers are a setting for each way of published TCP.
var bothDrivers = []setting{{"run", "tap", "splice"}, {"run", "packet", "splice"}, {"run", "tap", "netstack"}}

// echoed sends n bytes of the stream to a witness, then ends its own direction, and
// returns the sum of what came back.
func echoed(t *testing.T, addr string, n int64) string {
	t.Helper()
	conn, err := client{}.dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(within))
	sent := make(chan error, 1)
	go func() {
		_, err := io.CopyN(conn, stream(), n)
		sent <- errors.Join(err, conn.(*net.TCPConn).CloseWrite())
	}()
	r := bufio.NewReader(conn)
	if line, err := r.ReadString('\n'); err != nil {
		t.Fatalf("%s: %q, %v", addr, line, err)
	}
	got := sum(r)
	if err := <-sent; err != nil {
		t.Error(err)
	}
	return got
}

// TestPublishedClosedPort: where nothing listens in the container, clients are reset
// at once.
func TestPublishedClosedPort(t *testing.T) {
	overSettings(t, bothDrivers, func(t *testing.T, s setting) {
		i := s.begin(t, ordinary(t), "0.0.0.0:8001:80", "[::]:8001:80")
		for _, to := range []string{"127.0.0.1:8001", "[::1]:8001", host4 + ":8001", "[" + host6 + "]:8001"} {
			start := time.Now()
			conn, err := client{}.dial("tcp", to)
			if err == nil {
				_ = conn.SetDeadline(time.Now().Add(patience))
				_, err = conn.Read(make([]byte, 1))
				conn.Close()
			}
			took := time.Since(start)
			if !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("%s: %v after %v, want a reset", to, err, took)
			}
			t.Logf("%s: reset after %v", to, took.Round(10*time.Microsecond))
		}
		// A server that comes later is reached.
		i.witness(t, "tcp4,0.0.0.0:80")
		client{}.mustAsk(t, "tcp", "127.0.0.1:8001")
	})
}

// TestPublishedTakenSource: a client whose address and port is taken in the container
// still gets through, and shows its real port wherever that is possible.
func TestPublishedTakenSource(t *testing.T) {
	overSettings(t, bothDrivers, func(t *testing.T, s setting) {
		i := s.begin(t, ordinary(t), "0.0.0.0:8001:80", "0.0.0.0:8002:80", "0.0.0.0:8003:81")
		i.witness(t, "tcp4,0.0.0.0:80", "tcp4,0.0.0.0:81")
		c := client{ns: lab.remote, local: netip.MustParseAddrPort(remote4 + ":7777")}
		first, err := c.dial("tcp", host4+":8001")
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		_ = first.SetDeadline(time.Now().Add(patience))
		line, err := bufio.NewReader(first).ReadString('\n')
		if line != c.local.String()+"\n" {
			t.Fatalf("first connection: %q, %v", line, err)
		}
		// Another server: four addresses and ports that are not taken.
		if a := c.mustAsk(t, "tcp", host4+":8003"); a.seen != c.local {
			t.Errorf("another server saw %v, want %v", a.seen, c.local)
		}
		// The same server: they are, so another port has to do.
		if a := c.mustAsk(t, "tcp", host4+":8002"); a.seen == c.local || a.seen.Addr() != c.local.Addr() {
			t.Errorf("the same server saw %v, want %v with another port", a.seen, c.local.Addr())
		}
		if n := i.mustStatus(t).Counters["published_other_source"]; n != 1 {
			t.Errorf("counted %d connections with another source, want 1", n)
		}
	})
}

// TestPublishedListeningSource: the container's own listener on the client's port
// number is in nobody's way.
func TestPublishedListeningSource(t *testing.T) {
	overSettings(t, bothDrivers, func(t *testing.T, s setting) {
		i := s.begin(t, ordinary(t), "0.0.0.0:8001:80")
		i.witness(t, "tcp4,0.0.0.0:80", "tcp4,0.0.0.0:7778", "tcp6,[::]:7778")
		c := client{ns: lab.remote, local: netip.MustParseAddrPort(remote4 + ":7778")}
		if a := c.mustAsk(t, "tcp", host4+":8001"); a.seen.Addr() != c.local.Addr() {
			t.Errorf("the server saw %v, want %v", a.seen, c.local.Addr())
		} else {
			t.Logf("client %v, the server saw %v", c.local, a.seen)
		}
	})
}

// TestPublishedLowSource: a client's port below 1024 is shown as it is.
func TestPublishedLowSource(t *testing.T) {
	overSettings(t, bothDrivers, func(t *testing.T, s setting) {
		rules, servers := []string{"0.0.0.0:8001:80", "[::]:8001:80", "0.0.0.0:8002:53/udp", "[::]:8002:53/udp"},
			[]string{"tcp4,0.0.0.0:80", "tcp6,[::]:80", "udp4,0.0.0.0:53", "udp6,[::]:53"}
		if s.driver == "splice" {
			rules = append(rules, "0.0.0.0:8003:127.0.0.1:81", "0.0.0.0:8004:127.0.0.1:54/udp", "[::]:8004:[::1]:54/udp")
			servers = append(servers, "tcp4,127.0.0.1:81", "udp4,127.0.0.1:54", "udp6,[::1]:54")
		}
		i := s.begin(t, ordinary(t), rules...)
		i.witness(t, servers...)
		type question struct{ network, from, to string }
		questions := []question{
			{"tcp4", remote4 + ":700", host4 + ":8001"}, {"tcp6", "[" + remote6 + "]:701", "[" + host6 + "]:8001"},
			{"udp4", remote4 + ":702", host4 + ":8002"}, {"udp6", "[" + remote6 + "]:703", "[" + host6 + "]:8002"},
		}
		if s.driver == "splice" {
			questions = append(questions, question{"tcp4", remote4 + ":704", host4 + ":8003"},
				question{"udp4", remote4 + ":705", host4 + ":8004"}, question{"udp6", "[" + remote6 + "]:706", "[" + host6 + "]:8004"})
		}
		for _, q := range questions {
			c := client{ns: lab.remote, local: netip.MustParseAddrPort(q.from)}
			if a := c.mustAsk(t, q.network, q.to); a.seen != c.local {
				t.Errorf("%s from %s: the server saw %v", q.network, q.from, a.seen)
			}
		}
	})
}

// TestPublishedOtherFamily: a server that listens on one family only is reached by
// clients of the other, which show the gateway's address.
func TestPublishedOtherFamily(t *testing.T) {
	overSettings(t, bothDrivers, func(t *testing.T, s setting) {
		i := s.begin(t, ordinary(t), "8001:81", "8002:82", "[::]:8003:81", "0.0.0.0:8004:82")
		i.witness(t, "tcp4,0.0.0.0:81", "tcp6,[::]:82")
		for _, q := range []struct {
			to, want string
			ns       *netns
		}{
			{"127.0.0.1:8001", gateways[0], nil},
			{"[::1]:8001", gateways[0], nil},
			{"127.0.0.1:8002", gateways[1], nil},
			{"[::1]:8002", gateways[1], nil},
			{"[" + host6 + "]:8003", gateways[0], lab.remote},
			{host4 + ":8004", gateways[1], lab.remote},
		} {
			a, err := client{ns: q.ns}.ask("tcp", q.to)
			if err != nil || a.seen.Addr().String() != q.want {
				t.Errorf("%s: the server saw %v, %v; want %s", q.to, a.seen, err, q.want)
			}
		}
	})
}

// TestPublishedNoIPv6: clients of a family that the container does not have.
func TestPublishedNoIPv6(t *testing.T) {
	for _, driver := range []string{"splice", "netstack"} {
		t.Run(driver, func(t *testing.T) {
			i := ordinary(t).start(t, "four", "--cidr6", "none", "--port-driver", driver, "-p", "8001:80", "-p", "[::]:8002:80")
			i.witness(t, "tcp4,0.0.0.0:80")
			for _, q := range []struct {
				to string
				ns *netns
			}{{"127.0.0.1:8001", nil}, {"[::1]:8001", nil}, {"[" + host6 + "]:8002", lab.remote}} {
				if a := (client{ns: q.ns}).mustAsk(t, "tcp", q.to); a.seen.Addr().String() != gateways[0] {
					t.Errorf("%s: the server saw %v, want %s", q.to, a.seen, gateways[0])
				}
			}
		})
	}
}

// TestPublishedDatagrams: datagrams of every size arrive whole and come back, from
// many clients at once.
func TestPublishedDatagrams(t *testing.T) {
	for _, w := range []way{{"tap", 1500}, {"packet", 65520}} {
		t.Run(w.endpoint, func(t *testing.T) {
			needEndpoint(t, w.endpoint)
			i := ordinary(t).start(t, "udp", append(w.flags(), "-p", "0.0.0.0:8001:53/udp", "-p", "[::]:8001:53/udp",
				"-p", "0.0.0.0:8002:127.0.0.1:54/udp", "-p", "[::]:8002:[::1]:54/udp")...)
			i.witness(t, "udp4,0.0.0.0:53", "udp6,[::]:53", "udp4,127.0.0.1:54", "udp6,[::1]:54")
			var all sync.WaitGroup
			for n := range 40 {
				to := []string{"127.0.0.1:8001", "[::1]:8001", "127.0.0.1:8002", "[::1]:8002", host4 + ":8001", "[" + host6 + "]:8002"}[n%6]
				all.Go(func() {
					for _, size := range []int{0, 1, 1400, 1472, 9000, 60000} {
						if err := oneDatagram(to, size); err != nil {
							t.Errorf("client %d, %d bytes through %s: %v", n, size, to, err)
						}
					}
				})
			}
			all.Wait()
			t.Log(i.mustStatus(t).Counters)
		})
	}
}

// oneDatagram sends a datagram of a size and wants it back. It may be lost, not changed.
func oneDatagram(to string, size int) error {
	conn, err := client{}.dial("udp", to)
	if err != nil {
		return err
	}
	defer conn.Close()
	sent, got := make([]byte, size), make([]byte, 64<<10)
	_, _ = io.ReadFull(stream(), sent)
	return eventually(patience, func() error {
		if _, err := conn.Write(sent); err != nil {
			return err
		}
		_ = conn.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
		n, err := conn.Read(got)
		if err != nil {
			return err
		}
		_, back, _ := bytes.Cut(got[:n], []byte("\n"))
		return failIf(!bytes.Equal(back, sent), "%d bytes came back, not the same", len(back))
	})
}

// TestPublishedWithoutTools: publishing executes no program.
func TestPublishedWithoutTools(t *testing.T) {
	for _, driver := range []string{"splice", "netstack"} {
		t.Run(driver, func(t *testing.T) {
			a := ordinary(t)
			cmd := a.postern(context.Background(), "run", "--name", "bare", "--map", "single", "--endpoint", "packet", "--port-driver", driver,
				"-p", "8001:80", "-p", "8001:53/udp", "--", probe(), "@witness", "tcp4,0.0.0.0:80", "udp4,0.0.0.0:53")
			for n, v := range cmd.Env {
				if len(v) > 5 && v[:5] == "PATH=" {
					cmd.Env[n] = "PATH=/nonexistent"
				}
			}
			i := a.launch(t, "bare", cmd)
			err := eventually(patience, func() error {
				_, err := client{limit: time.Second}.ask("tcp", "127.0.0.1:8001")
				return err
			})
			if err != nil {
				t.Fatalf("%v\npostern said: %s", err, i.stderr)
			}
			client{}.mustAsk(t, "udp", "127.0.0.1:8001")
		})
	}
}
