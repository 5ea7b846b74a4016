package stock

import "time"

// shelf is the sockets of one kind. Its owner holds the Stock's lock.
type shelf struct {
	fds    []int // fresh ones
	needed bool  // a port needs this kind; without, nothing is ordered
	level  int

	// The order under way: how many are yet to come, and when it is given up.
	ordered int
	expires time.Time

	// bound is what the level may be until the time caution: an order for more has
	// failed.
	bound   int
	caution time.Time

	filled time.Time // when the last order was complete; zero if it has not been since
	taken  int       // since watched
	// watched is when the level is looked at next; zero for a level that cannot
	// fall.
	watched time.Time

	// used is sockets that were kept after their connections. spare is how many of
	// them nobody has needed since the last look, stale when the next one is; zero
	// while there are none.
	used  []int
	spare int
	stale time.Time
}

// keep puts a used socket on the shelf. It reports whether next may be earlier now.
func (h *shelf) keep(fd int) (hurry bool) {
	h.used = append(h.used, fd)
	if h.stale.IsZero() {
		h.stale, h.spare = time.Now().Add(idle), 0
		return true
	}
	return false
}

// reuse takes the used socket that came last, whose memory is still in the
// processor's cache.
func (h *shelf) reuse() (fd int, ok bool) {
	n := len(h.used) - 1
	if n < 0 {
		return -1, false
	}
	fd, h.used = h.used[n], h.used[:n]
	h.spare = min(h.spare, n)
	return fd, true
}

// tidy takes away the used sockets that were spare since the last time.
func (h *shelf) tidy(now time.Time) (old []int) {
	if h.stale.IsZero() || now.Before(h.stale) {
		return nil
	}
	old = append(old, h.used[:h.spare]...) // the ones at the bottom
	h.used = append(h.used[:0], h.used[h.spare:]...)
	h.spare, h.stale = len(h.used), now.Add(idle)
	if h.spare == 0 {
		h.stale = time.Time{}
	}
	return old
}

// clear takes away all sockets.
func (h *shelf) clear() []int {
	all := append(h.cut(0), h.used...)
	h.used, h.spare, h.stale = h.used[:0], 0, time.Time{}
	return all
}

// short reports whether sockets are to be ordered.
func (h *shelf) short() bool {
	return h.needed && h.ordered == 0 && len(h.fds) < low(h.level)
}

// begin starts an order and returns its size.
func (h *shelf) begin(now time.Time, most int) int {
	if !h.filled.IsZero() {
		h.level = raised(h.level, most, now.Sub(h.filled))
		if now.Before(h.caution) {
			h.level = min(h.level, h.bound)
		}
		h.filled = time.Time{}
	}
	if h.level > floor(most) && h.watched.IsZero() {
		h.watched, h.taken = now.Add(idle), 0
	}
	h.ordered = h.level - len(h.fds)
	h.expires = now.Add(patience)
	return h.ordered
}

// arrived counts sockets of the order under way, also those that were unfit: they
// are not to come any more. None at all is an order that failed.
func (h *shelf) arrived(n int, now time.Time) {
	if h.ordered == 0 {
		return
	}
	h.ordered = max(0, h.ordered-n)
	h.expires = now.Add(straggling)
	if h.ordered == 0 {
		h.filled = now
	}
}

// late ends an order that has not come in time. Perhaps there were no descriptors for
// so many, so the next one is smaller.
func (h *shelf) late(now time.Time) bool {
	if h.ordered == 0 || now.Before(h.expires) {
		return false
	}
	h.ordered = 0
	h.level = halved(h.level)
	h.bound, h.caution = h.level, now.Add(careful)
	return true
}

// settle lowers a level that is not needed any more, and returns the sockets above
// it.
func (h *shelf) settle(now time.Time, most int) (surplus []int) {
	if h.watched.IsZero() || now.Before(h.watched) {
		return nil
	}
	h.level = lowered(h.level, most, h.taken)
	h.watched, h.taken = now.Add(idle), 0
	if h.level <= floor(most) {
		h.watched = time.Time{}
	}
	return h.cut(h.level)
}

// cut takes away the sockets above a number.
func (h *shelf) cut(n int) []int {
	if len(h.fds) <= n {
		return nil
	}
	rest := append([]int(nil), h.fds[n:]...)
	h.fds = h.fds[:n]
	return rest
}

// next is when the shelf has to be looked at again; zero if only a call changes it.
func (h *shelf) next() time.Time {
	at := h.watched
	if h.ordered > 0 {
		at = earlier(at, h.expires)
	}
	return earlier(at, h.stale)
}
