package dhcp

import (
	"net/netip"
	"time"
)

// offerTime is how long an offered address waits for the client's request. A
// client asks within seconds; it retransmits within 64 s (RFC 2131 section 4.1).
const offerTime = 60 * time.Second

// maxPool bounds the lease table whatever the configured range.
const maxPool = 64

// lease is one address of the table and who holds it until when. An expired
// lease keeps its key, so that its client gets the same address again as long
// as nobody else needed it. A zero time means that it was never used.
type lease struct {
	addr  netip.Addr
	key   string
	until time.Time
}

func (l *lease) free(now time.Time) bool { return l.key == "" || !now.Before(l.until) }

// table is the leases of a server. The first one is the container's address, if it
// has one.
type table struct {
	leases []lease
	// reserved keeps the first lease for the known host.
	reserved bool
}

func newTable(container, first, last netip.Addr, reserved bool) table {
	t, most := table{reserved: reserved}, maxPool
	if container.IsValid() {
		t.leases = append(t.leases, lease{addr: container})
		most++
	}
	for a := first; a.IsValid() && a.Compare(last) <= 0 && len(t.leases) < most; a = a.Next() {
		if a != container {
			t.leases = append(t.leases, lease{addr: a})
		}
	}
	return t
}

// pool returns the leases that hosts other than the known one can have.
func (t *table) pool() []lease {
	if t.reserved {
		return t.leases[1:]
	}
	return t.leases
}

// held returns the client's lease, expired or not.
func (t *table) held(key string) *lease {
	for i := range t.pool() {
		if l := &t.pool()[i]; l.key == key {
			return l
		}
	}
	return nil
}

// choose returns the lease to offer: the client's own one, the one it wishes for
// if that is free, or the free one whose last use is longest ago, so that an
// address that was just declined comes last. It is nil when none is free.
func (t *table) choose(now time.Time, key string, wish netip.Addr) *lease {
	if l := t.held(key); l != nil {
		return l
	}
	var best *lease
	for i := range t.pool() {
		l := &t.pool()[i]
		if !l.free(now) {
			continue
		}
		if l.addr == wish {
			return l
		}
		if best == nil || l.until.Before(best.until) {
			best = l
		}
	}
	return best
}

// take gives the address to the client until the given time, and any other one
// that the client held back to the pool. It is nil, and nothing changes, when
// the address is not in the pool or another client's.
func (t *table) take(now time.Time, key string, addr netip.Addr, until time.Time) *lease {
	for i := range t.pool() {
		l := &t.pool()[i]
		if l.addr != addr {
			continue
		}
		if l.key != key && !l.free(now) {
			return nil
		}
		if other := t.held(key); other != nil && other != l {
			*other = lease{addr: other.addr, until: now}
		}
		l.key, l.until = key, until
		return l
	}
	return nil
}

// give ends the client's lease of addr. forget also drops the memory of who had
// it, so that the client is offered another one.
func (t *table) give(now time.Time, key string, addr netip.Addr, forget bool) {
	l := t.held(key)
	if l == nil || l.addr != addr {
		return
	}
	l.until = now
	if forget {
		l.key = ""
	}
}
