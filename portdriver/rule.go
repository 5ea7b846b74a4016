package portdriver

import (
	"net/netip"
	"os"
)

// Rule is a Spec in force.
type Rule struct {
	ID int
	// Spec has the host's port filled in where a free one was asked for.
	Spec Spec
	// Auto says that the rule follows a listener of the container (--publish-auto).
	Auto bool
	// Listeners has one for each port and address, by address and then by port.
	Listeners []Listener
}

// Network is the kind of socket that a Listener holds.
type Network string

// The kinds of socket.
const (
	NetTCP  Network = "tcp"
	NetUDP  Network = "udp"
	NetUnix Network = "unix"
)

// Listener is one socket of a rule and where its clients are taken. The rule's ID
// and the description travel to the engine; each process has its own File.
type Listener struct {
	Rule    int
	Network Network
	// Bound is the socket's own address, for Network tcp and udp.
	Bound netip.AddrPort
	// Target is the container's address and port. Its address is the zero Addr if
	// the container's address of the client's family is meant.
	Target netip.AddrPort
	// TargetPath is a unix socket instead of Target: in the container, or on the
	// host if Reverse is set.
	TargetPath string
	// Reverse says that the clients are the container's and the target the host's.
	Reverse bool
	// Proxy is the version of the PROXY protocol header to send, 0 for none.
	Proxy int

	File *os.File
}

// Driver serves listeners in the engine. Its methods are safe for concurrent use.
type Driver interface {
	// Open starts to serve l, whose File it takes over, also when it fails. Once the
	// supervisor has ended the rule, accept(2) on it fails with EINVAL until Shut
	// comes, a moment later.
	Open(l Listener) error
	// Shut ends the service of a rule: nothing new is accepted. Connections that
	// exist go on, UDP flows end.
	Shut(rule int)
	// Status returns what the driver has counted and how many flows it has.
	Status() Status
	// Close ends every flow and waits for all goroutines.
	Close()
}

// Status is a driver's state in numbers.
type Status struct {
	// TCP and UDP are the numbers of present flows.
	TCP, UDP int
	// Counters by name; see Counter.
	Counters map[string]uint64
}
