package stock

import (
	"time"

	"github.com/postern-net/postern/proto/handoff"
)

// orders is how many sockets of each kind to order now.
type orders [handoff.NumSocketKinds]int

// run orders what runs low and settles what is idle, until Close.
func (s *Stock) run() {
	defer close(s.done)
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		todo, next, open := s.review()
		if !open {
			return
		}
		for kind, n := range todo {
			if n > 0 {
				s.order(handoff.SocketKind(kind), n)
			}
		}
		// A nil channel never delivers: an idle stock wakes nobody.
		var due <-chan time.Time
		if !next.IsZero() {
			timer.Reset(time.Until(next))
			due = timer.C
		}
		select {
		case <-s.wake:
		case <-due:
		}
	}
}

// review brings all shelves up to date. It returns what to order, when to look
// again if nothing happens before, and whether the stock is open.
func (s *Stock) review() (todo orders, next time.Time, open bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return todo, next, false
	}
	now := time.Now()
	for kind := range s.shelves {
		h := &s.shelves[kind]
		if h.late(now) {
			s.stats.Expired++
		}
		surplus := append(h.settle(now, s.max), h.tidy(now)...)
		closeAll(surplus)
		s.stats.Surplus += uint64(len(surplus))
		at := h.next()
		if h.short() {
			if now.Before(s.resting) {
				at = earlier(at, s.resting)
			} else {
				todo[kind] = h.begin(now, s.max)
				s.stats.Orders++
				at = h.next()
			}
		}
		next = earlier(next, at)
	}
	return todo, next, true
}

// earlier returns the earlier one of two times, of which the zero one is never.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || !b.IsZero() && b.Before(a) {
		return b
	}
	return a
}
