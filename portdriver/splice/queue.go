package splice

import (
	"container/list"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack/relay"
)

// queue gives out the stock's sockets in the order in which they were asked for.
// Accepting pauses when maxWaiting wait for a kind; those that go on to another route
// can make it longer, but there are no more than pending connections.
type queue struct {
	stock  Stock
	cancel func()
	served func() // called when some have been served
	// n is how many wait for each kind, to be looked at without the lock.
	n [handoff.NumSocketKinds]atomic.Int64

	mu     sync.Mutex // guards the fields below; held while calling Take
	closed bool
	kinds  [handoff.NumSocketKinds]list.List // of *conn
}

func newQueue(s Stock, served func()) *queue {
	q := &queue{stock: s, served: served}
	q.cancel = s.Subscribe(q.arrived)
	return q
}

func (q *queue) close() {
	q.cancel()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
}

// len is how many wait for a kind.
func (q *queue) len(kind handoff.SocketKind) int { return int(q.n[kind].Load()) }

// empty reports whether nobody waits.
func (q *queue) empty() bool {
	for kind := range q.n {
		if q.n[kind].Load() > 0 {
			return false
		}
	}
	return true
}

// take returns a socket. If there is none, or others wait for one, c gets one later
// by granted, on its thread. The lock is held meanwhile, so that no socket arrives
// between finding none and waiting.
func (q *queue) take(kind handoff.SocketKind, c *conn) (fd int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.kinds[kind].Len() == 0 {
		if fd, ok = q.socket(kind); ok {
			return fd, true
		}
	}
	c.place, c.placeKind = q.kinds[kind].PushBack(c), kind
	q.n[kind].Add(1)
	return -1, false
}

// socket takes a socket from the stock, one that was used before if there is one.
func (q *queue) socket(kind handoff.SocketKind) (fd int, ok bool) {
	if fd, ok = q.stock.Reuse(kind); ok {
		return fd, true
	}
	if fd, ok = q.stock.Take(kind); ok {
		prepare(fd)
	}
	return fd, ok
}

// prepare sets the options of a fresh socket, which it keeps when it is used again.
func prepare(fd int) {
	relay.PrepareLocal(fd)
	// Port 0 leaves the port to connect(2), which finds one that is free towards its
	// target (ip(7)); without the option one is taken from all others.
	_ = setInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
}

// keep puts a socket back that can be used again.
func (q *queue) keep(kind handoff.SocketKind, fd int) {
	q.stock.Keep(kind, fd)
	if q.len(kind) > 0 {
		q.arrived(kind)
	}
}

// leave takes c out of the queue. It reports false if c does not wait: a socket may
// be on its way to it.
func (q *queue) leave(c *conn) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if c.place == nil {
		return false
	}
	q.removeLocked(c)
	return true
}

// arrived serves those who wait. The stock calls it.
func (q *queue) arrived(kind handoff.SocketKind) {
	for {
		c, fd, ok := q.match(kind)
		if !ok {
			return
		}
		if !c.lane.Do(func() { c.granted(fd) }) {
			_ = unix.Close(fd)
		}
		q.served()
	}
}

// match takes the first one who waits and a socket for it.
func (q *queue) match(kind handoff.SocketKind) (c *conn, fd int, ok bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	first := q.kinds[kind].Front()
	if first == nil || q.closed {
		return nil, -1, false
	}
	if fd, ok = q.socket(kind); !ok {
		return nil, -1, false
	}
	c = first.Value.(*conn)
	q.removeLocked(c)
	return c, fd, true
}

func (q *queue) removeLocked(c *conn) {
	q.kinds[c.placeKind].Remove(c.place)
	c.place = nil
	q.n[c.placeKind].Add(-1)
}
