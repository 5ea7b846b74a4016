package splice

import (
	"container/list"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/internal/admission"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/proto/proxyproto"
	"github.com/postern-net/postern/stack/relay"
	"github.com/postern-net/postern/stack/sockcall"
)

// conn is a published connection from accept to its end:
//
//	accepted ─▶ has a server socket ─▶ pending ─▶ relayed ─▶ over
//	    └─▶ waits for the stock ─┘         └─▶ next route, or reset
//
// Its methods run on its lane's thread, but for obtain.
type conn struct {
	d        *Driver
	ln       *listener
	lane     *lane
	client   int               // descriptor; -1 when it is the relay's or closed
	prepared relay.Preparation // of client
	peer     netip.AddrPort
	key      admission.Key

	// On the way to the server.
	server  int // descriptor; -1 if there is none, or it is the relay's
	routes  []portdriver.Route
	anyPort bool // the client's port is taken
	// auto says that the kernel chose the server socket's port, byNumber that it has
	// to be bound to it by number (see ports).
	auto, byNumber bool
	detours        int
	pending        bool
	watch          *relay.Watch
	timer          *relay.Timer
	pause          time.Duration // before the next try of a full unix socket

	// In the queue; guarded by its lock.
	place     *list.Element
	placeKind handoff.SocketKind

	// While relayed.
	flow           *relay.Flow
	source, target netip.AddrPort
	started        time.Time
	out, in        atomic.Uint64

	over bool
}

// setPending counts the connection as pending (1) or not any more (-1).
func (c *conn) setPending(n int64) {
	if c.pending == (n > 0) {
		return
	}
	c.pending = n > 0
	c.ln.pending.Add(n)
	c.d.pending.Add(n)
	c.lane.starting.Add(n)
}

// after calls fn later, instead of what was to be called.
func (c *conn) after(d time.Duration, fn func()) {
	if c.timer != nil {
		c.timer.Stop()
	}
	c.timer = c.lane.After(d, fn)
}

// quiet ends what waits for something.
func (c *conn) quiet() {
	if c.watch != nil {
		c.watch.Close()
		c.watch = nil
	}
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
}

// join hands both sockets to the relay.
func (c *conn) join(source, target netip.AddrPort) {
	c.quiet()
	c.source, c.target, c.routes = source, target, nil
	o := relay.Splice{A: c.prepared, Out: &c.out, In: &c.in, Done: func(error) { c.end() }}
	if c.ln.desc.TargetPath == "" {
		o.B = relay.PreparedTCP // by the queue
		if c.auto {
			o.Keep = c.kept
		}
	}
	if v := c.ln.desc.Proxy; v != 0 {
		o.Prefix = proxyproto.Append(nil, v, c.peer, c.destination())
	}
	if c.anyPort && c.peer.Port() != 0 {
		c.d.counters.Inc(portdriver.OtherSource)
	}
	if c.detours > 0 {
		c.d.counters.Inc(portdriver.OtherFamily)
	}
	client, server := c.client, c.server
	c.client, c.server = -1, -1
	c.d.relayed(c)
	c.flow = c.lane.Splice(client, server, o)
	c.setPending(-1)
	c.d.freed()
}

// kept puts the server socket back into the stock. One that has moved bulk data has
// large buffers, which the kernel never makes smaller.
func (c *conn) kept(fd int) {
	if c.out.Load()+c.in.Load() > keepBytes {
		_ = unix.Close(fd)
		return
	}
	c.d.stock.keep(kindOf(c.target.Addr()), fd)
}

// destination is the address that the client connected to.
func (c *conn) destination() netip.AddrPort {
	if b := c.ln.desc.Bound; b.IsValid() && !b.Addr().IsUnspecified() {
		return b
	}
	return sockcall.LocalAddr(c.client)
}

// refuse resets the client and counts why.
func (c *conn) refuse(why portdriver.Counter) {
	c.d.counters.Inc(why)
	c.drop()
}

// abort ends the connection at any time.
func (c *conn) abort() {
	switch {
	case c.over:
	case c.flow != nil:
		c.flow.Abort(relay.ErrClosed)
	default:
		c.drop()
	}
}

// drop resets a client that is not relayed yet.
func (c *conn) drop() {
	c.quiet()
	c.d.stock.leave(c)
	c.closeServer()
	if c.client >= 0 {
		sockcall.Reset(c.client)
		c.client = -1
	}
	c.end()
}

// closeServer closes a server socket that did not work.
func (c *conn) closeServer() {
	if c.server >= 0 {
		_ = unix.Close(c.server)
		c.server = -1
	}
}

// end is the last step: both sockets are closed.
func (c *conn) end() {
	if c.over {
		return
	}
	c.over = true
	c.setPending(-1)
	c.d.places.Release(c.key, c.ln.port)
	c.d.forget(c)
	c.d.freed()
}
