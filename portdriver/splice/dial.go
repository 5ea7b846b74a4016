package splice

import (
	"net/netip"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack/sockcall"
)

// obtain takes a socket for the first route out of the stock. It reports false if
// there is no route, or the connection waits for a socket now, which granted brings.
// It may be called on another thread, and then the connection's first step is begin.
func (c *conn) obtain() (fd int, ok bool) {
	if len(c.routes) == 0 {
		return -1, false
	}
	return c.d.stock.take(kindOf(c.routes[0].Target.Addr()), c)
}

// begin goes on with what obtain has returned.
func (c *conn) begin(fd int, ok bool) {
	switch {
	case c.over:
		if ok {
			_ = unix.Close(fd)
		}
	case ok:
		c.try(fd)
	case c.server >= 0 || c.flow != nil: // what it had to wait for was here earlier
	case len(c.routes) == 0:
		c.stranded()
	default:
		c.after(stockWait, c.unserved)
	}
}

// dial tries the first route that is left.
func (c *conn) dial() { c.begin(c.obtain()) }

// stranded resets a client whose routes all lead nowhere, or begins again with them.
func (c *conn) stranded() {
	if time.Since(c.started) >= c.d.cfg.Grace {
		c.refuse(portdriver.RefusedTarget)
		return
	}
	c.after(gracePause, func() {
		c.timer, c.detours = nil, 0
		c.routes = c.d.cfg.Addresses.Routes(c.peer, c.ln.desc.Target)
		c.dial()
	})
}

// unserved ends the wait for a socket.
func (c *conn) unserved() {
	c.timer = nil
	switch {
	case !c.d.stock.leave(c): // one is on its way
	case len(c.routes) > 1:
		c.detour()
	default:
		c.refuse(portdriver.RefusedSockets)
	}
}

// granted goes on with a socket that was waited for.
func (c *conn) granted(fd int) {
	if c.over {
		_ = unix.Close(fd)
		return
	}
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	c.try(fd)
}

// try connects a socket along the first route.
func (c *conn) try(fd int) {
	c.server = fd
	route := c.routes[0]
	errno := c.bind(route)
	if errno == errWrongPort {
		c.closeServer()
		c.dial()
		return
	}
	if errno != 0 {
		c.refuse(portdriver.RefusedSockets)
		return
	}
	if c.ln.desc.Proxy != 0 || waiting(c.client) {
		// What the client has sent goes along with the last segment of the handshake,
		// and the server is woken once. The kernel does not wait for it for long.
		_ = setInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0)
	}
	errno = sockcall.Connect(fd, route.Target)
	if errno == unix.EINPROGRESS {
		// The server's kernel answers while ours is still in connect, but the call
		// was bound to say that it did not wait; the next one tells.
		errno = sockcall.Connect(fd, route.Target)
	}
	c.tried(errno)
}

// bind gives the socket the client's address, or one that comes close. errWrongPort
// says that the socket has become useless, and that another one will do.
func (c *conn) bind(route portdriver.Route) (errno syscall.Errno) {
	if !c.anyPort && route.Source.Port() != 0 { // a unix client has none
		if errno = c.bindAuto(route.Source); errno == 0 || errno == errWrongPort {
			return errno
		}
		if errno = sockcall.Bind(c.server, route.Source); errno == 0 {
			return 0
		}
	}
	c.anyPort = true
	c.auto = c.d.local.on() && c.d.local.only(c.server, 0)
	for _, addr := range [...]netip.Addr{route.Source.Addr(), c.d.gateway(route.Target.Addr())} {
		if !addr.IsValid() {
			continue
		}
		if errno = sockcall.Bind(c.server, netip.AddrPortFrom(addr, 0)); errno == 0 {
			return 0
		}
	}
	return errno
}

// errWrongPort is what bindAuto says of a socket that was given another port. It is
// none of bind(2)'s errors.
const errWrongPort = unix.ENOANO

// bindAuto has the kernel give the socket the client's port, without fixing it for
// ever. An error is no failure: the port has to be bound by number then.
func (c *conn) bindAuto(source netip.AddrPort) syscall.Errno {
	c.auto = false
	fd, port, p := c.server, source.Port(), &c.d.local
	verdict := p.verdict(port)
	if c.byNumber || verdict == portOut || !p.only(fd, port) {
		return unix.EADDRNOTAVAIL
	}
	if verdict == portUnknown {
		_ = setInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 0)
	}
	errno := sockcall.Bind(fd, netip.AddrPortFrom(source.Addr(), 0))
	if verdict == portUnknown {
		_ = setInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		if errno == 0 {
			in := sockcall.LocalAddr(fd).Port() == port
			p.learn(port, in)
			c.byNumber = true // if ever another socket is needed
			if !in {
				return errWrongPort
			}
		}
	}
	c.auto = errno == 0
	return errno
}

// gateway is the gateway's address of a target's family.
func (d *Driver) gateway(target netip.Addr) netip.Addr {
	if target.Is4() {
		return d.cfg.Addresses.Gateway4
	}
	return d.cfg.Addresses.Gateway6
}

// tried goes on after connect.
func (c *conn) tried(errno syscall.Errno) {
	route := c.routes[0]
	switch afterConnect(errno) {
	case dialDone:
		source := route.Source
		if c.auto || c.anyPort {
			source = sockcall.LocalAddr(c.server)
		}
		if !c.anyPort && source.Port() != route.Source.Port() {
			c.anyPort = true
			c.d.local.forget()
		}
		c.join(source, route.Target)
	case dialPending:
		c.await()
	case dialTaken:
		if c.auto && !c.anyPort && !c.byNumber {
			// Someone has bound the port by number, which excludes those who leave
			// it to the kernel but not those who do the same. The socket has no port,
			// so it can still be bound.
			c.byNumber = true
			c.try(c.server)
			return
		}
		c.closeServer()
		if c.anyPort {
			c.detour()
			return
		}
		c.anyPort = true
		c.dial()
	case dialRefused:
		c.closeServer()
		c.detour()
	}
}

// detour goes on with the next route.
func (c *conn) detour() {
	c.routes = c.routes[1:]
	c.anyPort, c.byNumber = false, false
	c.detours++
	c.dial()
}

// await waits for the server's answer.
func (c *conn) await() {
	if c.watch != nil {
		return
	}
	w, err := c.lane.Watch(c.server, unix.EPOLLOUT, func(uint32) { c.answered() })
	if err != nil {
		c.refuse(portdriver.RefusedLimit)
		return
	}
	c.watch = w
	c.after(portdriver.ConnectTimeout, func() {
		c.timer = nil
		c.refuse(portdriver.RefusedTarget)
	})
}

// answered asks the kernel what the server said.
func (c *conn) answered() {
	errno := sockcall.Connect(c.server, c.routes[0].Target)
	if afterConnect(errno) != dialPending {
		c.quiet()
	}
	c.tried(errno)
}
