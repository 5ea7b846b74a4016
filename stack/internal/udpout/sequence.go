package udpout

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-net/postern/stack/hostsock"
)

// maxKept bounds what all pairs together keep back, in bytes: a multiple of a receive
// buffer. Order is given up for what is beyond.
const maxKept = 4 << 20

// keptCost is what a message costs besides its payload, in bytes.
const keptCost = 128

// sequence keeps the container's datagrams in order while a flow moves over. They
// come on two ways to two goroutines: what had left before the kernel was told is in
// the device and has to leave first; what came after is in the pair's socket, behind
// the datagram that was written back. Until the reader has run dry the socket's are
// kept back.
type sequence struct {
	settled atomic.Bool // nothing is kept back any more
	since   time.Duration
	// strays says that the socket for strays may have older ones; used by the
	// poller's goroutine only.
	strays bool

	seq   sync.Mutex // guards the fields below
	kept  []hostsock.Message
	bytes int64
	ended bool
}

// inUse is for a pair that no datagram is written back for: the kernel remembers the
// flow, or is told by what is sent to the container, which has been silent. Nothing
// can be in the device then.
func (p *pair) inUse() {
	p.turned = max(p.x.t.age(), 1)
	p.marked.Store(true)
	p.settled.Store(true)
	p.strays = true
}

// begin starts with a datagram, or a train of n, that was written back. The kernel has
// handed it over within the write, so it is in the socket now, and leaves before what
// is in the device. (If the kernel takes its time, it is kept like the others.)
func (p *pair) begin(n int) {
	h := &head{pair: p, left: n}
	for h.left > 0 && p.x.first.Take(p.sock, h) {
	}
	p.since = p.turned
	p.marked.Store(true)
	p.x.moving = append(p.x.moving, p)
	if !p.watch() {
		p.x.end(p)
	}
}

// head receives what was written back.
type head struct {
	*pair
	left int // datagrams
}

// Receive implements hostsock.Handler.
func (h *head) Receive(msg hostsock.Message) {
	if msg.From == h.m.from {
		h.left -= hostsock.Packet{Payload: msg.Payload, Segment: msg.Segment}.Datagrams()
	}
	h.arrive()
	h.send(&h.x.t.reader.writer, msg)
}

// watch has the poller receive for the pair from now on, unless that has ended.
func (p *pair) watch() bool {
	p.seq.Lock()
	defer p.seq.Unlock()
	return !p.ended && p.x.poller.Add(p.sock, p) == nil
}

// keeps is asked by the poller's goroutine about a message and reports whether it was
// kept back. What is older it has sent when it returns false.
func (p *pair) keeps(msg hostsock.Message) bool {
	x := p.x
	if p.strays {
		p.strays = false
		x.behind.Drain(x.catch[p.to.Addr().Is6()], stray{x})
	}
	if p.settled.Load() {
		return false
	}
	p.seq.Lock()
	defer p.seq.Unlock()
	if p.settled.Load() {
		return false
	}
	cost := int64(len(msg.Payload) + keptCost)
	if x.t.age()-p.since >= patience || x.kept.Load()+cost > maxKept {
		p.settleLocked(&x.out)
		return false
	}
	msg.Payload = slices.Clone(msg.Payload)
	p.kept = append(p.kept, msg)
	p.bytes += cost
	x.kept.Add(cost)
	return true
}

// settle sends what was kept back. From then on nothing is.
func (p *pair) settle(w *hostsock.Writer) {
	p.seq.Lock()
	defer p.seq.Unlock()
	p.settleLocked(w)
}

func (p *pair) settleLocked(w *hostsock.Writer) {
	for _, msg := range p.kept {
		p.send(w, msg)
	}
	p.x.kept.Add(-p.bytes)
	p.kept, p.bytes = nil, 0
	p.settled.Store(true)
}

// finish is settle for a pair that ends; without a Writer nothing is sent.
func (p *pair) finish(w *hostsock.Writer) {
	p.seq.Lock()
	defer p.seq.Unlock()
	p.ended = true
	if w == nil {
		p.kept = nil
	}
	p.settleLocked(w)
}

// ranDry is called by the reader: all that had left before has come.
func (x *express) ranDry() {
	for _, p := range x.moving {
		p.settle(&x.t.reader.writer)
	}
	clear(x.moving)
	x.moving = x.moving[:0]
}

// overdue reports whether the reader has not run dry for so long that what had left
// before must have come all the same.
func (x *express) overdue() bool {
	return len(x.moving) > 0 && x.t.age()-x.moving[0].since >= patience
}
