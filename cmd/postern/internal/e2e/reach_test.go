package e2e

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
)

// way is one way for packets into the engine.
type way struct {
	endpoint string
	mtu      int
}

func (w way) flags() []string {
	return []string{"--endpoint", w.endpoint, "--mtu", strconv.Itoa(w.mtu)}
}

// overAllWays runs a test over both endpoints at both MTUs.
func overAllWays(t *testing.T, f func(t *testing.T, a account, w way)) {
	for _, endpoint := range []string{"tap", "packet"} {
		for _, mtu := range []int{1500, 65520} {
			t.Run(fmt.Sprintf("%s/%d", endpoint, mtu), func(t *testing.T) {
				needEndpoint(t, endpoint)
				f(t, ordinary(t), way{endpoint, mtu})
			})
		}
	}
}

// bothFamilies runs a test with each of the remote's addresses.
func bothFamilies(t *testing.T, f func(t *testing.T, addr string)) {
	t.Run("v4", func(t *testing.T) { f(t, remote4) })
	t.Run("v6", func(t *testing.T) { f(t, remote6) })
}

func url(addr string) string { return "http://" + net.JoinHostPort(addr, portHTTP) + "/" }

func TestHTTP(t *testing.T) {
	overAllWays(t, func(t *testing.T, a account, w way) {
		got := a.mustRun(t, w.flags(), probe(), "@fetch", url(remote4), url(remote6), url("web.e2e.test"), url("web"))
		if want := strings.Repeat(greeting+"\n", 4); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

// transferSize is what each transfer moves in each direction.
func transferSize() int64 {
	if os.Getenv("POSTERN_E2E_LARGE") != "" {
		return 1 << 30
	}
	return 64 << 20
}

func TestTransfer(t *testing.T) {
	overAllWays(t, func(t *testing.T, a account, w way) {
		bothFamilies(t, func(t *testing.T, addr string) {
			t.Log(a.mustRun(t, w.flags(), probe(), "@transfer", addr, strconv.FormatInt(transferSize(), 10)))
		})
	})
}

func TestUDPEcho(t *testing.T) {
	overAllWays(t, func(t *testing.T, a account, w way) {
		bothFamilies(t, func(t *testing.T, addr string) {
			for _, size := range []string{"1", "1472", "9000", "60000"} {
				a.mustRun(t, w.flags(), probe(), "@udpecho", addr, size, "20")
			}
		})
	})
}

func TestManyConnections(t *testing.T) {
	overAllWays(t, func(t *testing.T, a account, w way) {
		t.Log(a.mustRun(t, w.flags(), probe(), "@many", "10", "5000", remote4, remote6))
	})
}

func TestHalfClose(t *testing.T) {
	overAllWays(t, func(t *testing.T, a account, w way) {
		i := a.start(t, "half", w.flags()...)
		bothFamilies(t, func(t *testing.T, addr string) {
			i.mustExec(t, probe(), "@halfclose", addr)
			if got := <-lab.srv.late; got != sumOf(lateSize) {
				t.Errorf("after its FIN the server got %s, want %s", got, sumOf(lateSize))
			}
		})
	})
}

// TestLastWords: what a command has written when it ends arrives, or its
// receiver learns that something is missing. An end of stream in the middle of
// the data would pass for the whole.
func TestLastWords(t *testing.T) {
	overAllWays(t, func(t *testing.T, a account, w way) {
		whole := 0
		for range 5 {
			a.mustRun(t, w.flags(), probe(), "@halfclose", remote4)
			switch got := <-lab.srv.late; {
			case got == sumOf(lateSize):
				whole++
			case !strings.HasPrefix(got, "error "):
				t.Errorf("the server got %s and an end of stream, want %s", got, sumOf(lateSize))
			}
		}
		t.Logf("%d of 5 streams arrived whole", whole)
	})
}

func TestPing(t *testing.T) {
	ping := tool(t, "ping")
	overAllWays(t, func(t *testing.T, a account, w way) {
		bothFamilies(t, func(t *testing.T, addr string) {
			for _, size := range []string{"56", "8000"} {
				out := a.mustRun(t, w.flags(), ping, "-n", "-c", "2", "-i", "0.2", "-W", "10", "-s", size, addr)
				if !strings.Contains(out, "2 received") {
					t.Errorf("ping -s %s: %s", size, out)
				}
			}
		})
	})
}

// TestErrors: what cannot be reached fails as it would on the network itself, and
// as fast.
func TestErrors(t *testing.T) {
	cases := []struct{ network, addr, want string }{
		{"tcp", net.JoinHostPort(remote4, portClosed), "ECONNREFUSED"},
		{"tcp", net.JoinHostPort(remote6, portClosed), "ECONNREFUSED"},
		{"tcp", net.JoinHostPort(unreachable4, "80"), "EHOSTUNREACH"},
		// RFC 4443: "reject route" comes as code 0, which is ENETUNREACH.
		{"tcp", net.JoinHostPort(unreachable6, "80"), "ENETUNREACH EHOSTUNREACH EACCES"},
		{"tcp", net.JoinHostPort(noRoute4, "80"), "ENETUNREACH"},
		{"tcp", net.JoinHostPort(noRoute6, "80"), "ENETUNREACH"},
		{"tcp", "10.0.2.2:80", "ECONNREFUSED"},
		{"tcp", "[fd00::2]:80", "ECONNREFUSED"},
	}
	overAllWays(t, func(t *testing.T, a account, w way) {
		for _, c := range cases {
			fields := strings.Fields(a.mustRun(t, w.flags(), probe(), "@dial", c.network, c.addr))
			if len(fields) != 3 || !strings.Contains(" "+c.want+" ", " "+fields[1]+" ") {
				t.Errorf("connect to %s: %v, want %s", c.addr, fields, c.want)
				continue
			}
			if ms, _ := strconv.Atoi(fields[2]); ms > 5000 {
				t.Errorf("connect to %s: %s only after %d ms", c.addr, fields[1], ms)
			}
			t.Log(strings.Join(fields, " "), "ms")
		}
	})
}

// TestPortUnreachable: a datagram that nobody takes is reported.
func TestPortUnreachable(t *testing.T) {
	overAllWays(t, func(t *testing.T, a account, w way) {
		bothFamilies(t, func(t *testing.T, addr string) {
			i := a.start(t, "unreach", w.flags()...)
			report := i.try(t, "@kernel", []attempt{{Proto: "udp", Dst: addrPort(addr, portClosed), Want: "ECONNREFUSED"}})
			if got := report[0].Result; got != "ECONNREFUSED" {
				t.Errorf("UDP to %s: %s, want ECONNREFUSED", report[0].Dst, got)
			}
		})
	})
}

// floodRate is a million packets a minute at most. An engine with the race detector is
// ten times slower than one without.
func floodRate() string {
	if os.Getenv("POSTERN_E2E_RACE") != "" {
		return "1600"
	}
	return "16000"
}

// TestBlackHole: ten thousand SYNs to addresses that never answer do not delay
// connects to one that does.
func TestBlackHole(t *testing.T) {
	overAllWays(t, func(t *testing.T, a account, w way) {
		i := a.start(t, "hole", w.flags()...)
		t.Log("before: ", i.mustExec(t, probe(), "@good", remote4, "20"))
		flood := make(chan outcome, 1)
		go func() { flood <- i.exec(t, probe(), "@flood", "syn", blackhole4+":80", "10000", floodRate()) }()
		t.Log("during: ", i.mustExec(t, probe(), "@good", remote4, "100"))
		if o := <-flood; o.code != 0 {
			t.Fatalf("flood: %s", o.err)
		}
		t.Log("after:  ", i.mustExec(t, probe(), "@good", remote6, "20"))
		s := i.mustStatus(t)
		if s.EngineRestarts != 0 || s.Counters["tcp_refused_destination_limit"] == 0 {
			t.Errorf("restarts %d, counters %v; want none, and a destination's limit met", s.EngineRestarts, s.Counters)
		}
	})
}

// TestSYNCycles: connections that are half open and reset free their slots: there
// are more of them than any limit holds (N4).
func TestSYNCycles(t *testing.T) {
	overAllWays(t, func(t *testing.T, a account, w way) {
		i := a.start(t, "cycle", w.flags()...)
		i.mustExec(t, probe(), "@cycle", net.JoinHostPort(remote4, portEcho), "5000")
		t.Log(i.mustExec(t, probe(), "@good", remote4, "20"))
	})
}

// TestEarlyReset: the same when the container gives up before it is answered.
func TestEarlyReset(t *testing.T) {
	i := ordinary(t).start(t, "early")
	i.mustExec(t, probe(), "@flood", "early", net.JoinHostPort(remote4, portEcho), "20000", floodRate())
	t.Log(i.mustExec(t, probe(), "@good", remote4, "20"))
}

// TestUDPFlood: datagrams to ever new places take neither name service nor other
// flows away.
func TestUDPFlood(t *testing.T) {
	overAllWays(t, func(t *testing.T, a account, w way) {
		i := a.start(t, "flood", w.flags()...)
		flood := make(chan outcome, 1)
		go func() { flood <- i.exec(t, probe(), "@flood", "udp", blackhole4+":80", "30000", floodRate()) }()
		t.Log(i.mustExec(t, probe(), "@lookup", "10.0.2.3", "A", "web.e2e.test", "200"))
		if o := <-flood; o.code != 0 {
			t.Fatalf("flood: %s", o.err)
		}
		engine := i.mustStatus(t).EnginePID
		t.Logf("engine has %d descriptors", descriptors(t, engine))
	})
}
