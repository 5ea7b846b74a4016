package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// serveWithin is the promise for a port that could not be served for a while; it is
// logged. Slow machines may take longer.
const serveWithin = time.Second

// twenty are 20 rules of every kind, and what asks through each of their sockets.
func twenty(a account) (rules []string, questions [][2]string) {
	for n := range 8 {
		port := 8100 + n
		rules = append(rules, fmt.Sprintf("%d:80", port), fmt.Sprintf("%d:53/udp", port))
		for _, host := range loopbacks {
			at := net.JoinHostPort(host, strconv.Itoa(port))
			questions = append(questions, [2]string{"tcp", at}, [2]string{"udp", at})
		}
	}
	for n := range 4 {
		path := fmt.Sprintf("%s/s%d.sock", a.runtime, n)
		rules = append(rules, "unix:"+path+":80")
		questions = append(questions, [2]string{"unix", path})
	}
	return rules, questions
}

var twentyServers = []string{"tcp4,0.0.0.0:80", "tcp6,[::]:80", "udp4,0.0.0.0:53", "udp6,[::]:53"}

// TestPublishedEngineKilled: 20 published ports answer again after kill -9 of the
// engine, and their sockets are the same.
func TestPublishedEngineKilled(t *testing.T) {
	overSettings(t, []setting{{"run", "tap", "auto"}, {"run", "packet", "auto"}, {"attach", "packet", "auto"}, {"run", "tap", "netstack"}}, func(t *testing.T, s setting) {
		a := ordinary(t)
		rules, questions := twenty(a)
		if s.driver == "netstack" {
			rules, questions = rules[:16], questions[:32] // no clients of unix sockets
		}
		i := s.begin(t, a, rules...)
		i.mayTalk = true
		i.witness(t, twentyServers...)
		askAll(t, questions)
		before := listeners(t, a.runtime)
		if len(before) != len(questions) {
			t.Fatalf("%d sockets, want %d: %v", len(before), len(questions), before)
		}
		for range 3 {
			kill(t, i.mustStatus(t).EnginePID)
			t.Logf("%d sockets of %d rules answer again %v after kill -9 of the engine (promised: %v)",
				len(questions), len(rules), askAll(t, questions).Round(time.Millisecond), serveWithin)
		}
		after := listeners(t, a.runtime)
		for at, inode := range before {
			if after[at] != inode {
				t.Errorf("%s was socket %s and is %s", at, inode, after[at])
			}
		}
		if n := i.mustStatus(t).EngineRestarts; n != 3 {
			t.Errorf("%d restarts, want 3", n)
		}
	})
}

// TestPublishedHangup: SIGHUP has a daemon replace its engine, and the published ports
// stay open meanwhile.
func TestPublishedHangup(t *testing.T) {
	overSettings(t, []setting{{"attach", "packet", "auto"}}, func(t *testing.T, s setting) {
		if tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0); err == nil {
			tty.Close()
			t.Skip("this test has a controlling terminal, and so has what it starts: SIGHUP means its end there")
		}
		a := ordinary(t)
		rules, questions := twenty(a)
		i := s.begin(t, a, rules...)
		i.mayTalk = true
		i.witness(t, twentyServers...)
		askAll(t, questions)
		before, old := listeners(t, a.runtime), i.mustStatus(t).EnginePID
		info, err := i.info()
		if err != nil {
			t.Fatal(err)
		}
		if err := syscall.Kill(info.PID, syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if err := eventually(patience, func() error {
			if st := i.mustStatus(t); st.EnginePID == old || !st.EngineReady {
				return fmt.Errorf("engine %d, ready %v; the old one was %d", st.EnginePID, st.EngineReady, old)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		askAll(t, questions)
		after := listeners(t, a.runtime)
		for at, inode := range before {
			if after[at] != inode {
				t.Errorf("%s was socket %s and is %s", at, inode, after[at])
			}
		}
	})
}

// askAll asks at once until everybody has answered, and returns how long that took.
func askAll(t *testing.T, questions [][2]string) time.Duration {
	t.Helper()
	start := time.Now()
	var all sync.WaitGroup
	for _, q := range questions {
		all.Go(func() {
			err := eventually(patience, func() error {
				_, err := client{}.ask(q[0], q[1])
				return err
			})
			if err != nil {
				t.Errorf("%s %s: %v", q[0], q[1], err)
			}
		})
	}
	all.Wait()
	return time.Since(start)
}

// listeners returns the inodes of the host's sockets on the ports from 8100 on, and
// of unix sockets below dir, by what they are bound to (proc_net(5)).
func listeners(t *testing.T, dir string) map[string]string {
	t.Helper()
	const tcpListen, udpUnconnected = "0A", "07" // net/tcp_states.h
	found := map[string]string{}
	for _, name := range []string{"tcp", "tcp6", "udp", "udp6", "unix"} {
		b, err := os.ReadFile("/proc/thread-self/net/" + name) // of this thread: others are elsewhere
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(b)) {
			f := strings.Fields(line)
			if name == "unix" {
				if len(f) == 8 && filepath.Dir(f[7]) == dir && f[5] == "01" { // listening: state SS_UNCONNECTED
					found[f[7]] = f[6]
				}
				continue
			}
			_, hex, _ := strings.Cut(f[1], ":")
			port, err := strconv.ParseUint(hex, 16, 16)
			if err == nil && port >= 8100 && port < 8200 && (f[3] == tcpListen || f[3] == udpUnconnected) {
				found[name+" "+f[1]] = f[9]
			}
		}
	}
	return found
}

// TestPublishedDescriptors: with 64 descriptors for each of postern's processes, 200
// clients that stay cannot all be served; when they leave, the port serves again.
func TestPublishedDescriptors(t *testing.T) {
	overSettings(t, bothDrivers, func(t *testing.T, s setting) {
		needEndpoint(t, s.endpoint)
		a := ordinary(t)
		cmd := a.command(context.Background(), "/bin/sh", "-c", `ulimit -n 64 && exec "$0" "$@"`, lab.dir+"/postern", "run", "--name", "few",
			"--endpoint", s.endpoint, "--port-driver", s.driver, "-p", "0.0.0.0:8001:80", "--", "cat")
		i := a.launch(t, "few", cmd)
		i.mayTalk = true
		i.witness(t, "tcp4,0.0.0.0:80")
		for range 3 {
			served := crowd(t, "127.0.0.1:8001", 200)
			if served == 0 || served >= 200 {
				t.Errorf("%d of 200 clients were served, want some", served)
			}
			start := time.Now()
			err := eventually(patience, func() error {
				_, err := client{}.ask("tcp", "127.0.0.1:8001")
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d of 200 clients served; the port serves again %v after they left (promised: %v)", served, time.Since(start).Round(time.Microsecond), serveWithin)
		}
		if s := i.mustStatus(t); s.EngineRestarts != 0 {
			t.Errorf("the engine died %d times", s.EngineRestarts)
		}
	})
}

// crowd has n clients connect and stay until nothing more happens, and returns how
// many a witness has spoken to. When it returns they have left.
func crowd(t *testing.T, addr string, n int) (served int) {
	t.Helper()
	heard := make(chan bool, n)
	var all []net.Conn
	for range n {
		c, err := client{}.dial("tcp", addr)
		if err != nil { // a reset may come that early
			heard <- false
			continue
		}
		all = append(all, c)
		go func() {
			_, err := io.ReadFull(c, make([]byte, 1))
			heard <- err == nil
		}()
	}
	// Whoever is served hears at once, as soon as anybody does; the others have been
	// waiting ever since.
	first := time.After(patience)
	var rest <-chan time.Time
listen:
	for range n {
		select {
		case ok := <-heard:
			if ok && served == 0 {
				rest = time.After(time.Second)
			}
			if ok {
				served++
			}
		case <-rest:
			break listen
		case <-first:
			break listen
		}
	}
	for _, c := range all {
		c.Close()
	}
	return served
}
