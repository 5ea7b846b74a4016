package express

import (
	"errors"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/link"
	"github.com/postern-net/postern/stack/relay"
	"github.com/postern-net/postern/stack/sockcall"
)

// stage is where a connection stands; see the package comment.
type stage uint8

const (
	dialing stage = iota
	injected
	opened
	over
)

// conn is a connection of the container from its SYN to its end. Its methods run on
// its home's thread, but for again, join, replace and ended.
type conn struct {
	out  *Out
	home *home
	key  flow.Key
	dial netip.AddrPort // where the guard lets it go
	flow *flow.Flow

	stage   stage
	syn     *kept // the last one that came; nil once opened
	host    int   // the host's socket; -1 if there is none, or it is the relay's
	started time.Time
	watch   *relay.Watch
	timer   *relay.Timer

	// repeated says that a SYN which was sent again is on its way to the thread.
	repeated atomic.Bool

	// Once opened: the loop that relays. The other fields are its thread's.
	lane    *relay.Loop
	relayed *relay.Flow
	gone    bool  // the relay has ended
	next    *kept // the SYN of a connection that follows with the same addresses
}

// again deals with a SYN whose connection is here already. It is called on the
// goroutine that reads frames.
func (c *conn) again(p link.Packet) {
	if !c.repeated.CompareAndSwap(false, true) {
		return // a flood of them costs no memory
	}
	syn := keep(p)
	c.home.loop.Do(func() { c.retransmitted(syn) })
}

// retransmitted: while the dial is under way the SYN starts nothing. Later it has to
// take the way of the first one, which may have been lost. One with another hop limit is
// the very SYN that was written back: without our rules a container that forwards
// packets sends it to us again.
func (c *conn) retransmitted(syn *kept) {
	c.repeated.Store(false)
	if c.syn != nil && syn.TTL != c.syn.TTL {
		return
	}
	switch c.stage {
	case dialing:
		c.syn = syn
	case injected:
		c.syn = syn
		if c.out.cfg.Sender.Reinject(syn.Packet) == nil {
			c.home.accept(c)
		}
	case opened:
		// The client's side of the old connection is no more: the container's kernel
		// uses its port again.
		if s, err := c.out.diag.state(c.key); err == nil && s == synSent {
			c.lane.Do(func() { c.replace(syn) })
		}
	case over:
		// It ended while this was on its way; only another socket's SYN is still wanted.
		if s, err := c.out.diag.state(c.key); err == nil && s == synSent {
			c.out.begin(c.home, syn, c.key, c.dial)
		}
	}
}

// errReplaced ends a flow whose client has begun another one with its addresses.
var errReplaced = errors.New("the client's socket is gone")

// replace ends the flow and begins another one with its addresses. When the client had
// ended it in order, its end may have come just before.
func (c *conn) replace(syn *kept) {
	if c.gone {
		c.out.begin(c.home, syn, c.key, c.dial)
		return
	}
	c.next = syn
	c.relayed.Abort(errReplaced)
}

// quiet ends what waits for something.
func (c *conn) quiet() {
	if c.watch != nil {
		c.watch.Close()
		c.watch = nil
	}
	c.stopTimer()
}

func (c *conn) stopTimer() {
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
}

// open takes the container's socket: both ends are there.
func (c *conn) open(client int) {
	c.quiet()
	o, host := c.out, c.host
	c.stage, c.syn, c.host = opened, nil, -1
	o.cfg.Flows.Opened(c.flow)
	o.count(flow.TCPExpress)
	o.health.worked()
	if c.lane = c.home.choose(); c.lane == c.home.loop {
		c.join(client, host)
	} else if !c.lane.Do(func() { c.join(client, host) }) {
		sockcall.Reset(client)
		sockcall.Reset(host)
		o.forget(c)
	}
}

// join hands both sockets to the relay; they are closed when it calls ended.
func (c *conn) join(client, host int) {
	c.relayed = c.lane.Splice(client, host, relay.Splice{
		A: c.home.accepted, Out: &c.flow.BytesOut, In: &c.flow.BytesIn, Done: c.ended,
	})
}

func (c *conn) ended(error) {
	c.gone = true
	c.out.forget(c)
	if c.next != nil {
		c.out.begin(c.home, c.next, c.key, c.dial)
	}
}

// abort ends the connection at any stage.
func (c *conn) abort() {
	if c.stage == opened {
		c.lane.Do(func() { c.relayed.Abort(relay.ErrClosed) })
		return
	}
	c.drop()
}

// drop ends a connection that is not opened yet. The container is told nothing.
func (c *conn) drop() {
	if c.stage >= opened {
		return
	}
	c.stage = over
	c.quiet()
	if c.host >= 0 {
		sockcall.Reset(c.host)
		c.host = -1
	}
	c.out.forget(c)
}

// fail ends a connection that the host's side has refused, and tells the container.
func (c *conn) fail(call string, errno error) {
	answer := c.out.tell.Judge(os.NewSyscallError(call, errno))
	c.drop()
	if answer.Reset {
		c.out.cfg.Sender.SendReset(c.syn.Packet)
		return
	}
	c.out.tell.Tell(answer, c.key, c.syn.Bytes)
}

// fallBack gives the SYN to the universal path.
func (c *conn) fallBack() {
	c.drop()
	c.out.count(flow.TCPExpressFallback)
	c.out.cfg.Sender.Resubmit(c.syn.Packet)
}
