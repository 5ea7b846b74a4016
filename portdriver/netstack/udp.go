package netstack

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"time"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/internal/datagram"
)

// UDPEngine is what UDP needs of the engine; *stack.Engine is one.
type UDPEngine interface {
	// SendUDP sends datagrams to the container; segment is 0 for one of them.
	SendUDP(source, target netip.AddrPort, payload []byte, segment int)
	// SetPublished has fn see the container's datagrams first; nil ends that.
	SetPublished(fn func(from, to netip.AddrPort, payload []byte, segment int) bool)
}

// Loopback is the driver for targets on the container's loopback, which no frame
// reaches; *kernudp.Driver is one.
type Loopback interface {
	portdriver.Driver
	// Published takes a datagram of the container that answers one of its clients.
	Published(from, to netip.AddrPort, payload []byte, segment int) bool
}

// UDPConfig is what a UDP works with. Engine and Routes must be set.
type UDPConfig struct {
	Engine UDPEngine
	// Routes says how a client is taken to a target; see
	// portdriver.Addresses.Routes. Only the first one is used.
	Routes func(client, target netip.AddrPort) []portdriver.Route
	// Loopback gets the listeners whose target is the container's loopback, and is
	// closed with the driver; nil refuses them. It has counters of its own.
	Loopback Loopback
	// MaxFlows is how many flows there may be, without Loopback's; 0 means
	// portdriver.MaxUDP.
	MaxFlows int
	// Idle and IdleUnreplied end flows; 0 means portdriver.UDPIdle and
	// portdriver.UDPIdleUnreplied, negative never.
	Idle, IdleUnreplied time.Duration
	// Counters gets what is counted; nil means counters of its own.
	Counters *portdriver.Counters
	// Logger gets life-cycle events; nil means none.
	Logger *slog.Logger
}

// UDP is a portdriver.Driver for UDP: it sends frames to the container that carry
// the client's own address, and takes the frames of the answers out of what the
// container sends.
type UDP struct {
	engine   UDPEngine
	service  *datagram.Service
	loopback Loopback // may be nil
}

var _ portdriver.Driver = (*UDP)(nil)

// NewUDP returns a running driver without listeners. The engine's hook for published
// datagrams is the driver's until Close.
func NewUDP(c UDPConfig) (*UDP, error) {
	u := &UDP{engine: c.Engine, loopback: c.Loopback}
	var err error
	u.service, err = datagram.New(datagram.Config{
		Container: udpContainer{c.Engine}, Routes: c.Routes, Max: c.MaxFlows, Idle: c.Idle, IdleUnreplied: c.IdleUnreplied,
		Counters: c.Counters, Logger: c.Logger,
	})
	if err != nil {
		return nil, err
	}
	c.Engine.SetPublished(u.published)
	return u, nil
}

// Open starts to serve l, whose File it takes over, also when it fails.
func (u *UDP) Open(l portdriver.Listener) error {
	switch {
	case !l.Target.Addr().IsLoopback():
		return u.service.Open(l)
	case u.loopback != nil:
		return u.loopback.Open(l)
	}
	_ = l.File.Close()
	return fmt.Errorf("serve udp %s: target %s is the container's loopback, which this driver does not reach; "+
		"publish a port of the container's own address: %w", l.Bound, l.Target, os.ErrInvalid)
}

// Shut ends the service of a rule, and its flows.
func (u *UDP) Shut(rule int) {
	u.service.Shut(rule)
	if u.loopback != nil {
		u.loopback.Shut(rule)
	}
}

// Status returns the number of flows and what was counted, Loopback's included.
func (u *UDP) Status() portdriver.Status {
	st := u.service.Status()
	if u.loopback == nil {
		return st
	}
	other := u.loopback.Status()
	st.UDP += other.UDP
	st.Counters = maps.Clone(st.Counters)
	for name, n := range other.Counters {
		st.Counters[name] += n
	}
	return st
}

// Close ends every flow and waits for all goroutines. An engine that waits for its
// device must have been closed before. It may be called again.
func (u *UDP) Close() {
	u.engine.SetPublished(nil)
	u.service.Close()
	if u.loopback != nil {
		u.loopback.Close()
	}
}

// published is the engine's hook. The address and port that the container sends to
// are those that it was shown: they tell whose answer it is.
func (u *UDP) published(from, to netip.AddrPort, payload []byte, segment int) bool {
	if f := u.service.Find(portdriver.Route{Source: to, Target: from}); f != nil {
		f.Reply(payload, segment)
		return true
	}
	return u.loopback != nil && u.loopback.Published(from, to, payload, segment)
}

// udpWay is a flow's way into the container.
type udpWay struct {
	engine UDPEngine
	route  portdriver.Route
}

// udpContainer is the container's side.
type udpContainer struct{ engine UDPEngine }

// Connect implements datagram.Container.
func (c udpContainer) Connect(f *datagram.Flow) (datagram.Way, error) {
	return &udpWay{c.engine, f.Route()}, nil
}

// Send implements datagram.Way. What the wire loses is not told.
func (w *udpWay) Send(payload []byte, segment int) (lost int) {
	w.engine.SendUDP(w.route.Source, w.route.Target, payload, segment)
	return 0
}

// Close implements datagram.Way: there is nothing to release.
func (w *udpWay) Close() {}
