package kernudp

import (
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/internal/datagram"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack/hostsock"
)

// Limits.
const (
	// MaxFlows is how many flows a driver has by default, each with a descriptor.
	MaxFlows = 512
	// maxHeld is how many receives of one flow, and maxHeldBytes how many bytes of
	// all flows, wait while the stock is empty. A client sends little before it has
	// an answer.
	maxHeld      = 4
	maxHeldBytes = 1 << 20
)

// Stock is where sockets of the container's network namespace come from;
// *stock.Stock is one.
type Stock interface {
	// Prepare tells that sockets of a kind will be needed.
	Prepare(kind handoff.SocketKind)
	// Take returns a socket that is neither bound nor connected, the caller's from
	// then on. It never waits, and must not call back.
	Take(kind handoff.SocketKind) (fd int, ok bool)
	// Subscribe has fn called after sockets have arrived.
	Subscribe(fn func(kind handoff.SocketKind)) (cancel func())
}

// Config is what a Driver works with. Stock and Routes must be set.
type Config struct {
	Stock Stock
	// Routes says how a client is taken to a target; see
	// portdriver.Addresses.Routes. Only the first one is used.
	Routes func(client, target netip.AddrPort) []portdriver.Route
	// MaxFlows is how many flows there may be; 0 means the constant MaxFlows.
	MaxFlows int
	// Idle and IdleUnreplied end flows; 0 means portdriver.UDPIdle and
	// portdriver.UDPIdleUnreplied, negative never.
	Idle, IdleUnreplied time.Duration
	// Counters gets what is counted; nil means counters of its own.
	Counters *portdriver.Counters
	// Logger gets life-cycle events; nil means none.
	Logger *slog.Logger
}

// Driver is a portdriver.Driver for UDP. New starts its goroutines.
type Driver struct {
	*datagram.Service
	stock    Stock
	cancel   func() // of the subscription
	poller   *hostsock.Poller
	counters *portdriver.Counters
	logger   *slog.Logger
	failed   sync.Once // the one log line about sockets that cannot be used
	heldSize atomic.Int64

	mu      sync.Mutex // guards waiting; the stock is asked under it
	waiting [handoff.NumSocketKinds]queue
}

var _ portdriver.Driver = (*Driver)(nil)

// New returns a running driver without listeners.
func New(c Config) (*Driver, error) {
	if c.MaxFlows == 0 {
		c.MaxFlows = MaxFlows
	}
	if c.Counters == nil {
		c.Counters = new(portdriver.Counters)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Driver{stock: c.Stock, counters: c.Counters, logger: c.Logger}
	var err error
	if d.poller, err = hostsock.NewPoller(); err != nil {
		return nil, fmt.Errorf("serve published UDP ports in the container: %w", err)
	}
	d.Service, err = datagram.New(datagram.Config{
		Container: container{d}, Routes: c.Routes, Max: c.MaxFlows, Idle: c.Idle, IdleUnreplied: c.IdleUnreplied,
		Counters: c.Counters, Logger: c.Logger,
	})
	if err != nil {
		_ = d.poller.Close()
		return nil, err
	}
	d.cancel = c.Stock.Subscribe(d.supply)
	return d, nil
}

// Open starts to serve l, whose File it takes over, also when it fails.
func (d *Driver) Open(l portdriver.Listener) error {
	if err := d.Service.Open(l); err != nil {
		return err
	}
	for _, kind := range kindsOf(l.Target.Addr()) {
		d.stock.Prepare(kind)
	}
	return nil
}

// kindsOf returns the kinds of socket that lead to a target; the zero Addr may be of
// either family.
func kindsOf(target netip.Addr) []handoff.SocketKind {
	switch {
	case !target.IsValid():
		return []handoff.SocketKind{handoff.SocketUDP4, handoff.SocketUDP6}
	case target.Is4():
		return []handoff.SocketKind{handoff.SocketUDP4}
	}
	return []handoff.SocketKind{handoff.SocketUDP6}
}

// Published takes a datagram that left the container by its network, or with a
// segment above 0 several, if it answers a client of this driver, and reports
// whether it did. It copies payload.
func (d *Driver) Published(from, to netip.AddrPort, payload []byte, segment int) bool {
	f := d.Find(portdriver.Route{Source: to, Target: from})
	if f == nil {
		f = d.Find(portdriver.Route{Source: to, Target: netip.AddrPortFrom(loopbackOf(from.Addr()), from.Port())})
	}
	if f == nil {
		return false
	}
	f.Reply(payload, segment)
	return true
}

func loopbackOf(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	return netip.IPv6Loopback()
}

// Close ends every flow and waits for all goroutines. It may be called again.
func (d *Driver) Close() {
	d.cancel()
	d.Service.Close()
	_ = d.poller.Close() // of no consequence: nothing is received any more
}
