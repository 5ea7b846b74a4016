package express

import (
	"net/netip"
	"sync"
	"time"

	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/link"
	"github.com/postern-net/postern/stack/internal/refusal"
)

// Out is the express path of one engine. Create it with New.
type Out struct {
	cfg    Config
	most   int // flows
	diag   lookup
	tell   refusal.Teller
	homes  [2]*home // of IPv4 and IPv6; nil without
	health health
	// every and patience are checkEvery and pairTimeout.
	every, patience time.Duration

	mu     sync.Mutex // guards the fields below
	closed bool
	// conns holds every connection from its SYN to its end, by its four addresses and
	// ports; bounded by most.
	conns map[flow.Key]*conn
	idle  sync.Cond // the last connection has ended
}

// kept is a copy of a SYN.
type kept struct {
	link.Packet
	memory [maxSYN]byte
}

func keep(p link.Packet) *kept {
	k := &kept{Packet: p}
	k.Bytes = k.memory[:copy(k.memory[:], p.Bytes)]
	return k
}

// home returns the place where connections of an address's family are made.
func (o *Out) home(a netip.Addr) *home {
	if a.Is4() {
		return o.homes[0]
	}
	return o.homes[1]
}

// Take decides about a SYN that the guard has let pass to dial: true means that it has
// dealt with it, false that it is for the universal path. p need not outlive the call.
// It is called on the goroutine that reads frames, and does not block.
func (o *Out) Take(p link.Packet, key flow.Key, dial netip.AddrPort) bool {
	h := o.home(p.Src)
	if h == nil || p.Src != o.cfg.Plan.Of(p.Src).Container || len(p.Bytes) > maxSYN {
		return false
	}
	if c := o.find(key); c != nil {
		c.again(p)
		return true
	}
	if o.health.paused() || o.cfg.Flows.Has(key) {
		return false
	}
	if o.full() {
		o.count(flow.TCPExpressLimit)
		return false
	}
	s, err := o.diag.state(key)
	switch {
	case err != nil:
		o.count(flow.TCPExpressDiagFailed)
		return false
	case s != synSent:
		o.count(flow.TCPExpressForeign)
		return false
	}
	return o.begin(h, keep(p), key, dial)
}

// begin starts a connection. It reports false if it did not, and the universal path
// may; a SYN that exceeds a limit is dropped, and the container's kernel sends it again.
func (o *Out) begin(h *home, syn *kept, key flow.Key, dial netip.AddrPort) bool {
	c := &conn{out: o, home: h, key: key, dial: dial, host: -1, syn: syn}
	f := o.cfg.Flows.AdmitDial(key, func() { h.loop.Do(c.abort) })
	if f == nil {
		return true
	}
	f.SetPath(flow.Express)
	c.flow = f
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		o.cfg.Flows.Release(f)
		return false
	}
	o.conns[key] = c
	o.mu.Unlock()
	if !h.loop.Do(c.start) {
		o.forget(c)
		return false
	}
	return true
}

func (o *Out) find(key flow.Key) *conn {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.conns[key]
}

func (o *Out) full() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.closed || len(o.conns) >= o.most
}

// forget ends a connection's place here and in the flow table.
func (o *Out) forget(c *conn) {
	o.cfg.Flows.Release(c.flow)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conns[c.key] == c {
		delete(o.conns, c.key)
	}
	if len(o.conns) == 0 {
		o.idle.Broadcast()
	}
}

func (o *Out) count(c flow.Counter) { o.cfg.Flows.Counters.Inc(c) }

// Close resets every flow, ends every dial and waits until nothing is left. The loops
// must not be closed at the same time.
func (o *Out) Close() {
	o.mu.Lock()
	if o.closed {
		o.mu.Unlock()
		return
	}
	o.closed = true
	list := make([]*conn, 0, len(o.conns))
	for _, c := range o.conns {
		list = append(list, c)
	}
	o.mu.Unlock()
	for _, c := range list {
		c.home.run(c.abort)
	}
	o.mu.Lock()
	for len(o.conns) > 0 {
		o.idle.Wait()
	}
	o.mu.Unlock()
	for _, h := range o.homes {
		if h != nil {
			done := make(chan struct{})
			h.run(func() {
				h.close()
				close(done)
			})
			<-done
		}
	}
}
