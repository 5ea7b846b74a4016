package stack

import (
	"errors"
	"net/netip"
	"os"

	"gvisor.dev/gvisor/pkg/tcpip/header"

	"github.com/postern-net/postern/stack/guard"
	"github.com/postern-net/postern/stack/internal/express"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/link"
	"github.com/postern-net/postern/stack/relay"
)

// Express is what the engine needs to carry flows beside the device, through sockets
// of the container's network namespace. Whoever makes them also sets up the namespace.
type Express struct {
	// Diag is a sock_diag socket (NETLINK_SOCK_DIAG), which tells the namespace's own
	// sockets from those behind it. It is always needed. TCP4 and TCP6 are transparent
	// listeners; a family without one takes the universal path. All files are owned by
	// the engine from New on, also when New fails.
	Diag, TCP4, TCP6 *os.File
	// Loops relay the flows. They must outlive the engine.
	Loops *relay.Loops
	// Lost, if not nil, is called when the container's kernel has failed to answer on
	// this path some times and TCP or UDP has gone back to the universal one for a
	// while. It must not block.
	Lost func()
	// UDP is the same for UDP.
	UDP ExpressUDP
}

// discard closes what no part has taken over.
func (x *Express) discard() {
	if x == nil {
		return
	}
	for _, f := range []*os.File{x.TCP4, x.TCP6, x.Diag} {
		if f != nil {
			_ = f.Close()
		}
	}
	x.UDP.discard()
}

// assembleExpress makes the express path of TCP, and what that of UDP needs too.
func (e *Engine) assembleExpress() (err error) {
	x := e.cfg.Express
	if x == nil {
		return nil
	}
	if x.Diag == nil {
		return errors.New("start express: needs a sock_diag socket")
	}
	defer x.Diag.Close()
	if e.diag, err = express.OpenDiag(x.Diag); err != nil || x.TCP4 == nil && x.TCP6 == nil {
		return err
	}
	e.express, err = express.New(express.Config{
		Loops: x.Loops, TCP4: x.TCP4, TCP6: x.TCP6, Diag: e.diag, Lost: x.Lost,
		Flows: e.flows, Sender: e.link, Plan: e.cfg.Plan,
		Outbound4: e.cfg.Outbound4, Outbound6: e.cfg.Outbound6, Logger: e.cfg.Logger,
	})
	return err
}

// handleSYN has the express path look at a SYN before netstack does. What it may not
// have is left to the universal path: the name service, and refusals.
func (e *Engine) handleSYN(p link.Packet) bool {
	if e.express == nil {
		return false
	}
	segment := header.TCP(p.Payload(p.Bytes))
	target := netip.AddrPortFrom(p.Dst, segment.DestinationPort())
	if e.cfg.names(target) {
		return false
	}
	verdict := e.policy.Decide(guard.TCP, target)
	if !verdict.Allowed() {
		return false
	}
	key := flow.Key{Proto: flow.TCP, Initiating: netip.AddrPortFrom(p.Src, segment.SourcePort()), Target: target}
	return e.express.Take(p, key, verdict.Dial)
}
