package stock

import (
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack/sockcall"
)

// Stock is a supply of sockets. Its methods are safe for concurrent use.
type Stock struct {
	order func(kind handoff.SocketKind, n int)
	max   int
	wake  chan struct{} // to run: something may have to be ordered; capacity 1
	done  chan struct{} // closed by run at its end

	mu      sync.Mutex // guards the fields below
	closed  bool
	shelves [handoff.NumSocketKinds]shelf
	resting time.Time // nothing is ordered before
	hooks   []*func(handoff.SocketKind)
	stats   Stats
}

// Stats is what a Stock has counted since it began.
type Stats struct {
	Orders    uint64 // orders made
	Expired   uint64 // orders given up because nothing came in time
	Delivered uint64 // sockets that were put into the stock
	Unfit     uint64 // descriptors closed because they were not what was ordered
	Surplus   uint64 // sockets closed because there were enough
	Empty     uint64 // calls of Take that found nothing
	Reused    uint64 // sockets that were used once more
}

// Snapshot returns every number that is not zero, by the name that users see.
func (s Stats) Snapshot() map[string]uint64 {
	m := map[string]uint64{
		"published_sockets_ordered": s.Orders, "published_sockets_late": s.Expired, "published_sockets_in": s.Delivered,
		"published_sockets_unfit": s.Unfit, "published_sockets_surplus": s.Surplus, "published_sockets_missing": s.Empty,
		"published_sockets_reused": s.Reused,
	}
	maps.DeleteFunc(m, func(_ string, n uint64) bool { return n == 0 })
	return m
}

// New returns an empty stock. It calls order, from a goroutine of its own and never
// after Close, when sockets are to be made; the call may take its time, but should
// return when the engine ends. most bounds each kind's level, at most MaxLevel; 0 is what
// the process's limit of descriptors allows (see MaxFor).
func New(order func(kind handoff.SocketKind, n int), most int) *Stock {
	if most <= 0 {
		most = MaxFor(sockcall.OpenFiles())
	}
	s := &Stock{
		order: order,
		max:   max(1, min(most, MaxLevel)),
		wake:  make(chan struct{}, 1),
		done:  make(chan struct{}),
	}
	for i := range s.shelves {
		s.shelves[i].level = floor(s.max)
	}
	go s.run()
	return s
}

// Prepare tells that a port is open which will need sockets of a kind, so that they
// are there when its first client comes.
func (s *Stock) Prepare(kind handoff.SocketKind) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.need(&s.shelves[kind])
}

// need makes run look at a shelf that is short. s.mu is held.
func (s *Stock) need(h *shelf) {
	h.needed = true
	if !s.closed && h.short() {
		s.stir()
	}
}

// stir has run look at the shelves. s.mu is held, and the stock is open.
func (s *Stock) stir() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Take returns a socket, which is the caller's from then on, or false if there is
// none at the moment. It never waits; see Subscribe.
func (s *Stock) Take(kind handoff.SocketKind) (fd int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &s.shelves[kind]
	h.taken++
	if n := len(h.fds); n > 0 && !s.closed {
		fd, ok = h.fds[n-1], true
		h.fds = h.fds[:n-1]
	} else {
		s.stats.Empty++
	}
	s.need(h)
	return fd, ok
}

// Keep puts a socket back that Take or Reuse has given out, for Reuse. Its connection
// has ended and it is disconnected (relay.Splice.Keep): nothing of its user is left in
// it, and it can be bound again. The stock owns it from then on, and closes it if there
// are enough. Subscribers are not called: who keeps a socket knows that it is there.
func (s *Stock) Keep(kind handoff.SocketKind, fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &s.shelves[kind]
	if s.closed || len(h.used) >= mostUsed(s.max) {
		s.stats.Surplus++
		_ = unix.Close(fd)
		return
	}
	if h.keep(fd) {
		s.stir() // run waits for another time
	}
}

// Reuse returns a socket that was kept, which is the caller's from then on, or false
// if there is none. It spares the making of one, so it is worth asking before Take.
func (s *Stock) Reuse(kind handoff.SocketKind) (fd int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return -1, false
	}
	if fd, ok = s.shelves[kind].reuse(); ok {
		s.stats.Reused++
	}
	return fd, ok
}

// Deliver puts sockets into the stock, which owns the descriptors from then on. One
// that is not a fresh socket of that kind, or that is too many, is closed. Then it
// calls the subscribers. No socket at all means that the order has failed; it is made
// anew a little later.
func (s *Stock) Deliver(kind handoff.SocketKind, fds []int) {
	if int(kind) >= handoff.NumSocketKinds {
		closeAll(fds)
		return
	}
	var fit, unfit []int
	for _, fd := range fds {
		if inspect(fd, kind) == nil {
			fit = append(fit, fd)
		} else {
			unfit = append(unfit, fd)
		}
	}
	closeAll(unfit)
	stocked, hooks := s.put(kind, fit, len(fds))
	if !stocked {
		return
	}
	for _, fn := range hooks {
		(*fn)(kind)
	}
}

// put puts inspected sockets on their shelf, and counts how many descriptors came.
// It reports whether there are any for the returned subscribers.
func (s *Stock) put(kind handoff.SocketKind, fit []int, came int) (bool, []*func(handoff.SocketKind)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &s.shelves[kind]
	room := s.max - len(h.fds)
	if s.closed {
		room = 0
	}
	n := min(len(fit), room)
	h.fds = append(h.fds, fit[:n]...)
	closeAll(fit[n:])
	before := h.next()
	h.arrived(came, time.Now())
	hurry := h.next() != before
	s.stats.Delivered += uint64(n)
	s.stats.Surplus += uint64(len(fit) - n)
	s.stats.Unfit += uint64(came - len(fit))
	if hurry && !s.closed {
		s.stir() // run waits for another time
	}
	return n > 0, s.hooks
}

// Subscribe has fn called, by Deliver, whenever sockets of a kind have arrived. fn
// may call Take, and must return soon. After cancel has returned, calls that were
// under way may still be.
func (s *Stock) Subscribe(fn func(kind handoff.SocketKind)) (cancel func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	hook := &fn
	s.hooks = append(slices.Clone(s.hooks), hook)
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.hooks = slices.DeleteFunc(slices.Clone(s.hooks), func(h *func(handoff.SocketKind)) bool { return h == hook })
	}
}

// Shed closes all sockets in stock, because descriptors have run out, and returns
// how many there were. For a moment nothing is ordered; a second call does not
// prolong that, so that a stock that is shed all the time still gets some.
func (s *Stock) Shed() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for i := range s.shelves {
		h := &s.shelves[i]
		fds := h.clear()
		n += len(fds)
		closeAll(fds)
		h.level, h.filled = floor(s.max), time.Time{} // it was not emptied by demand
	}
	if now := time.Now(); now.After(s.resting.Add(rest)) {
		s.resting = now.Add(rest)
	}
	for i := range s.shelves {
		if h := &s.shelves[i]; h.needed {
			s.need(h)
		}
	}
	return n
}

// Stats returns what was counted.
func (s *Stock) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// Len returns how many sockets of a kind are in stock.
func (s *Stock) Len(kind handoff.SocketKind) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.shelves[kind].fds)
}

// Close closes the sockets in stock and all that are delivered later, and waits for
// a call of order that is under way. It can be called again.
func (s *Stock) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		for i := range s.shelves {
			closeAll(s.shelves[i].clear())
		}
		close(s.wake)
	}
	s.mu.Unlock()
	<-s.done
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}
