package netstack

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/internal/admission"
	"github.com/postern-net/postern/proto/proxyproto"
	"github.com/postern-net/postern/stack/relay"
)

// clientKeepalive finds clients that vanished. Go's own default asks an idle client
// every 15 s, which keeps phones awake.
var clientKeepalive = net.KeepAliveConfig{Enable: true, Idle: time.Minute, Interval: time.Minute, Count: 9}

// tcpConn is a published connection from accept to its end.
type tcpConn struct {
	ln     *tcpListener
	client *net.TCPConn
	peer   netip.AddrPort
	key    admission.Key
}

// run takes the client to the container and relays.
func (c *tcpConn) run() {
	d := c.ln.d
	defer d.places.Release(c.key, c.ln.port)
	_ = c.client.SetKeepAliveConfig(clientKeepalive)
	s, err := c.reach()
	c.ln.pending.Add(-1)
	d.pending.Add(-1)
	if err != nil {
		why := portdriver.RefusedTarget
		if errors.Is(err, syscall.ENOBUFS) {
			why = portdriver.RefusedLimit
		}
		d.cfg.Counters.Inc(why)
		reset(c.client)
		return
	}
	d.track(s)
	defer d.untrack(s)
	if err := c.introduce(s); err != nil {
		s.Abort()
		s.Close()
		reset(c.client)
		return
	}
	var out, in atomic.Uint64 // the engine's flow has them as well
	relay.TCP(s, c.client, relay.Counts{Out: &out, In: &in})
}

// errNoRoute says that the container has no address for this client.
var errNoRoute = errors.New("the container has no address of a family that could be used")

// reach connects to the container by the first route that leads there.
func (c *tcpConn) reach() (relay.Stream, error) {
	d := c.ln.d
	ctx, cancel := context.WithTimeout(d.ctx, d.cfg.ConnectTimeout)
	defer cancel()
	err := errNoRoute
	for i, r := range d.cfg.Addresses.Routes(c.peer, c.ln.desc.Target) {
		var s relay.Stream
		if s, err = d.dial(ctx, r); err == nil {
			if i > 0 {
				d.cfg.Counters.Inc(portdriver.OtherFamily)
			}
			return s, nil
		}
		if ctx.Err() != nil || errors.Is(err, syscall.ECONNRESET) {
			break // it was reached, or there is no time left
		}
	}
	return nil, err
}

// dial connects by one route. When the container cannot be shown the client's address
// and port, because that connection exists already or the address belongs to the
// container's own network, it is shown another port, or else the gateway.
func (d *TCP) dial(ctx context.Context, r portdriver.Route) (relay.Stream, error) {
	s, err := d.cfg.Engine.DialTCP(ctx, r.Source, r.Target)
	for _, source := range d.substitutes(r) {
		if !errors.Is(err, syscall.EADDRNOTAVAIL) {
			return s, err
		}
		if s, err = d.cfg.Engine.DialTCP(ctx, source, r.Target); err == nil {
			d.cfg.Counters.Inc(portdriver.OtherSource)
		}
	}
	return s, err
}

// substitutes are what a client may show instead, the best first.
func (d *TCP) substitutes(r portdriver.Route) []netip.AddrPort {
	gateway := d.cfg.Addresses.Gateway4
	if r.Target.Addr().Is6() {
		gateway = d.cfg.Addresses.Gateway6
	}
	some := []netip.AddrPort{netip.AddrPortFrom(r.Source.Addr(), 0)}
	if gateway.IsValid() && gateway != r.Source.Addr() {
		some = append(some, netip.AddrPortFrom(gateway, 0))
	}
	return some
}

// introduce sends the PROXY protocol header if there is to be one.
func (c *tcpConn) introduce(s relay.Stream) error {
	if c.ln.desc.Proxy == 0 {
		return nil
	}
	rest := proxyproto.Append(nil, c.ln.desc.Proxy, c.peer, addrPort(c.client.LocalAddr()))
	for len(rest) > 0 {
		b := rest
		n, err := s.Fill(len(b), func(to []byte) error {
			b = b[copy(to, b):]
			return nil
		})
		rest = rest[n:]
		switch {
		case err == nil:
		case errors.Is(err, relay.ErrWouldBlock):
			select {
			case <-s.Writable():
			case <-c.ln.d.ctx.Done():
				return c.ln.d.ctx.Err()
			}
		default:
			return err
		}
	}
	return nil
}

// addrPort is a TCP address of package net, without the mapping of dual-stack
// sockets.
func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
