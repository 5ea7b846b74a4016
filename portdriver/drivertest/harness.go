package drivertest

import (
	"slices"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack/tap"
)

// Harness is how the suite gets at one driver.
type Harness struct {
	// Name tells the harnesses of one test binary apart.
	Name string
	// Start makes the driver. It is called in the driver's process, which is in the
	// host's namespaces.
	Start func(World) (Driver, error)
	// Inside, if not nil, is what World.StartInside runs: the driver's part in the
	// container's namespaces. It returns when quit is closed.
	Inside func(arg string, quit <-chan struct{}) error
	// Device is the kind of the container's interface. The zero value is a TAP;
	// where none is to be had, the test is skipped, or fails with CI=true.
	Device tap.Kind
	// Claims are the features that the driver has.
	Claims []Feature
	// Foreign says that the driver is not ours: a data race in its processes is
	// printed and not counted.
	Foreign bool
	// Kept is how many descriptors the driver may keep for later, beyond those that
	// it had after its first connection.
	Kept int
}

func (h Harness) claims(features ...Feature) bool {
	for _, f := range features {
		if !slices.Contains(h.Claims, f) {
			return false
		}
	}
	return true
}

// Driver is a driver at work. Its methods are called one at a time.
type Driver interface {
	// Publish puts a rule in force. The suite always gives the host's address and
	// port. The answer is the rule's number.
	Publish(portdriver.Spec) (int, error)
	// Unpublish ends a rule.
	Unpublish(rule int) error
	// Close ends the driver.
	Close() error
}

// Feature is something that a driver may or may not do.
type Feature string

// The features.
const (
	// Source: a TCP server sees the address and port of a client that is not on the
	// host's loopback. SourceUDP: a UDP server does.
	Source    Feature = "tcp source"
	SourceUDP Feature = "udp source"
	// Gateway: a client on the host's loopback shows the gateway's address, or the
	// loopback address if it is taken to the container's loopback; for the transports
	// for which Source or SourceUDP is claimed.
	Gateway Feature = "gateway"
	// UDP and IPv6 are transports, Loopback the container's loopback as a target.
	UDP      Feature = "udp"
	IPv6     Feature = "ipv6"
	Loopback Feature = "loopback"
	// OwnAddress: a rule without an address means the container's own one of the
	// client's family, or the other family's if nothing listens there.
	OwnAddress Feature = "own address"
	// Refusal: a client of a closed port is reset at once. Without it the client's
	// connection just ends.
	Refusal Feature = "refusal"
	// Resets: a reset of one side is a reset of the other.
	Resets Feature = "resets"
	// Outlive: connections go on when their rule is removed.
	Outlive Feature = "outlive"
	// Range: a rule may have several ports.
	Range Feature = "range"
	// Recover: a port serves again after descriptors ran out.
	Recover Feature = "recover"
	// ReplyAddress: a UDP reply comes from the address that the client sent to.
	ReplyAddress Feature = "reply address"
	// Empty: datagrams without payload.
	Empty Feature = "empty datagrams"
	// Proxy: PROXY protocol headers. Unix: unix sockets on either side.
	Proxy Feature = "proxy protocol"
	Unix  Feature = "unix"
)

// All lists every feature.
var All = []Feature{Source, SourceUDP, Gateway, UDP, IPv6, Loopback, OwnAddress, Refusal, Resets, Outlive, Range,
	Recover, ReplyAddress, Empty, Proxy, Unix}
