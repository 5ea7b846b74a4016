package stock

import (
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack/stacktest"
)

const tcp4, tcp6, udp4, udp6 = handoff.SocketTCP4, handoff.SocketTCP6, handoff.SocketUDP4, handoff.SocketUDP6

// maker plays the supervisor: it notes orders and makes sockets.
type maker struct {
	t  testing.TB
	s  *Stock
	mu sync.Mutex
	// deaf has orders noted only.
	deaf   bool
	orders []order
}

type order struct {
	kind handoff.SocketKind
	n    int
}

func newStock(t testing.TB, most int) (*Stock, *maker) {
	m := &maker{t: t}
	m.s = New(m.order, most)
	return m.s, m
}

func (m *maker) order(kind handoff.SocketKind, n int) {
	m.mu.Lock()
	m.orders = append(m.orders, order{kind, n})
	deaf := m.deaf
	m.mu.Unlock()
	if !deaf {
		m.s.Deliver(kind, sockets(m.t, kind, n))
	}
}

func (m *maker) setDeaf(deaf bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.deaf = deaf
}

// seen returns the orders since the last call, once everything has settled.
func (m *maker) seen() []order {
	synctest.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	list := m.orders
	m.orders = nil
	return list
}

func (m *maker) want(what string, want ...order) {
	m.t.Helper()
	if got := m.seen(); !slices.Equal(got, want) {
		m.t.Errorf("%s: orders %v, want %v", what, got, want)
	}
}

func socket(t testing.TB, kind handoff.SocketKind) int {
	t.Helper()
	n := natures[kind]
	fd, err := unix.Socket(n.domain, n.typ|unix.SOCK_CLOEXEC, n.protocol)
	if err != nil {
		t.Error(err)
	}
	return fd
}

func sockets(t testing.TB, kind handoff.SocketKind, n int) (fds []int) {
	for range n {
		fds = append(fds, socket(t, kind))
	}
	return fds
}

// take takes n sockets and closes them.
func take(t testing.TB, s *Stock, kind handoff.SocketKind, n int) {
	t.Helper()
	for i := range n {
		fd, ok := s.Take(kind)
		if !ok {
			t.Fatalf("no socket %d of %d", i+1, n)
		}
		unix.Close(fd)
	}
}

func bubble(t *testing.T, fn func(t *testing.T)) {
	stacktest.NoLeaks(t)
	synctest.Test(t, fn)
}

func TestStartsSmallGrowsAndDecays(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, m := newStock(t, 64)
		defer s.Close()
		m.want("unneeded")
		s.Prepare(tcp4)
		m.want("needed", order{tcp4, 16})
		take(t, s, tcp4, 8)
		m.want("at the low-water mark")
		take(t, s, tcp4, 1)
		m.want("below it, quickly", order{tcp4, 25}) // to 32
		take(t, s, tcp4, 17)
		m.want("quickly again", order{tcp4, 49}) // to 64
		take(t, s, tcp4, 33)
		m.want("at the most", order{tcp4, 33})
		time.Sleep(time.Second)
		take(t, s, tcp4, 33)
		m.want("slowly", order{tcp4, 33})
		for _, want := range []int{64, 32, 16, 16, 16} { // much was taken before the first look
			time.Sleep(idle)
			synctest.Wait()
			if got := s.Len(tcp4); got != want {
				t.Errorf("idle: %d sockets, want %d", got, want)
			}
		}
		m.want("idle")
	})
}

func TestSlowDemandDoesNotGrow(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, m := newStock(t, MaxLevel)
		defer s.Close()
		s.Prepare(udp6)
		synctest.Wait()
		for range 90 {
			time.Sleep(100 * time.Millisecond)
			take(t, s, udp6, 1)
			synctest.Wait()
		}
		for _, o := range m.seen()[1:] {
			if o != (order{udp6, 9}) {
				t.Fatalf("10 a second made the order %v", o)
			}
		}
	})
}

func TestOneOrderAtATimeRenewedWhenLate(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, m := newStock(t, 64)
		defer s.Close()
		m.setDeaf(true)
		for range 5 {
			if _, ok := s.Take(tcp6); ok {
				t.Fatal("a socket came from nowhere")
			}
		}
		m.want("empty", order{tcp6, 16})
		s.Take(tcp6)
		time.Sleep(patience - 1)
		m.want("not yet late")
		s.Deliver(tcp6, sockets(t, tcp6, 4)) // the rest must follow
		time.Sleep(straggling - 1)
		m.want("after a part")
		time.Sleep(time.Nanosecond)
		m.want("late: the level is 8, and 4 are there")
		take(t, s, tcp6, 1)
		m.want("below the low-water mark", order{tcp6, 5})
		m.setDeaf(false)
		time.Sleep(patience)
		synctest.Wait()
		m.want("late again: the level is 4, and 3 are there")
		take(t, s, tcp6, 2)
		m.want("below it again", order{tcp6, 3})
		if st := s.Stats(); st.Orders != 3 || st.Expired != 2 || st.Empty != 6 || st.Delivered != 7 {
			t.Errorf("stats %+v", st)
		}
	})
}

// TestFailedOrder: one that brings nothing is not repeated in a hurry, nor forgotten,
// but smaller: there may be descriptors for a few.
func TestFailedOrder(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, m := newStock(t, 64)
		defer s.Close()
		m.setDeaf(true)
		s.Prepare(tcp4)
		m.want("needed", order{tcp4, 16})
		for _, n := range []int{8, 4, 2, 1, 1} {
			s.Deliver(tcp4, nil)
			m.want("failed")
			time.Sleep(straggling)
			m.want("a little later", order{tcp4, n})
		}
		m.setDeaf(false)
		s.Deliver(tcp4, sockets(t, tcp4, 1))
		take(t, s, tcp4, 1)
		m.want("careful", order{tcp4, 1})
		time.Sleep(careful)
		// It recovers as sockets come: the levels are 2, 4, 8, 16 and 32, and each order
		// is made when the level before is half empty.
		for _, n := range []int{2, 4, 7, 13, 25} {
			got := m.seen()
			for len(got) == 0 {
				take(t, s, tcp4, 1)
				got = m.seen()
			}
			if want := []order{{tcp4, n}}; !slices.Equal(got, want) {
				t.Errorf("recovering: orders %v, want %v", got, want)
			}
		}
	})
}

func TestSubscribersHear(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, m := newStock(t, 8)
		defer s.Close()
		m.setDeaf(true)
		heard, other := 0, 0
		cancel := s.Subscribe(func(kind handoff.SocketKind) {
			if fd, ok := s.Take(kind); !ok {
				t.Error("told of sockets that are not there")
			} else {
				unix.Close(fd)
			}
			heard++
		})
		defer s.Subscribe(func(handoff.SocketKind) { other++ })()
		s.Deliver(tcp4, sockets(t, tcp4, 3))
		s.Deliver(tcp4, nil)
		s.Deliver(tcp4, sockets(t, udp4, 1)) // unfit
		cancel()
		s.Deliver(udp4, sockets(t, udp4, 1))
		if heard != 1 || other != 2 {
			t.Errorf("the subscribers heard %d and %d times, want 1 and 2", heard, other)
		}
	})
}

func TestShedGivesBackAndRests(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, m := newStock(t, 64)
		defer s.Close()
		s.Prepare(tcp4)
		s.Prepare(udp4)
		if got := m.seen(); len(got) != 2 {
			t.Fatalf("orders %v, want 2", got)
		}
		if n := s.Shed(); n != 32 || s.Len(tcp4)+s.Len(udp4) != 0 {
			t.Errorf("shed %d, %d are left", n, s.Len(tcp4)+s.Len(udp4))
		}
		for range 4 { // the rest is not prolonged
			s.Take(tcp4)
			m.want("resting")
			time.Sleep(rest / 5)
			s.Shed()
		}
		time.Sleep(rest/5 + 1)
		m.want("after the rest", order{tcp4, 16}, order{udp4, 16})
	})
}

func TestTooManyAreClosed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, _ := newStock(t, 4)
		defer s.Close()
		s.Deliver(tcp4, sockets(t, tcp4, 7))
		if n := s.Len(tcp4); n != 4 || s.Stats().Surplus != 3 {
			t.Errorf("%d sockets, %+v", n, s.Stats())
		}
		s.Deliver(handoff.SocketKind(handoff.NumSocketKinds), sockets(t, tcp4, 1))
	})
}

func TestClosed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, m := newStock(t, 4)
		s.Prepare(tcp4)
		m.want("open", order{tcp4, 4})
		s.Close()
		s.Close()
		s.Deliver(tcp4, sockets(t, tcp4, 2))
		s.Prepare(tcp6)
		if _, ok := s.Take(tcp4); ok || s.Len(tcp4) != 0 {
			t.Error("a closed stock has sockets")
		}
		s.Shed()
		m.want("closed")
	})
}

// TestTamperedSocketsAreRefused: whoever is root where the sockets are made could
// send anything.
func TestTamperedSocketsAreRefused(t *testing.T) {
	stacktest.NoLeaks(t)
	for _, c := range []struct {
		name string
		kind handoff.SocketKind // what was ordered
		made handoff.SocketKind
		fit  bool
	}{
		{"sound tcp4", tcp4, tcp4, true},
		{"sound tcp6", tcp6, tcp6, true},
		{"sound udp4", udp4, udp4, true},
		{"sound udp6", udp6, udp6, true},
		{"other family", tcp4, tcp6, false},
		{"other type", tcp4, udp4, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			fd := socket(t, c.made)
			delivered(t, fd, c.kind, c.fit)
		})
	}
	t.Run("no socket", func(t *testing.T) {
		fd, err := unix.Dup(int(os.Stdin.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		delivered(t, fd, tcp4, false)
	})
	t.Run("unix socket", func(t *testing.T) {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(pair[1])
		delivered(t, pair[0], tcp4, false)
	})
	t.Run("other protocol", func(t *testing.T) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 262) // IPPROTO_MPTCP
		if err != nil {
			t.Skipf("this kernel has no MPTCP: %v", err)
		}
		delivered(t, fd, tcp4, false)
	})
}

// delivered delivers one descriptor and checks whether it got into the stock.
func delivered(t *testing.T, fd int, kind handoff.SocketKind, fit bool) {
	t.Helper()
	s := New(func(handoff.SocketKind, int) {}, 4)
	defer s.Close()
	s.Deliver(kind, []int{fd})
	if st := s.Stats(); fit != (st.Delivered == 1) || fit == (st.Unfit == 1) {
		t.Fatalf("fit %v, stats %+v", fit, st)
	}
	if !fit {
		return
	}
	got, ok := s.Take(kind)
	if !ok || got != fd {
		t.Fatalf("took %d, %v", got, ok)
	}
	defer unix.Close(fd)
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("flags %#x, %v: not O_NONBLOCK", flags, err)
	}
}

// TestConcurrent has everything happen at once, for the race detector.
func TestConcurrent(t *testing.T) {
	stacktest.NoLeaks(t)
	s, m := newStock(t, 32)
	m.t = t
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for n := range 500 {
				if fd, ok := s.Take(tcp4); ok {
					unix.Close(fd)
				}
				if n%100 == 99 && i == 0 {
					s.Shed()
				}
			}
		})
	}
	wg.Wait()
	s.Close()
}

// BenchmarkTake is the way of one socket: made, inspected, stocked and taken.
func BenchmarkTake(b *testing.B) {
	s := New(func(handoff.SocketKind, int) {}, MaxLevel)
	defer s.Close()
	for b.Loop() {
		s.Deliver(tcp4, []int{socket(b, tcp4)})
		fd, ok := s.Take(tcp4)
		if !ok {
			b.Fatal("nothing in stock")
		}
		unix.Close(fd)
	}
}

// keep puts n sockets into the stock as if they had been used, and returns them.
func keep(t testing.TB, s *Stock, kind handoff.SocketKind, n int) []int {
	fds := sockets(t, kind, n)
	for _, fd := range fds {
		s.Keep(kind, fd)
	}
	return fds
}

func TestReusesTheLastFirst(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, m := newStock(t, 64)
		defer s.Close()
		if _, ok := s.Reuse(tcp4); ok {
			t.Error("a new stock had something to be used again")
		}
		fds := keep(t, s, tcp4, 3)
		if _, ok := s.Reuse(tcp6); ok {
			t.Error("got a socket of another kind")
		}
		for i := 2; i >= 0; i-- {
			if fd, ok := s.Reuse(tcp4); !ok || fd != fds[i] {
				t.Errorf("got %d, %v; want %d", fd, ok, fds[i])
			}
			unix.Close(fds[i])
		}
		if _, ok := s.Reuse(tcp4); ok {
			t.Error("got a socket that is not there")
		}
		m.want("used sockets are no reason to order") // nor is asking for one
		if n := s.Stats().Reused; n != 3 {
			t.Errorf("counted %d", n)
		}
	})
}

func TestUsedSocketsAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, _ := newStock(t, 20)
		keep(t, s, tcp4, 15)
		if st := s.Stats(); st.Surplus != 5 {
			t.Errorf("%+v, want a surplus of 5", st)
		}
		s.Close()
		keep(t, s, tcp4, 1) // NoLeaks would find it
	})
}

// What nobody needs for a while is closed: the least that there was in that time.
func TestUsedSocketsGrowOld(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, _ := newStock(t, 64)
		defer s.Close()
		keep(t, s, tcp4, 10)
		surplus := func(when string, want uint64) {
			t.Helper()
			synctest.Wait()
			if n := s.Stats().Surplus; n != want {
				t.Errorf("%s: %d were closed, want %d", when, n, want)
			}
		}
		time.Sleep(idle + time.Millisecond)
		surplus("after the first look", 0)
		var out []int
		for range 4 { // six are spare
			fd, _ := s.Reuse(tcp4)
			out = append(out, fd)
		}
		for _, fd := range out {
			s.Keep(tcp4, fd)
		}
		time.Sleep(idle)
		surplus("after a time of little use", 6)
		time.Sleep(idle)
		surplus("after a time of none", 10)
		if _, ok := s.Reuse(tcp4); ok {
			t.Error("something is left")
		}
	})
}

func TestShedClosesUsedSockets(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, _ := newStock(t, 64)
		defer s.Close()
		keep(t, s, tcp4, 3)
		keep(t, s, tcp6, 2)
		if n := s.Shed(); n != 5 {
			t.Errorf("shed %d, want 5", n)
		}
		if _, ok := s.Reuse(tcp4); ok {
			t.Error("something is left")
		}
	})
}

// Shedding what has been there for a while leaves nothing to be taken for spare later.
func TestUsedSocketsAfterShed(t *testing.T) {
	bubble(t, func(t *testing.T) {
		s, _ := newStock(t, 64)
		defer s.Close()
		keep(t, s, tcp4, 10)
		time.Sleep(idle + time.Millisecond) // all ten are spare from now on
		if n := s.Shed(); n != 10 {
			t.Errorf("shed %d, want 10", n)
		}
		keep(t, s, tcp4, 3)
		time.Sleep(idle + time.Millisecond)
		synctest.Wait()
		if n := s.Stats().Surplus; n != 0 {
			t.Errorf("%d were closed of those that came after that", n)
		}
		time.Sleep(idle)
		synctest.Wait()
		if n := s.Stats().Surplus; n != 3 {
			t.Errorf("%d were closed after a time without use, want 3", n)
		}
	})
}
