package datagram

import (
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/postern-net/postern/portdriver"
)

// Container is the container's side.
type Container interface {
	// Connect makes the way of a new flow. It must not wait, and is called by the
	// service's one receiving goroutine. ErrSourceTaken asks for another source; any
	// other error loses the datagram and ends the flow.
	Connect(f *Flow) (Way, error)
}

// ErrSourceTaken says that somebody in the container's network has the source of a
// flow already.
var ErrSourceTaken = errors.New("the source is taken")

// Way is one flow's way to the container.
type Way interface {
	// Send takes a datagram or, with a segment above 0, several of that size of
	// which the last may be shorter, and returns how many of them it could not take.
	// It must not keep the slice. It is called by one goroutine of the service, for
	// all flows, which waits while a call lasts.
	Send(payload []byte, segment int) (lost int)
	// Close is called once when the flow has ended, by any goroutine, while Send may
	// be under way.
	Close()
}

// Config is what a Service works with. Container and Routes must be set.
type Config struct {
	Container Container
	// Routes says how a client is taken to a target; see
	// portdriver.Addresses.Routes. Only the first one is used.
	Routes func(client, target netip.AddrPort) []portdriver.Route
	// Max is how many flows there may be; 0 means portdriver.MaxUDP.
	Max int
	// Idle ends a flow that had a reply; 0 means portdriver.UDPIdle, negative never.
	Idle time.Duration
	// IdleUnreplied ends one that had none; 0 means portdriver.UDPIdleUnreplied,
	// negative never.
	IdleUnreplied time.Duration
	// Counters gets what is counted; nil means counters of its own.
	Counters *portdriver.Counters
	// Logger gets life-cycle events; nil means none.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.Max == 0 {
		c.Max = portdriver.MaxUDP
	}
	if c.Idle == 0 {
		c.Idle = portdriver.UDPIdle
	}
	if c.IdleUnreplied == 0 {
		c.IdleUnreplied = portdriver.UDPIdleUnreplied
	}
	if c.Counters == nil {
		c.Counters = new(portdriver.Counters)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}
