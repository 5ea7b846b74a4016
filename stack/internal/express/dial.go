package express

import (
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/sockcall"
)

// start opens the host's socket and connects it.
func (c *conn) start() {
	if c.stage != dialing {
		return // it had to give way already
	}
	fd, errno := sockcall.OpenTCP(c.dial.Addr())
	if sockcall.Short(errno) {
		c.out.count(flow.TCPExpressShort)
		c.fallBack()
		return
	}
	if errno != 0 {
		c.fail("socket", errno)
		return
	}
	c.host = fd
	if source := c.out.outbound(c.dial.Addr()); source.IsValid() {
		if errno := bindTo(fd, source); errno != 0 {
			c.fail("bind", errno)
			return
		}
	}
	errno = sockcall.Connect(fd, c.dial)
	if pending(errno) {
		// A target on this machine answers while we are still in connect, but the call
		// was bound to say that it did not wait; the next one tells.
		errno = sockcall.Connect(fd, c.dial)
	}
	if pending(errno) {
		c.await()
		return
	}
	c.tried(errno)
}

// outbound is the address that a socket is to be bound to, if any. Loopback, which is
// the target of the gateway's alias, has its own source.
func (o *Out) outbound(target netip.Addr) netip.Addr {
	switch {
	case target.IsLoopback():
		return netip.Addr{}
	case target.Is4():
		return o.cfg.Outbound4
	}
	return o.cfg.Outbound6
}

// pending reports whether connect(2) has not come to an end.
func pending(errno syscall.Errno) bool {
	return errno == unix.EINPROGRESS || errno == unix.EALREADY || errno == unix.EINTR
}

// tried goes on after connect.
func (c *conn) tried(errno syscall.Errno) {
	if errno == unix.EISCONN {
		errno = 0
	}
	if errno == 0 && sockcall.LocalAddr(c.host) == c.dial {
		// Nobody listens on a port that connect(2) hands out itself, and it has chosen
		// just that one: the socket is connected to itself.
		errno = unix.ECONNREFUSED
	}
	if errno != 0 {
		c.fail("connect", errno)
		return
	}
	c.inject()
}

// await waits for the target's answer.
func (c *conn) await() {
	w, err := c.home.loop.Watch(c.host, unix.EPOLLOUT, func(uint32) { c.answered() })
	if err != nil {
		c.out.count(flow.TCPExpressShort)
		c.fallBack()
		return
	}
	c.watch, c.started = w, time.Now()
	c.timer = c.home.loop.After(c.out.every, c.check)
}

// answered asks the kernel what the target said. A client that has meanwhile given up
// is not connected any more.
func (c *conn) answered() {
	errno := sockcall.Connect(c.host, c.dial)
	switch {
	case pending(errno):
	case errno == 0 && !c.alive():
		c.abandon()
	default:
		c.quiet()
		c.tried(errno)
	}
}

// check looks for the client of a dial that hangs. A program that has closed its
// socket sends nothing.
func (c *conn) check() {
	c.timer = nil
	left := flow.DialTimeout - time.Since(c.started)
	switch {
	case left <= 0:
		c.fail("connect", unix.ETIMEDOUT)
	case !c.alive():
		c.abandon()
	default:
		c.timer = c.home.loop.After(min(c.out.every, left), c.check)
	}
}
