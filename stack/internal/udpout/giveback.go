package udpout

import (
	"time"

	"github.com/postern-net/postern/stack/internal/flow"
)

// room makes room for one more pair. Only one that is not in use gives way: when
// more flows talk than there is room for, moving them to and fro would cost more
// than it gains.
func (x *express) room() bool {
	x.mu.Lock()
	full, oldest := len(x.pairs) >= x.limit, x.oldestLocked()
	x.mu.Unlock()
	if !full {
		return true
	}
	if oldest == nil || x.t.age()-oldest.lastUsed() < window {
		return false
	}
	x.giveBack(oldest)
	return true
}

// spare closes the pair not used for longest and reports whether there was one.
func (x *express) spare() bool {
	x.mu.Lock()
	p := x.oldestLocked()
	x.mu.Unlock()
	if p != nil {
		x.giveBack(p)
	}
	return p != nil
}

// oldestLocked looks at all pairs: there are few, and it is seldom asked, while
// every datagram would have to keep an order.
func (x *express) oldestLocked() (oldest *pair) {
	for p := range x.pairs {
		if oldest == nil || p.lastUsed() < oldest.lastUsed() {
			oldest = p
		}
	}
	return oldest
}

// giveBack returns a flow to the universal path.
func (x *express) giveBack(p *pair) {
	if x.end(p) {
		x.t.cfg.Flows.Counters.Inc(flow.UDPExpressReturned)
	}
}

// end closes a pair, and reports false if somebody else does. What is kept back goes
// first. Then the socket is parted, so that from now on the container's datagrams go to
// the socket for strays, and gives away what it has.
func (x *express) end(p *pair) bool {
	if !x.leave(p) {
		return false
	}
	p.m.leave(p)
	x.drain.Lock()
	p.finish(&x.drainOut)
	if p.sock.Part() == nil {
		x.drainer.Drain(p.sock, rest{p})
	}
	x.drain.Unlock()
	p.sock.Close()
	return true
}

// endAll ends the pairs of a mapping that ends. Nothing is drained: it ends because
// nothing came.
func (x *express) endAll(m *mapping) {
	for _, p := range m.endLane() {
		if x.leave(p) {
			p.finish(nil)
			p.sock.Close()
		}
	}
}

// expire ends pairs that were not used for a while, and forgets who has talked.
func (x *express) expire(age time.Duration) {
	for _, p := range x.choose(func(p *pair) bool { return age-p.lastUsed() >= pairIdle }) {
		x.end(p)
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.pruneLocked(age)
}

func (x *express) choose(which func(*pair) bool) (ps []*pair) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for p := range x.pairs {
		if which(p) {
			ps = append(ps, p)
		}
	}
	return ps
}
