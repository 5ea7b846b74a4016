package relay

import (
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/stacktest"
)

func TestLoopDo(t *testing.T) {
	stacktest.NoLeaks(t)
	ls, err := NewLoops(1)
	if err != nil {
		t.Fatal(err)
	}
	l := ls.All()[0]
	var got []int
	for i := 1; i <= 1000; i++ {
		if !l.Do(func() {
			got = append(got, i)
			l.Do(func() { got = append(got, -i) })
		}) {
			t.Fatal("refused")
		}
	}
	stacktest.Eventually(t, "all to run", func() (all bool) {
		onLoop(t, l, func() { all = len(got) == 2000 })
		return all
	})
	got = slices.DeleteFunc(got, func(i int) bool { return i < 0 })
	if !slices.IsSorted(got) {
		t.Errorf("out of order: %v", got)
	}
	ls.Close()
	if l.Do(func() { t.Error("ran after Close") }) {
		t.Error("accepted after Close")
	}
	ls.Close() // once more does no harm
}

// Whatever Do accepts is run, also around Close.
func TestLoopDoWhileClosing(t *testing.T) {
	stacktest.NoLeaks(t)
	for range 20 {
		ls, err := NewLoops(2)
		if err != nil {
			t.Fatal(err)
		}
		var accepted, ran atomic.Int32
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				for ls.All()[i%2].Do(func() { ran.Add(1) }) {
					accepted.Add(1)
				}
			})
		}
		stacktest.Eventually(t, "some to run", func() bool { return ran.Load() > 100 })
		ls.Close()
		wg.Wait()
		if accepted.Load() != ran.Load() {
			t.Errorf("%d accepted, %d ran", accepted.Load(), ran.Load())
		}
	}
}

func TestLoopWatch(t *testing.T) {
	stacktest.NoLeaks(t)
	l := newLoops(t, 1).All()[0]
	var p, q [2]int
	for _, fds := range [][]int{p[:], q[:]} {
		if err := unix.Pipe2(fds, unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fds[0])
		defer unix.Close(fds[1])
	}
	var calls, others atomic.Int32
	var w, other *Watch
	onLoop(t, l, func() {
		var err, err2 error
		w, err = l.Watch(p[0], unix.EPOLLIN, func(events uint32) {
			if events != unix.EPOLLIN {
				t.Errorf("events %#x", events)
			}
			calls.Add(1)
		})
		other, err2 = l.Watch(q[0], unix.EPOLLIN, func(uint32) { others.Add(1); other.Close() })
		if err := errors.Join(err, err2); err != nil {
			t.Error(err)
		}
	})
	for _, fds := range [][2]int{p, q} {
		if _, err := unix.Write(fds[1], []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	stacktest.Eventually(t, "level-triggered calls", func() bool { return calls.Load() > 3 && others.Load() > 0 })
	onLoop(t, l, func() {
		if err := w.Set(0); err != nil {
			t.Error(err)
		}
	})
	n := calls.Load()
	for range 10 {
		onLoop(t, l, func() {})
	}
	if now := calls.Load(); now != n {
		t.Errorf("%d calls while nothing was waited for", now-n)
	}
	onLoop(t, l, func() { _ = w.Set(unix.EPOLLIN) })
	stacktest.Eventually(t, "calls again", func() bool { return calls.Load() > n })
	onLoop(t, l, func() {
		w.Close()
		w.Close()
		if _, err := l.Watch(-1, unix.EPOLLIN, nil); !errors.Is(err, unix.EBADF) {
			t.Errorf("bad descriptor: %v", err)
		}
	})
	if n := others.Load(); n != 1 {
		t.Errorf("%d calls of a watch that closes itself", n)
	}
}

// An event that was taken from the kernel before its watch was closed, and the slot
// given to another, reaches nobody.
func TestLoopStaleEvent(t *testing.T) {
	stacktest.NoLeaks(t)
	l := newLoops(t, 1).All()[0]
	var fds [3]int
	for i := range fds {
		fd, err := unix.Eventfd(1, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			t.Fatal(err)
		}
		fds[i] = fd
		defer unix.Close(fd)
	}
	calls := 0
	onLoop(t, l, func() {
		var w [2]*Watch
		for i := range w {
			w[i], _ = l.Watch(fds[i], unix.EPOLLIN, func(uint32) {
				calls++
				w[0].Close()
				w[1].Close()
				_, _ = l.Watch(fds[2], unix.EPOLLOUT, func(events uint32) {
					if events != unix.EPOLLOUT {
						t.Errorf("another's event %#x", events)
					}
				})
			})
		}
	})
	stacktest.Eventually(t, "a call", func() (called bool) {
		onLoop(t, l, func() { called = calls > 0 })
		return called
	})
	onLoop(t, l, func() {
		if calls != 1 {
			t.Errorf("%d calls, want one: the other watch was closed in it", calls)
		}
	})
}

func TestLoopAfter(t *testing.T) {
	stacktest.NoLeaks(t)
	l := newLoops(t, 1).All()[0]
	var fired []int
	var list [200]*Timer
	all := make(chan struct{})
	onLoop(t, l, func() {
		start := time.Now()
		rng := rand.New(rand.NewPCG(1, 1))
		for _, i := range rng.Perm(len(list)) {
			d := time.Duration(i) * 200 * time.Microsecond
			list[i] = l.After(d, func() {
				if e := time.Since(start); e < d {
					t.Errorf("after %v, want %v", e, d)
				}
				fired = append(fired, i)
			})
		}
		for i := 0; i < len(list); i += 3 {
			list[i].Stop()
			list[i].Stop()
		}
		l.After(200*200*time.Microsecond, func() { close(all) })
		l.After(time.Hour, func() { t.Error("too early") })
	})
	<-all
	want := make([]int, 0, 200)
	for i := range 200 {
		if i%3 != 0 {
			want = append(want, i)
		}
	}
	if !slices.IsSortedFunc(fired, func(i, j int) int { return list[i].at.Compare(list[j].at) }) {
		t.Errorf("out of order: %v", fired)
	}
	slices.Sort(fired)
	if !slices.Equal(fired, want) {
		t.Errorf("fired %v", fired)
	}
}

// The heap stays in order, whatever is added and taken out.
func TestTimersOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 7))
	var ts timers
	var live []*Timer
	for range 5000 {
		if rng.IntN(100) > len(live) {
			tm := &Timer{owner: &ts, at: time.Unix(int64(rng.IntN(1000)), 0)}
			ts.push(tm)
			live = append(live, tm)
		} else {
			i := rng.IntN(len(live))
			live[i].Stop()
			live = slices.Delete(live, i, i+1)
		}
		if len(ts.heap) != len(live) {
			t.Fatalf("%d timers, want %d", len(ts.heap), len(live))
		}
		for i, tm := range ts.heap {
			if tm.index != i || tm.at.Before(ts.heap[(i-1)/2].at) && i > 0 {
				t.Fatalf("timer %d of %d knows %d, or is out of order", i, len(ts.heap), tm.index)
			}
		}
	}
}

// Close under load: every flow gets ErrClosed once, every peer a reset.
func TestLoopsCloseUnderLoad(t *testing.T) {
	stacktest.NoLeaks(t)
	ls, err := NewLoops(2)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	list := make([]*joined, 60)
	for i := range list {
		j := join(t, ls.Least(), []string{"tcp", "unix"}[i%2], nil)
		list[i] = j
		if i%3 > 0 {
			wg.Go(func() { _ = flood(j.client) })
			wg.Go(func() { _ = flood(j.server) })
		}
	}
	stacktest.Eventually(t, "bytes to flow", func() bool { return list[1].out.Load() > 0 && list[5].in.Load() > 0 })
	ls.Close()
	for i, j := range list {
		if err := j.end(t); !errors.Is(err, ErrClosed) {
			t.Errorf("flow %d ended with %v", i, err)
		}
	}
	wg.Wait()
	expectReset(t, list[0].client)
	if s := ls.Stats(); s.Flows != 0 || s.Pipes != 0 {
		t.Errorf("left over: %+v", s)
	}
}

// A flow that Done begins while the loop ends is reset as well.
func TestSpliceWhileClosing(t *testing.T) {
	stacktest.NoLeaks(t)
	ls, err := NewLoops(1)
	if err != nil {
		t.Fatal(err)
	}
	l := ls.All()[0]
	_, a, b := prepared(t, l, "tcp")
	_, c, d := prepared(t, l, "tcp")
	second := make(chan error, 1)
	onLoop(t, l, func() {
		l.Splice(a, b, Splice{Done: func(error) {
			l.Splice(c, d, Splice{Done: func(err error) { second <- err }})
		}})
	})
	ls.Close()
	if err := <-second; !errors.Is(err, ErrClosed) {
		t.Errorf("ended with %v", err)
	}
}

// Loops that the kernel has no descriptors for are an error, and leave nothing.
func TestNewLoopsWithoutDescriptors(t *testing.T) {
	stacktest.NoLeaks(t)
	limitDescriptors(t, 3)
	if ls, err := NewLoops(4); !errors.Is(err, unix.EMFILE) {
		if err == nil {
			ls.Close()
		}
		t.Errorf("%v, want EMFILE", err)
	}
}

// limitDescriptors leaves the process n free descriptors.
func limitDescriptors(t *testing.T, n uint64) {
	t.Helper()
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	lowest := uint64(f.Fd()) // the first free one; others above may be in use
	f.Close()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	limit := unix.Rlimit{Cur: lowest + n, Max: old.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Setrlimit(unix.RLIMIT_NOFILE, &old) })
}

// What a listener accepts, and what a socket connects, is not paced.
func TestLocal(t *testing.T) {
	stacktest.NoLeaks(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	control(t, listener.(*net.TCPListener), Local)
	dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { Local(int(fd)) })
	}}
	dialled, err := dialer.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer dialled.Close()
	accepted, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer accepted.Close()
	for name, c := range map[string]net.Conn{"dialled": dialled, "accepted": accepted} {
		control(t, c.(*net.TCPConn), func(fd int) {
			if got, err := unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION); err != nil || got != "reno" {
				t.Errorf("%s: congestion control %q, %v", name, got, err)
			}
		})
	}
	Local(-1) // no socket: nothing happens
}

func control(t *testing.T, c syscall.Conn, fn func(fd int)) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) { fn(int(fd)) }); err != nil {
		t.Fatal(err)
	}
}
