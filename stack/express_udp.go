package stack

import (
	"net/netip"
	"os"

	"github.com/postern-net/postern/stack/internal/udpout"
)

// ExpressUDP is what the engine needs to carry UDP flows that keep talking beside the
// device. Without Sockets there is no such path for UDP.
type ExpressUDP struct {
	// Catch4 and Catch6 are transparent sockets that get what no flow's own socket
	// takes; a family without one stays on the universal path. They are owned by the
	// engine from New on, also when New fails.
	Catch4, Catch6 *os.File
	// Sockets has the flows' own, of the kinds handoff.SocketExpressUDP4 and
	// SocketExpressUDP6. It must outlive the engine.
	Sockets udpout.Sockets
}

// discard closes what no part has taken over.
func (u ExpressUDP) discard() {
	for _, f := range []*os.File{u.Catch4, u.Catch6} {
		if f != nil {
			_ = f.Close()
		}
	}
}

// udpExpress is udpout's view of the express path, nil if there is none. A datagram
// that a client of a published port is waiting for is claimed on this path as well.
func (e *Engine) udpExpress() *udpout.Express {
	x := e.cfg.Express
	if e.diag == nil || x.UDP.Sockets == nil || x.UDP.Catch4 == nil && x.UDP.Catch6 == nil {
		if x != nil {
			x.UDP.discard()
		}
		return nil
	}
	return &udpout.Express{
		Catch4: x.UDP.Catch4, Catch6: x.UDP.Catch6, Sockets: x.UDP.Sockets,
		Reinject: e.link.Reinject, Own: e.diag.Sends, Lost: x.Lost,
		Claim: func(from, to netip.AddrPort, payload []byte, segment int) bool {
			fn := e.published.Load()
			return fn != nil && (*fn)(from, to, payload, segment)
		},
	}
}
