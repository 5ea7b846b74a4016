package e2e

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// large reports whether tests may take long and much.
func large() bool { return os.Getenv("POSTERN_E2E_LARGE") != "" }

// idleEach is how many idle connections each of two instances has.
func idleEach() int {
	if large() {
		return 8000
	}
	return 500
}

// TestPublishedIdle: many idle connections in two instances; the memory of each.
func TestPublishedIdle(t *testing.T) {
	const ports = 16
	overSettings(t, []setting{{"run", "packet", "splice"}, {"run", "packet", "netstack"}}, func(t *testing.T, s setting) {
		each := idleEach()
		var engines []int
		before, beforeSupervisor := 0, 0
		a := ordinary(t)
		var insts []*inst
		for n := range 2 {
			i := a.start(t, fmt.Sprint("idle", n), "--endpoint", s.endpoint, "--port-driver", s.driver, "-p", fmt.Sprintf("%d-%d:80-%d", 8100+100*n, 8100+100*n+ports-1, 80+ports-1))
			var servers []string
			for p := range ports {
				servers = append(servers, fmt.Sprintf("tcp4,0.0.0.0:%d", 80+p))
			}
			i.witness(t, servers...)
			client{}.mustAsk(t, "tcp", fmt.Sprintf("127.0.0.1:%d", 8100+100*n))
			insts = append(insts, i)
			engines = append(engines, i.mustStatus(t).EnginePID)
			info, _ := i.info()
			before += pss(t, engines[n])
			beforeSupervisor += pss(t, info.PID)
		}
		start := time.Now()
		var all []net.Conn
		var mu sync.Mutex
		var opening sync.WaitGroup
		for worker := range 8 {
			opening.Go(func() {
				for k := worker; k < 2*each; k += 8 {
					c, err := client{}.dial("tcp", fmt.Sprintf("127.0.0.1:%d", 8100+100*(k%2)+k/2%ports))
					if err == nil {
						_ = c.SetReadDeadline(time.Now().Add(patience))
						_, err = io.ReadFull(c, make([]byte, 9)) // of the witness's line: it is served
						mu.Lock()
						all = append(all, c)
						mu.Unlock()
					}
					if err != nil {
						t.Errorf("connection %d: %v", k, err)
						return
					}
				}
			})
		}
		opening.Wait()
		took := time.Since(start)
		after, afterSupervisor := 0, 0
		for n, i := range insts {
			s := i.mustStatus(t)
			info, _ := i.info()
			if s.EngineRestarts != 0 {
				t.Errorf("engine %d died", n)
			}
			after += pss(t, engines[n])
			afterSupervisor += pss(t, info.PID)
		}
		t.Logf("%v: %d idle connections in 2 instances, opened in %v: engines %d KiB PSS more, %.2f KiB each; supervisors %d KiB more; %d descriptors in the first engine",
			s, len(all), took.Round(time.Millisecond), after-before, float64(after-before)/float64(len(all)), afterSupervisor-beforeSupervisor, openFiles(t, engines[0]))
		for _, c := range all {
			c.Close()
		}
		for n := range insts {
			client{}.mustAsk(t, "tcp", fmt.Sprintf("127.0.0.1:%d", 8100+100*n))
		}
	})
}

// openFiles counts a process's descriptors.
func openFiles(t testing.TB, pid int) int {
	t.Helper()
	list, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(list) == 0 {
		t.Fatalf("descriptors of %d: %d, %v", pid, len(list), err)
	}
	return len(list)
}

// threads counts a process's threads.
func threads(t testing.TB, pid int) int {
	t.Helper()
	list, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*", pid))
	if err != nil || len(list) == 0 {
		t.Fatalf("threads of %d: %d, %v", pid, len(list), err)
	}
	return len(list)
}

// TestPublishedCycle: many connections one after the other, and datagrams of many
// clients, leave nothing behind.
func TestPublishedCycle(t *testing.T) {
	total, clients := 4000, 8
	if large() {
		total = 100000
	}
	overSettings(t, []setting{{"run", "tap", "splice"}, {"run", "packet", "netstack"}}, func(t *testing.T, s setting) {
		i := s.begin(t, ordinary(t), "8001:80")
		i.witness(t, "tcp4,0.0.0.0:80", "tcp6,[::]:80")
		engine := i.mustStatus(t).EnginePID
		cycle := func(n int) time.Duration {
			start := time.Now()
			var all sync.WaitGroup
			for k := range clients {
				all.Go(func() {
					for j := range n / clients {
						if _, err := (client{}).ask("tcp", net.JoinHostPort(loopbacks[(j+k)%2], "8001")); err != nil {
							t.Errorf("connection %d of client %d: %v", j, k, err)
							return
						}
					}
				})
			}
			all.Wait()
			return time.Since(start)
		}
		// The pools and the runtime's threads have their size now; in the short form
		// the stock has its, too.
		slack := baselineSlack
		if large() {
			cycle(500)
		} else {
			slack = stockSlack
			cycle(total)
		}
		fds, tasks, memory := openFiles(t, engine), threads(t, engine), pss(t, engine)
		took := cycle(total)
		// The stock has grown with the demand, and shrinks when there is none.
		start, peak, now := time.Now(), openFiles(t, engine), 0
		err := eventually(2*patience, func() error {
			now = openFiles(t, engine)
			return failIf(now > fds+slack, "%d descriptors, %d before", now, fds)
		})
		if err != nil {
			t.Error(err)
		}
		shrunk := time.Since(start)
		if now := threads(t, engine); now > tasks+baselineSlack {
			t.Errorf("%d threads, %d before", now, tasks)
		}
		t.Logf("%v: %d connects from %d clients in %v (%.0f/s): descriptors %d, then %d, %d after %v; threads %d, then %d; PSS %d, then %d KiB",
			s, total, clients, took.Round(time.Millisecond), float64(total)/took.Seconds(), fds, peak, now, shrunk.Round(time.Millisecond),
			tasks, threads(t, engine), memory, pss(t, engine))
		if s := i.mustStatus(t); s.EngineRestarts != 0 {
			t.Errorf("the engine died; %v", s.Counters)
		} else {
			t.Log(s.Counters)
		}
	})
}

// What may stay: a batch of sockets in stock, a thread; and how far apart two looks at
// a stock in use may be, which is less than one descriptor for each connection.
const (
	baselineSlack = 32
	stockSlack    = 1024
)
