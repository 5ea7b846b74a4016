package echo

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/stack/guard"
	"github.com/postern-net/postern/stack/internal/flow"
)

// Request is an echo request of the container to the outside. Its slices are
// valid only during the call of Handle.
type Request struct {
	From, To netip.Addr
	ID, Seq  uint16
	Payload  []byte
	// TTL is the hop limit as received.
	TTL uint8
	// Quote is the IP header and up to 64 bytes after it as received, for ICMP
	// errors. Empty means that one is made from the addresses.
	Quote []byte
}

// Sender is the way back to the container. It must be safe for concurrent use
// and must not keep the slices that it is given.
type Sender interface {
	// SendEchoReply sends an echo reply with the identifier that the container used.
	SendEchoReply(from, to netip.Addr, id, seq uint16, payload []byte)
	// SendError sends an ICMP error about the packet quoted; mtu is of use for
	// icmp.FragmentationNeeded only. It limits the rate.
	SendError(kind icmp.Kind, mtu uint32, from, to netip.Addr, quote []byte)
}

// Config is what a Table works with. Guard, Flows and Sender must be set.
type Config struct {
	Guard  guard.Policy
	Flows  *flow.Table
	Sender Sender
	// Outbound4 and Outbound6 are the host addresses that sockets are bound to.
	// The zero value leaves the choice to the host's routes.
	Outbound4, Outbound6 netip.Addr
	// Idle ends an identifier; 0 means flow.EchoIdle, negative never.
	Idle time.Duration
	// Logger gets life-cycle events; nil means none.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.Idle == 0 {
		c.Idle = flow.EchoIdle
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}
