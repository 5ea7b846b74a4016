package netstack

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/postern-net/postern/portdriver"
)

// Engine is what the driver needs of the engine; *stack.Engine is one.
type Engine interface {
	TCPEngine
	UDPEngine
}

// Config is what a Driver works with. Addresses and Engine must be set.
type Config struct {
	// Addresses are those of the container's network.
	Addresses portdriver.Addresses
	Engine    Engine
	// Loopback gets UDP listeners whose target is the container's loopback; see
	// UDPConfig.Loopback. May be nil.
	Loopback Loopback
	// MaxTCP is how many connections there may be. 0 stands for as many as the limit
	// of descriptors allows, at most portdriver.MaxTCP.
	MaxTCP int
	// MaxUDP is how many UDP flows there may be; 0 means portdriver.MaxUDP.
	MaxUDP int
	// Counters gets what is counted; nil means counters of its own.
	Counters *portdriver.Counters
	// Logger gets life-cycle events and shortages; nil means none.
	Logger *slog.Logger
}

// Driver serves TCP and UDP listeners. See the package comment.
type Driver struct {
	tcp *TCP
	udp *UDP
}

var _ portdriver.Driver = (*Driver)(nil)

// New returns a running driver without listeners.
func New(c Config) (*Driver, error) {
	if c.Counters == nil {
		c.Counters = new(portdriver.Counters)
	}
	udp, err := NewUDP(UDPConfig{
		Engine: c.Engine, Routes: c.Addresses.Routes, Loopback: c.Loopback, MaxFlows: c.MaxUDP,
		Counters: c.Counters, Logger: c.Logger,
	})
	if err != nil {
		return nil, fmt.Errorf("start the netstack driver: %w", err)
	}
	tcp := NewTCP(TCPConfig{
		Addresses: c.Addresses, Engine: c.Engine, MaxFlows: c.MaxTCP, Counters: c.Counters, Logger: c.Logger,
	})
	return &Driver{tcp: tcp, udp: udp}, nil
}

// Open starts to serve l, whose File it takes over, also when it fails.
func (d *Driver) Open(l portdriver.Listener) error {
	switch l.Network {
	case portdriver.NetTCP:
		return d.tcp.Open(l)
	case portdriver.NetUDP:
		return d.udp.Open(l)
	}
	_ = l.File.Close()
	return fmt.Errorf("serve a %s socket for the container's port %d: the netstack driver has TCP and UDP only; use the splice driver: %w",
		l.Network, l.Target.Port(), os.ErrInvalid)
}

// Shut ends the service of a rule: when it returns its sockets are closed here.
// Connections go on, UDP flows end.
func (d *Driver) Shut(rule int) {
	d.tcp.Shut(rule)
	d.udp.Shut(rule)
}

// Status returns the numbers of flows and what was counted.
func (d *Driver) Status() portdriver.Status {
	s := d.udp.Status() // both have the same counters
	s.TCP = d.tcp.Status().TCP
	return s
}

// Close ends every flow and waits for all goroutines. An engine that waits for its
// device must have been closed before. It may be called again.
func (d *Driver) Close() {
	d.tcp.Close()
	d.udp.Close()
}
