package udpout

import (
	"log/slog"
	"net/netip"
	"time"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/stack/guard"
	"github.com/postern-net/postern/stack/hostsock"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/link"
)

// Datagram is what the container sent: one datagram, or with Segment several of
// the same flow. Its slices are valid only during the call of Handle.
type Datagram struct {
	From, To netip.AddrPort
	Payload  []byte
	// Segment is 0 if Payload is one datagram. Otherwise Payload holds several of
	// Segment bytes each, the last possibly shorter (virtio UDP_L4).
	Segment int
	// TTL is the hop limit as received.
	TTL uint8
	// Quote is the IP header and up to 64 bytes after it as received, for ICMP
	// errors. Empty means that one is made from the addresses.
	Quote []byte
	// Packet is what the datagram came in, to be written back to the container
	// when its flow moves over to the express path. Without Bytes it cannot be.
	Packet link.Packet
}

// count is how many datagrams it is.
func (d *Datagram) count() int {
	return hostsock.Packet{Payload: d.Payload, Segment: d.Segment}.Datagrams()
}

// Sender is the way back to the container. It must be safe for concurrent use
// and must not keep the slices that it is given.
type Sender interface {
	// SendUDP sends payload from one address to another, in fragments if it does
	// not fit the MTU. A segment above 0 says that payload is several datagrams
	// of that size, the last possibly shorter.
	SendUDP(from, to netip.AddrPort, payload []byte, segment int)
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
	// Idle ends a mapping that had a reply; 0 means flow.UDPIdle, negative never.
	Idle time.Duration
	// IdleUnreplied ends one that had none; 0 means flow.UDPIdleUnreplied,
	// negative never.
	IdleUnreplied time.Duration
	// Express is the express path; nil means that there is none.
	Express *Express
	// Logger gets life-cycle events; nil means none.
	Logger *slog.Logger

	now func() time.Time // time.Now but in tests
}

func (c Config) withDefaults() Config {
	if c.Idle == 0 {
		c.Idle = flow.UDPIdle
	}
	if c.IdleUnreplied == 0 {
		c.IdleUnreplied = flow.UDPIdleUnreplied
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}
