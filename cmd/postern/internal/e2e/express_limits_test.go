package e2e

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pendingSYNs counts the TCP sockets of this host that wait for the answer to a SYN to
// an address.
func pendingSYNs(t testing.TB, addr string) (n int) {
	t.Helper()
	b, err := os.ReadFile("/proc/thread-self/net/tcp")
	if err != nil {
		t.Fatal(err)
	}
	a := net.ParseIP(addr).To4()
	hex := fmt.Sprintf("%02X%02X%02X%02X:", a[3], a[2], a[1], a[0])
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 3 && f[3] == "02" && strings.HasPrefix(f[2], hex) { // TCP_SYN_SENT
			n++
		}
	}
	return n
}

// connecting opens a non-blocking socket and has it connect.
func connecting(to *unix.SockaddrInet4) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fd, err
	}
	if err = unix.Connect(fd, to); err == unix.EINPROGRESS {
		err = nil
	}
	return fd, err
}

// giveUpRole: ADDRESS COUNT — has so many sockets connect, prints "ready", and at the
// end of its input closes them all; then it waits for a second end, which is its own.
func giveUpRole(args []string) error {
	count, _ := strconv.Atoi(args[1])
	to := &unix.SockaddrInet4{Port: 80, Addr: [4]byte(net.ParseIP(args[0]).To4())}
	var fds []int
	for range count {
		fd, err := connecting(to)
		if err != nil {
			return err
		}
		fds = append(fds, fd)
	}
	fmt.Println("ready")
	_, _ = os.Stdin.Read(make([]byte, 1))
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
	return nil
}

// TestExpressGivenUp: when a client gives its connects up, the host's sockets for them
// go, and their SYNs stop.
func TestExpressGivenUp(t *testing.T) {
	const clients = 200
	overHighways(t, someKinds(), func(t *testing.T, h highway) {
		i := h.begin(t, ordinary(t))
		before := descriptors(t, i.express(t).EnginePID)
		clientsUp := i.stand(t, "@giveup", blackhole4, strconv.Itoa(clients))
		err := eventually(patience, func() error {
			n := pendingSYNs(t, blackhole4)
			return failIf(n != clients, "%d connects under way on the host, want %d", n, clients)
		})
		if err != nil {
			t.Error(err)
		}
		during := descriptors(t, i.express(t).EnginePID)
		start := time.Now()
		clientsUp.end(t)
		err = eventually(patience, func() error {
			n, fds := pendingSYNs(t, blackhole4), descriptors(t, i.express(t).EnginePID)
			return failIf(n != 0 || fds > before+baselineSlack, "%d connects still under way, %d descriptors; %d before", n, fds, before)
		})
		if err != nil {
			t.Error(err)
		}
		t.Logf("%d connects under way: %d descriptors more; gone %v after the clients", clients, during-before, time.Since(start).Round(time.Millisecond))
		i.awaitFlows(t, 0, 0)
	})
}

// holeRole: SWALLOWED COUNT ADDRESS GOOD — has so many kernel sockets connect to where
// nobody answers, and so many connects to where somebody does meanwhile; prints how long
// those took.
func holeRole(args []string) error {
	count, _ := strconv.Atoi(args[1])
	to := &unix.SockaddrInet4{Addr: [4]byte(net.ParseIP(args[0]).To4())}
	var flood sync.WaitGroup
	var floodErr error
	opened := 0
	flood.Go(func() {
		for n := range count {
			to.Port = 1 + n%60000
			fd, err := connecting(to)
			if err != nil {
				floodErr = err
				return
			}
			opened++
			defer unix.Close(fd)
			if n%100 == 0 {
				time.Sleep(2 * time.Millisecond)
			}
		}
	})
	if err := goodRole(args[2:]); err != nil {
		return err
	}
	flood.Wait()
	fmt.Printf("; %d sockets connecting", opened)
	return floodErr
}

// TestExpressBlackHole: ten thousand connects of kernel sockets to where nobody answers
// do not delay others.
func TestExpressBlackHole(t *testing.T) {
	a := ordinary(t)
	cmd := a.command(t.Context(), probe(), "@hole", blackhole4, "10000", remote4, "100")
	t.Log("direct: ", finish(cmd).out)
	overHighways(t, append(someKinds(), highway{"run", "tap", 65520, "netstack"}), func(t *testing.T, h highway) {
		i := h.begin(t, ordinary(t))
		t.Log(i.mustExec(t, probe(), "@hole", blackhole4, "10000", remote4, "100"))
		t.Log("after: ", i.mustExec(t, probe(), "@good", remote6, "20"))
		s := i.express(t)
		if s.EngineRestarts != 0 {
			t.Error("the engine died")
		}
		t.Log(about(s.Counters, "tcp"), about(s.Counters, "express"))
	})
}

// TestExpressDescriptors: with few descriptors the flows that find none for the express
// path go the universal one, and when they have gone all is as before.
func TestExpressDescriptors(t *testing.T) {
	for _, c := range []struct{ limit, flows int }{{256, 150}, {1024, 600}} {
		t.Run(fmt.Sprint(c.limit), func(t *testing.T) {
			a := ordinary(t)
			cmd := a.command(context.Background(), "/bin/sh", "-c", `ulimit -n "$0" && exec "$@"`, strconv.Itoa(c.limit), lab.dir+"/postern", "run", "--name", "few",
				"--endpoint", "packet", "--tcp", "express", "--", "cat")
			i := a.launch(t, "few", cmd)
			i.mayTalk = true
			i.awaitExpress(t)
			engine := i.express(t).EnginePID
			before := descriptors(t, engine)
			for range 2 {
				held := i.stand(t, "@hold", "addr="+remote4, "n="+strconv.Itoa(c.flows))
				s := i.express(t)
				if s.Flows.TCP != c.flows || s.Flows.Express == 0 || s.Flows.Express >= c.flows {
					t.Errorf("flows %+v, want %d, some of them express and some not", s.Flows, c.flows)
				}
				t.Logf("flows %+v, %d descriptors; %s %s; %s", s.Flows, descriptors(t, engine), held.first, held.end(t), about(s.Counters, "express"))
				i.awaitFlows(t, 0, 0)
			}
			if now := descriptors(t, engine); now > before+baselineSlack {
				t.Errorf("%d descriptors, %d before", now, before)
			}
			i.awaitExpress(t)
			if n := i.express(t).EngineRestarts; n != 0 {
				t.Errorf("the engine died %d times", n)
			}
		})
	}
}

// TestExpressCycle: many connections one after the other leave nothing behind.
func TestExpressCycle(t *testing.T) {
	total := 4000
	if large() {
		total = 20000
	}
	overHighways(t, expressKinds, func(t *testing.T, h highway) {
		i := h.begin(t, ordinary(t))
		engine := i.express(t).EnginePID
		t.Log("first: ", i.mustExec(t, probe(), "@many", "8", "500", remote4, remote6))
		fds, tasks, memory := openFiles(t, engine), threads(t, engine), pss(t, engine)
		t.Log(i.mustExec(t, probe(), "@many", "8", strconv.Itoa(total), remote4, remote6))
		err := eventually(patience, func() error {
			now := openFiles(t, engine)
			return failIf(now > fds+baselineSlack, "%d descriptors, %d before", now, fds)
		})
		if err != nil {
			t.Error(err)
		}
		if now := threads(t, engine); now > tasks+baselineSlack {
			t.Errorf("%d threads, %d before", now, tasks)
		}
		s := i.express(t)
		t.Logf("descriptors %d, then %d; threads %d, then %d; PSS %d, then %d KiB; %s", fds, openFiles(t, engine), tasks, threads(t, engine), memory, pss(t, engine),
			about(s.Counters, "tcp"))
		if s.EngineRestarts != 0 {
			t.Error("the engine died")
		}
	})
}

// TestExpressIdle: many idle flows: descriptors and memory of each.
func TestExpressIdle(t *testing.T) {
	n := 1000
	if large() {
		n = 9000
	}
	overHighways(t, []highway{{"run", "tap", 65520, "express"}, {"run", "tap", 65520, "netstack"}}, func(t *testing.T, h highway) {
		i := h.begin(t, ordinary(t))
		engine := i.express(t).EnginePID
		fds, memory := openFiles(t, engine), pss(t, engine)
		var held []*standing
		for _, addr := range []string{remote4, remote6} {
			held = append(held, i.stand(t, "@hold", "addr="+addr, fmt.Sprint("n=", n/2)))
		}
		s := i.express(t)
		t.Logf("%d flows, %d express: %.2f descriptors and %.2f KiB PSS each", s.Flows.TCP, s.Flows.Express, float64(openFiles(t, engine)-fds)/float64(n), float64(pss(t, engine)-memory)/float64(n))
		if s.Flows.TCP != n || s.Flows.Express == 0 && h.tcp == "express" {
			t.Errorf("flows %+v, want %d", s.Flows, n)
		}
		for _, each := range held {
			t.Log(each.first, each.end(t))
		}
		i.awaitFlows(t, 0, 0)
	})
}
