package splice

import (
	"net/netip"
	"time"
)

// Flow is one connection that is relayed.
type Flow struct {
	// Rule is the rule's ID.
	Rule int
	// Client is the client's address, Source what the server sees instead, Target the
	// server's. Each is the zero AddrPort if it is a unix socket.
	Client, Source, Target netip.AddrPort
	// TargetPath is the server's unix socket.
	TargetPath string
	// Started is when the connection was accepted.
	Started time.Time
	// Out is how many bytes the client sent and the server's kernel has taken, In
	// the reverse.
	Out, In uint64
}

// Flows returns at most max connections that are relayed at the moment, in no order.
func (d *Driver) Flows(max int) []Flow {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []Flow
	for c, relayed := range d.conns {
		if len(list) >= max {
			break
		}
		if !relayed {
			continue
		}
		list = append(list, Flow{
			Rule: c.ln.desc.Rule, Client: c.peer, Source: c.source, Target: c.target, TargetPath: c.ln.desc.TargetPath,
			Started: c.started, Out: c.out.Load(), In: c.in.Load(),
		})
	}
	return list
}

// remember enters a connection. It reports false if the driver is closed.
func (d *Driver) remember(c *conn) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return false
	}
	d.conns[c] = false
	return true
}

// relayed notes that a connection is with the relay. What Flows shows of it does not
// change from then on.
func (d *Driver) relayed(c *conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conns[c] = true
}

// forget takes out a connection that has ended.
func (d *Driver) forget(c *conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.conns, c)
	d.leftLocked()
}

// forgetListener takes out a listener that has ended.
func (d *Driver) forgetListener(ln *listener) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.listeners, ln)
	d.leftLocked()
}

// leftLocked wakes Close when nothing is left. d.mu is held.
func (d *Driver) leftLocked() {
	if len(d.listeners)+len(d.conns) == 0 {
		d.idle.Broadcast()
	}
}
