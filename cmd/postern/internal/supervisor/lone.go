package supervisor

import (
	"net/netip"
	"slices"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/userns/join"
	"github.com/postern-net/postern/userns/rtnl"
)

// A network with a loopback interface only, whose ports are published all the same:
// splice connects from inside the container, so it needs an engine, but no interface
// there. The engine's endpoint is the end of a veth pair in a network namespace that
// nobody is in, and has no carrier.

// netLone is NetNone with published ports. It is no value of a flag.
const netLone Net = "none, with ports"

// tcpNone is the TCPPath where no TCP leaves the container.
const tcpNone TCPPath = "none"

// lone reports whether ports shall be published without a network.
func (c *RunConfig) lone() bool { return c.Net == NetNone && c.PortDriver == PortDriverSplice }

// prepareLone completes such a configuration. Ports lead to the loopback, where else;
// the addresses of the plan are the engine's own business.
func (c *RunConfig) prepareLone() {
	c.Net, c.TCP, c.Plan = netLone, tcpNone, netplan.Default()
	if why := noIPv6(stack.MaxMTU, "/proc/sys/net/ipv6"); why != "" {
		c.Plan.V6 = netplan.Family{}
	}
	c.MTU, c.NoDNS, c.Endpoint = stack.MaxMTU, true, EndpointPacket
	loopback := netip.AddrFrom4([4]byte{127, 0, 0, 1})
	if !c.RootlessKit.Child.IsValid() {
		c.RootlessKit.Child = loopback
	}
	c.Publish = slices.Clone(c.Publish)
	for i := range c.Publish {
		if to := &c.Publish[i].Container; !to.Addr.IsValid() && to.Path == "" {
			to.Addr = loopback
		}
	}
}

// loneMAC is the hardware address of a container's interface that there is not.
var loneMAC = [6]byte{0x02, 0, 0, 0, 0, 0x01}

// nearName is the other end of the pair, which stays down.
const nearName = "postern1"

// openLone makes the endpoint of netLone.
func openLone(t *join.Target, cfg *Config) (endpoint, error) {
	s, err := t.Open(join.Request{Packet: true})
	if err != nil {
		return endpoint{}, err
	}
	defer closeFiles(s.Diag, s.Route, s.FarRoute, s.FarNetNS)
	if err := bindLone(s, cfg.MTU); err != nil {
		closeFiles(s.Packet)
		return endpoint{}, err
	}
	return endpoint{kind: handoff.Packet, file: s.Packet, mac: loneMAC}, nil
}

func bindLone(s *join.Sockets, mtu int) error {
	if err := rtnl.AddVeth(s.FarRoute, nearName, farName, s.FarNetNS); err != nil {
		return err
	}
	index, err := rtnl.FarUp(s.FarRoute, farName, mtu)
	if err != nil {
		return err
	}
	return rtnl.BindPacket(s.Packet, index)
}

// shown is the plan as others may know it: empty without an interface that has its
// addresses.
func (s *session) shown() netplan.Plan {
	if s.kind == netLone {
		return netplan.Plan{}
	}
	return s.cfg.Plan
}

// hasEngine reports whether an engine runs.
func (n Net) hasEngine() bool { return n.served() || n == netLone }

// maker makes the container's interface or what takes its place.
func (s *session) maker(t *join.Target) maker {
	if s.kind == netLone {
		return func() (endpoint, string, error) {
			e, err := openLone(t, s.cfg)
			return e, "", err
		}
	}
	return func() (endpoint, string, error) { return openEndpoint(t, s.cfg) }
}
