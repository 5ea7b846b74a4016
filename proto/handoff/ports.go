package handoff

import (
	"fmt"
	"net/netip"
)

// SocketKind is a kind of socket that is made in the container's network namespace
// for the engine, transparent (IP_TRANSPARENT, ip(7)) and marked (SO_MARK). A
// message that brings some has the kind as its one byte of body; it is no JSON
// because it is sent by a forked child that can only make system calls.
type SocketKind uint8

// The kinds of socket.
const (
	SocketTCP4 SocketKind = iota
	SocketTCP6
	SocketUDP4
	SocketUDP6
	// SocketExpressUDP4 and SocketExpressUDP6 carry flows of the express path.
	SocketExpressUDP4
	SocketExpressUDP6
	numSocketKinds
)

// NumSocketKinds is how many kinds there are.
const NumSocketKinds = int(numSocketKinds)

// String returns "tcp4", "tcp6", "udp4", "udp6", "express-udp4" or "express-udp6".
func (k SocketKind) String() string {
	if k >= numSocketKinds {
		return "unknown"
	}
	return [...]string{"tcp4", "tcp6", "udp4", "udp6", "express-udp4", "express-udp6"}[k]
}

// PortListener describes one listening socket of a published port; its fields are
// those of portdriver.Listener. The target has its port by itself, because an
// AddrPort without an address has no text.
type PortListener struct {
	Rule       int            `json:"rule"`
	Network    string         `json:"network"`
	Bound      netip.AddrPort `json:"bound,omitzero"`
	TargetAddr netip.Addr     `json:"target_addr,omitzero"`
	TargetPort uint16         `json:"target_port,omitempty"`
	TargetPath string         `json:"target_path,omitempty"`
	Reverse    bool           `json:"reverse,omitempty"`
	Proxy      int            `json:"proxy,omitempty"`
}

// MaxPortsPerMessage is how many listeners one EnginePorts brings: each has a
// descriptor, and a message carries only so many.
const MaxPortsPerMessage = 60

// EnginePorts hands listeners to the engine, one descriptor each in the same order.
type EnginePorts struct {
	Seq       uint64         `json:"seq"`
	Listeners []PortListener `json:"listeners"`
}

// EnginePortsAnswer answers the EnginePorts with the same Seq. Reason is why some
// listener cannot be served, empty if all are.
type EnginePortsAnswer struct {
	Seq    uint64 `json:"seq"`
	Reason string `json:"reason,omitempty"`
}

// EngineShut ends the service of a rule.
type EngineShut struct {
	Rule int `json:"rule"`
}

// EngineStock comes before the first EnginePorts. It brings, with Sockets, the
// engine's end of the socket on which sockets of the container's network namespace
// arrive; without, TCP goes through the engine's own netstack. Root says that the
// container has a root directory, and unix sockets below it can be targets.
type EngineStock struct {
	Sockets bool `json:"sockets,omitempty"`
	Root    bool `json:"root,omitempty"`
}

// EngineOrder asks the supervisor for n more sockets of a kind.
type EngineOrder struct {
	Kind SocketKind `json:"kind"`
	N    int        `json:"n"`
}

// EngineDial asks the supervisor for a connection to the unix socket that a rule has
// for its target: the engine itself may connect to none.
type EngineDial struct {
	Seq     uint64 `json:"seq"`
	Rule    int    `json:"rule"`
	Path    string `json:"path"`
	Reverse bool   `json:"reverse,omitempty"`
}

// EngineDialed answers the EngineDial with the same Seq: with the connected socket, or
// with Errno, and Reason in words.
type EngineDialed struct {
	Seq    uint64 `json:"seq"`
	Errno  uint32 `json:"errno,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// MaxOrder is the largest EngineOrder.N.
const MaxOrder = 1024

func (*EnginePorts) kind() string       { return "engine.ports" }
func (*EnginePortsAnswer) kind() string { return "engine.ports-answer" }
func (*EngineShut) kind() string        { return "engine.shut" }
func (*EngineStock) kind() string       { return "engine.stock" }
func (*EngineOrder) kind() string       { return "engine.order" }
func (*EngineDial) kind() string        { return "engine.dial" }
func (*EngineDialed) kind() string      { return "engine.dialed" }

func (*EngineDial) check() error        { return nil }
func (*EngineDialed) check() error      { return nil }
func (*EnginePortsAnswer) check() error { return nil }
func (*EngineShut) check() error        { return nil }
func (*EngineStock) check() error       { return nil }

func (m *EnginePorts) check() error {
	if n := len(m.Listeners); n == 0 || n > MaxPortsPerMessage {
		return fmt.Errorf("%w: %d listeners, want 1 to %d", ErrMalformed, n, MaxPortsPerMessage)
	}
	return nil
}

func (m *EngineOrder) check() error {
	if m.Kind >= numSocketKinds || m.N < 1 || m.N > MaxOrder {
		return fmt.Errorf("%w: an order of %d sockets of kind %d", ErrMalformed, m.N, m.Kind)
	}
	return nil
}
