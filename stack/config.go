package stack

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/postern-net/postern/stack/guard"
	"github.com/postern-net/postern/stack/internal/link"
	"github.com/postern-net/postern/stack/internal/link/service"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/stack/tap"
)

// gatewayMAC is the engine's Ethernet address on every virtual link: each has one
// gateway and is seen by one container only.
var gatewayMAC = service.DefaultGatewayMAC

// Limits of Config.MTU: RFC 791 section 3.2, and what a TAP takes.
const (
	MinMTU = 68
	MaxMTU = 65520
)

// minMTU6 is the smallest MTU that carries IPv6 (RFC 8200 section 5).
const minMTU6 = 1280

// Device is the frames' way in and out: a tap.Device, or a stacktest.Device.
type Device interface {
	link.Device
	// OnIdle sets what the reader calls before it waits.
	OnIdle(fn func())
	Close() error
}

var _ Device = (*tap.Device)(nil)

// Config describes an Engine.
type Config struct {
	// Device is owned by the engine from New on.
	Device Device
	// MTU of the container's interface, in bytes; 0 means MaxMTU.
	MTU int
	// Plan is who has which address; the zero value means netplan.Default.
	Plan netplan.Plan
	// Static says that the container's interface was given its addresses and
	// routes: there are no router advertisements, which would add others.
	Static bool
	// ContainerMAC is the Ethernet address of the container's interface. Zero: that from
	// which the last frame came that the container may send.
	ContainerMAC [6]byte
	// MaxFrame is the longest frame that is taken from the device, in bytes with its
	// Ethernet header; 0 means any. Longer ones are dropped. It is for devices whose
	// other side is no kernel with our MTU; super-segments are longer than the MTU.
	MaxFrame int
	// HostLoopback lets the gateway addresses reach the host's loopback, on
	// HostLoopbackPorts or, when that is empty, on all ports.
	HostLoopback      bool
	HostLoopbackPorts []uint16
	// Outbound4 and Outbound6 are the host's addresses that sockets use; the
	// zero value leaves the choice to the host's routes.
	Outbound4, Outbound6 netip.Addr
	// Upstreams are the host's name servers, in order. Empty: SERVFAIL.
	Upstreams []netip.AddrPort
	// Search is the search list that DHCP and RA hand out.
	Search []string
	// NoDNS leaves the container without a name server: port 53 of the plan's
	// resolvers is as closed as all others, and DHCP and RA announce none.
	NoDNS bool
	// DHCPFirst and DHCPLast are the IPv4 addresses that DHCP leases to everybody, by
	// hardware address. Invalid: the container's interface gets the plan's address.
	// Frames for all of them go to ContainerMAC.
	DHCPFirst, DHCPLast netip.Addr
	// UDPIdle and UDPIdleUnreplied end UDP mappings; 0 means 120 s and 30 s.
	UDPIdle, UDPIdleUnreplied time.Duration
	// Express lets flows of the container bypass the device; nil turns that off.
	Express *Express
	// Logger gets life-cycle events; nil means none.
	Logger *slog.Logger
}

func (c Config) withDefaults() (Config, error) {
	if c.Device == nil {
		return c, fmt.Errorf("configure engine: no device")
	}
	if c.MTU == 0 {
		c.MTU = MaxMTU
	}
	if c.MTU < MinMTU || c.MTU > MaxMTU {
		return c, fmt.Errorf("configure engine: MTU %d is not within %d to %d", c.MTU, MinMTU, MaxMTU)
	}
	if !c.Plan.V4.On() && !c.Plan.V6.On() {
		c.Plan = netplan.Default()
	}
	if err := c.Plan.V4.CheckPool(c.DHCPFirst, c.DHCPLast); err != nil {
		return c, fmt.Errorf("configure engine: %w", err)
	}
	if c.MTU < minMTU6 {
		c.Plan.V6 = netplan.Family{}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c, nil
}

func (c Config) policy() guard.Policy {
	return guard.Policy{Plan: c.Plan, HostLoopback: c.HostLoopback, HostLoopbackPorts: c.HostLoopbackPorts}
}

// services is how the link answers for itself.
func (c Config) services() service.Config {
	s := service.Config{
		Plan: c.Plan, GatewayMAC: gatewayMAC, ContainerMAC: c.ContainerMAC, MTU: c.MTU, DNSSearch: c.Search,
		NoAdvertisement: c.Static, PoolFirst: c.DHCPFirst, PoolLast: c.DHCPLast,
	}
	if c.NoDNS {
		s.DNSServers = []netip.Addr{}
	}
	return s
}

// names reports whether the name service answers at an address.
func (c Config) names(at netip.AddrPort) bool {
	return !c.NoDNS && at == netip.AddrPortFrom(c.Plan.Of(at.Addr()).Resolver, portDNS)
}

func (c Config) containerMAC() net.HardwareAddr { return c.ContainerMAC[:] }
