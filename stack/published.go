package stack

import (
	"context"
	"net/netip"

	"github.com/postern-net/postern/stack/relay"
)

// published gets the container's datagrams; see SetPublished.
type published func(from, to netip.AddrPort, payload []byte, segment int) bool

// DialTCP connects to a port of the container with the client's address as source,
// the gateway's or one outside the container's network; source port 0 means any
// free one. Errors wrap the errno that connect(2) would give: ECONNREFUSED at once
// when the container refuses, ECONNRESET when it accepts and resets at once, ETIMEDOUT
// when it has not answered until ctx's deadline, EADDRNOTAVAIL when the connection
// with these addresses and ports exists already or the container cannot be shown
// source (another port or the gateway may do), EHOSTUNREACH when target is not the
// container's, EAFNOSUPPORT for two families, ENOBUFS when there are too many
// connections; context.Canceled, and net.ErrClosed after Close.
//
// The caller closes the Stream. Close of the engine resets it.
func (e *Engine) DialTCP(ctx context.Context, source, target netip.AddrPort) (relay.Stream, error) {
	return e.in.Dial(ctx, source, target)
}

// SendUDP sends a datagram to the container, or with a segment size several, each
// of segment bytes, the last perhaps shorter. Datagrams that do not fit the MTU are
// fragmented. Nothing is sent unless source and target are of one family and target
// is an address that the container may have; as on any network, what is lost is not
// told. It may be called from several goroutines, and waits while the device is full.
func (e *Engine) SendUDP(source, target netip.AddrPort, payload []byte, segment int) {
	if source.Addr().Is4() != target.Addr().Is4() || !source.Addr().IsValid() || e.policy.Source(target.Addr()) != "" {
		return
	}
	e.link.SendUDP(source, target, payload, segment)
}

// SetPublished has fn see every UDP datagram of the container before anything else,
// whatever its destination, also the engine's own addresses; nil ends that. payload
// is valid only during the call, and several datagrams of segment bytes each, the
// last perhaps shorter, if segment is not 0. True means that fn has dealt with it.
//
// fn is called on the goroutine that reads frames, and for what takes the express path
// (Config.Express) on another one as well. It must be quick and not block.
// A call may still be under way when SetPublished returns.
func (e *Engine) SetPublished(fn func(from, to netip.AddrPort, payload []byte, segment int) bool) {
	if fn == nil {
		e.published.Store(nil)
		return
	}
	p := published(fn)
	e.published.Store(&p)
}
