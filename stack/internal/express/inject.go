package express

import (
	"errors"
	"os"

	"github.com/postern-net/postern/stack/internal/flow"
)

// inject writes the SYN back to the container, whose kernel has it from the outside
// now and runs the handshake with our listener within the call.
func (c *conn) inject() {
	c.stage = injected
	if err := c.out.cfg.Sender.Reinject(c.syn.Packet); err != nil {
		if errors.Is(err, os.ErrClosed) {
			c.drop()
		} else {
			c.unheard()
		}
		return
	}
	c.home.accept(c)
	if c.stage == injected {
		c.timer = c.home.loop.After(c.out.patience, c.unanswered)
	}
}

// unanswered: the SYN that was written back has led to nothing.
func (c *conn) unanswered() {
	c.timer = nil
	c.home.accept(c)
	if c.stage != injected {
		return
	}
	switch s, err := c.out.diag.state(c.key); {
	case err != nil || s == synSent:
		c.unheard()
	case s == established:
		// Somebody else has accepted it, or nobody can. The client must not be shown a
		// second connection.
		c.out.unhealthy()
		c.drop()
	default:
		// It was there just before the SYN was written back. Either it has given up in
		// this moment, or it was connected and what it sent went by the device instead of
		// lo, where netstack, which knows nothing of the connection, has reset it.
		c.out.count(flow.TCPExpressAbandoned)
		c.out.unhealthy()
		c.drop()
	}
}

// unheard: the container's kernel does not do with the SYN what it was set up to do.
func (c *conn) unheard() {
	c.out.unhealthy()
	c.fallBack()
}

// unhealthy counts a failure of the path, and gives it up for a while if there were
// too many.
func (o *Out) unhealthy() {
	o.count(flow.TCPExpressUnanswered)
	pause := o.health.failed()
	if pause == 0 {
		return
	}
	o.count(flow.TCPExpressPauses)
	o.cfg.Logger.Warn("express path rests: the container's kernel does not answer on it; are its nftables rules ours?", "for", pause)
	if o.cfg.Lost != nil {
		o.cfg.Lost()
	}
}

// alive reports whether the client still waits for its connection. When that cannot
// be told it does.
func (c *conn) alive() bool {
	s, err := c.out.diag.state(c.key)
	if err != nil {
		c.out.count(flow.TCPExpressDiagFailed)
		return true
	}
	return s == synSent
}

// abandon ends a dial whose client has given up.
func (c *conn) abandon() {
	c.out.count(flow.TCPExpressAbandoned)
	c.drop()
}
