package splice

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/stock"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack/relay"
	"github.com/postern-net/postern/stack/stacktest"
)

// TestStockIsEmpty: clients wait for sockets, and get them in their order.
func TestStockIsEmpty(t *testing.T) {
	w := newWorld(t, nil)
	w.setDeaf(true)
	port := w.publish(portdriver.Listener{Target: server(t, container4)}, "127.0.0.1")
	var clients []*client
	for i := range 5 {
		clients = append(clients, dial(t, "", port))
		stacktest.Eventually(t, "it to wait", func() bool { return w.Driver.stock.len(handoff.SocketTCP4) == i+1 })
	}
	w.stock.Deliver(handoff.SocketTCP6, ordinary(t, handoff.SocketTCP6, 1)) // not what they wait for
	w.stock.Deliver(handoff.SocketTCP4, ordinary(t, handoff.SocketTCP4, 2))
	for _, c := range clients[:2] {
		c.talk2(t)
	}
	if n := w.Driver.stock.len(handoff.SocketTCP4); n != 3 {
		t.Errorf("%d wait, want 3", n)
	}
	clients[2].Close() // it gets one all the same, and gives it up
	w.stock.Deliver(handoff.SocketTCP4, ordinary(t, handoff.SocketTCP4, 4))
	for _, c := range clients[3:] {
		c.talk2(t)
	}
	if w.stock.Len(handoff.SocketTCP4) != 1 || w.pending.Load() != 0 {
		t.Errorf("%d sockets are left, %d connections pending", w.stock.Len(handoff.SocketTCP4), w.pending.Load())
	}
}

// TestStockStaysEmpty: nobody waits for ever, and the wait is bounded by what the
// kernel's backlog takes.
func TestStockStaysEmpty(t *testing.T) {
	w := newWorld(t, nil)
	w.setDeaf(true)
	port := w.publish(portdriver.Listener{Target: server(t, container4)}, "127.0.0.1")
	const clients = maxWaiting + 10
	for range clients {
		dial(t, "", port)
	}
	stacktest.Eventually(t, "the queue to be full", func() bool { return w.Driver.stock.len(handoff.SocketTCP4) == maxWaiting })
	end := time.Now().Add(2*stockWait + stacktest.Patience)
	for w.counters.Load(portdriver.RefusedSockets) < clients && time.Now().Before(end) {
		time.Sleep(10 * time.Millisecond)
	}
	w.counted(portdriver.RefusedSockets, clients)
}

// TestOneKindIsMissing: where no socket of a family can be had, its clients reach the
// other family's server a little later, and other ports do not wait.
func TestOneKindIsMissing(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Stock = without6{c.Stock} })
	target := server(t, container4)
	both := w.publish(portdriver.Listener{Target: netip.AddrPortFrom(netip.Addr{}, target.Port())}, "[::1]")
	only4 := w.publish(portdriver.Listener{Target: target}, "127.0.0.1")
	var waiting []*client
	for range maxWaiting + 2 {
		waiting = append(waiting, dial(t, "", both))
	}
	stacktest.Eventually(t, "the queue to be full", func() bool {
		return w.Driver.stock.len(handoff.SocketTCP6) == maxWaiting
	})
	dial(t, "", only4).talk2(t)
	for _, c := range waiting[:maxWaiting] {
		c.talk2(t)
	}
}

// without6 is a stock that has nothing for IPv6.
type without6 struct{ Stock }

func (s without6) Take(kind handoff.SocketKind) (int, bool) {
	if kind == handoff.SocketTCP6 {
		return -1, false
	}
	return s.Stock.Take(kind)
}

// TestFullDriver: at capacity clients wait in the kernel; each connection that ends
// lets one in.
func TestFullDriver(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.MaxFlows = 1 })
	target := server(t, container4)
	port := w.publish(portdriver.Listener{Target: target}, "127.0.0.1")
	first, second := dial(t, "", port), (*client)(nil)
	first.talk2(t)
	for range 10 {
		second = dial(t, "", port)
		first.Close()
		second.talk2(t)
		if st := w.Status(); st.TCP > 1 {
			t.Fatalf("%d connections, at most 1 may be", st.TCP)
		}
		first = second
	}
	w.counted(portdriver.Accepted, 11)
	w.counted(portdriver.Paused, 0) // that counts shortages
}

// TestGreedyPort: one port with its share of connections is refused more, another
// one is served.
func TestGreedyPort(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.MaxFlows = 16 })
	target := server(t, container4)
	greedy := w.publish(portdriver.Listener{Target: target}, "127.0.0.1")
	modest := w.publish(portdriver.Listener{Target: target}, "127.0.0.1")
	for range 12 {
		dial(t, "", greedy).talk2(t)
	}
	refused(t, greedy)
	w.counted(portdriver.RefusedClient, 1)
	dial(t, "", modest).talk2(t)
}

// starved is a process with 64 descriptors that serves a port; see starvedChild.
type starved struct {
	port netip.AddrPort
	out  *bufio.Reader
	in   io.WriteCloser
}

// starvedChild serves one port for the target and with the capacity that its
// arguments give, tells its address, and ends when its input does.
func starvedChild() int {
	limit := unix.Rlimit{Cur: 64, Max: 64}
	err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
	var most int
	_, scanErr := fmt.Sscan(os.Args[2], &most)
	target, parseErr := netip.ParseAddrPort(os.Args[1])
	if err := errors.Join(err, scanErr, parseErr); err != nil {
		fmt.Println(err)
		return 1
	}
	tb := &panics{}
	var s *stock.Stock
	s = stock.New(func(kind handoff.SocketKind, n int) {
		var fds []int
		for range n { // as from the netns: what finds no room is lost
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
			if err != nil {
				break
			}
			fds = append(fds, fd)
		}
		s.Deliver(kind, fds)
	}, stock.MaxFor(limit.Cur))
	defer s.Close()
	loops, err := relay.NewLoops(2)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer loops.Close()
	d, err := New(Config{Addresses: anywhere, Loops: loops, Stock: s, MaxFlows: most})
	if err != nil {
		fmt.Println(err)
		return 1
	}
	defer d.Close()
	w := &world{TB: tb, Driver: d}
	fmt.Println(w.publish(portdriver.Listener{Target: target}, "127.0.0.1"))
	_, _ = io.Copy(io.Discard, os.Stdin)
	fmt.Println(d.Status().Counters)
	return 0
}

// panics is the testing.TB of a process that is no test.
type panics struct{ testing.TB }

func (*panics) Helper()           {}
func (*panics) Cleanup(func())    {}
func (*panics) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

func startStarved(t *testing.T, target netip.AddrPort, most int) *starved {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", target.String(), fmt.Sprint(most))
	cmd.Env = append(os.Environ(), childRole+"=starved")
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &starved{out: bufio.NewReader(out), in: in}
	t.Cleanup(func() {
		in.Close()
		counters, _ := io.ReadAll(s.out)
		if err := cmd.Wait(); err != nil {
			t.Errorf("the child: %v", err)
		}
		t.Logf("the child counted %s", counters)
	})
	line, err := s.out.ReadString('\n')
	if err == nil {
		s.port, err = netip.ParseAddrPort(line[:len(line)-1])
	}
	if err != nil {
		t.Fatalf("the child said %q: %v", line, err)
	}
	return s
}

// TestDescriptorsRunOut: with 64 descriptors and 200 clients a port does what it
// can; when the clients have gone it serves again, within a second.
func TestDescriptorsRunOut(t *testing.T) {
	for name, most := range map[string]int{"no limit of connections": 10000, "the limit that fits": 0} {
		t.Run(name, func(t *testing.T) {
			s := startStarved(t, server(t, container4), most)
			for cycle := range 3 {
				served := s.crowd(t, 200)
				start := time.Now()
				stacktest.Eventually(t, "the port to serve", func() bool { return s.serves() })
				took := time.Since(start)
				t.Logf("cycle %d: %d of 200 clients were served; after they had gone, the next one in %v", cycle, served, took)
				if served == 0 {
					t.Error("no client at all was served")
				}
			}
		})
	}
}

// crowd connects clients that stay, and tells how many a server has greeted when
// nothing more happens, after the first of them. Then they go.
func (s *starved) crowd(t *testing.T, n int) (served int) {
	greeted := make(chan bool, n)
	var clients []*client
	for range n {
		c, err := tryDial("", s.port)
		if errors.Is(err, syscall.ECONNRESET) {
			greeted <- false
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
		go func() {
			_, err := c.r.ReadString('\n')
			greeted <- err == nil
		}()
	}
	answers := 0
	for quiet := time.NewTimer(stacktest.Patience); answers < n; {
		select {
		case ok := <-greeted:
			if answers++; ok {
				served++
			}
			if served > 0 {
				quiet.Reset(300 * time.Millisecond)
			}
			continue
		case <-quiet.C:
		}
		break
	}
	for _, c := range clients {
		c.Close()
	}
	for ; answers < n; answers++ {
		<-greeted
	}
	return served
}

// serves tries a whole dialogue.
func (s *starved) serves() bool {
	c, err := tryDial("", s.port)
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	_, err = c.r.ReadString('\n')
	return err == nil && c.exchange([]byte("hello")) == nil
}

func TestCapacity(t *testing.T) {
	for limit, want := range map[uint64]int{0: 1, 64: 16, 1024: 320, 20000: 8912, 1 << 20: portdriver.MaxTCP} {
		if got := capacity(limit); got != want {
			t.Errorf("a limit of %d: %d connections, want %d", limit, got, want)
		}
	}
}
