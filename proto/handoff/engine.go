package handoff

import (
	"fmt"
	"net/netip"
	"time"
)

// EndpointKind says what the endpoint's descriptor is.
type EndpointKind string

// The kinds of endpoint.
const (
	// TAP is a TAP device with IFF_VNET_HDR.
	TAP EndpointKind = "tap"
	// Packet is a packet socket on the far end of a veth pair.
	Packet EndpointKind = "packet"
	// BareTAP is a TAP device without IFF_VNET_HDR.
	BareTAP EndpointKind = "bare-tap"
	// Seqpacket is a connected unix socket of the type SOCK_SEQPACKET, each message of
	// which is an Ethernet frame.
	Seqpacket EndpointKind = "seqpacket"
)

// EngineConfig is the supervisor's first message to the engine. The endpoint's
// descriptor comes with it, and after it those of Express.
type EngineConfig struct {
	Endpoint EndpointKind `json:"endpoint"`
	// MTU of the container's interface, bytes.
	MTU int `json:"mtu"`
	// Network4 and Network6 are the networks to plan; invalid means off.
	Network4 netip.Prefix `json:"network4"`
	Network6 netip.Prefix `json:"network6"`
	// Static says that the interface has its addresses and routes already.
	Static bool `json:"static,omitempty"`
	// ContainerMAC is the hardware address of the container's interface; zero if that is
	// for the engine to find out.
	ContainerMAC      [6]byte  `json:"container_mac"`
	HostLoopback      bool     `json:"host_loopback,omitempty"`
	HostLoopbackPorts []uint16 `json:"host_loopback_ports,omitempty"`
	// Outbound4 and Outbound6 are what outgoing sockets are bound to, if valid.
	Outbound4 netip.Addr       `json:"outbound4"`
	Outbound6 netip.Addr       `json:"outbound6"`
	Upstreams []netip.AddrPort `json:"upstreams,omitempty"`
	Search    []string         `json:"search,omitempty"`
	// NoDNS leaves the container without a name server.
	NoDNS bool `json:"no_dns,omitempty"`
	// DHCPFirst and DHCPLast are what DHCP leases, if valid; without them the container
	// gets its address of the plan.
	DHCPFirst netip.Addr `json:"dhcp_first,omitzero"`
	DHCPLast  netip.Addr `json:"dhcp_last,omitzero"`
	// UDPIdle and UDPIdleUnreplied end UDP flows; zero is the engine's default.
	UDPIdle          time.Duration `json:"udp_idle,omitempty"`
	UDPIdleUnreplied time.Duration `json:"udp_idle_unreplied,omitempty"`
	// Express is what there is of the express path; the zero value is none.
	Express Express `json:"express,omitzero"`
	// LogLevel is a level of log/slog; LogJSON chooses JSON lines.
	LogLevel int  `json:"log_level,omitempty"`
	LogJSON  bool `json:"log_json,omitempty"`
}

// Express says which descriptors of the container's network namespace come for the
// express path, in this order: a sock_diag socket, if there is any other; the
// transparent listeners TCP4 and TCP6; the sockets UDP4 and UDP6 that get what no
// flow's own socket takes; and with one of those the socket on which sockets of the
// kinds SocketExpressUDP4 and SocketExpressUDP6 arrive when ordered.
type Express struct {
	TCP4 bool `json:"tcp4,omitempty"`
	TCP6 bool `json:"tcp6,omitempty"`
	UDP4 bool `json:"udp4,omitempty"`
	UDP6 bool `json:"udp6,omitempty"`
}

// Files is how many descriptors come.
func (e Express) Files() (n int) {
	for _, on := range []bool{e != Express{}, e.TCP4, e.TCP6, e.UDP4, e.UDP6, e.UDP4 || e.UDP6} {
		if on {
			n++
		}
	}
	return n
}

// EngineExpressLost says that the container's kernel does not hand flows over: somebody
// has changed what the express path set up in there. The supervisor puts it back; the
// engine tries again after a while by itself.
type EngineExpressLost struct{}

// EngineReady says that packets flow. Offloads describes what the endpoint can
// do, Notice is a line for the user when it can do less than usual.
type EngineReady struct {
	Offloads string `json:"offloads"`
	Notice   string `json:"notice,omitempty"`
}

// EngineFailed says why the engine ends. Device is set when the endpoint died,
// so that only a new endpoint helps.
type EngineFailed struct {
	Reason string `json:"reason"`
	Device bool   `json:"device,omitempty"`
}

// EngineResolvers replaces the upstream name servers and the search list.
type EngineResolvers struct {
	Upstreams []netip.AddrPort `json:"upstreams"`
	Search    []string         `json:"search"`
}

// EngineSnapshotRequest asks for an EngineSnapshot with the same Seq.
type EngineSnapshotRequest struct {
	Seq uint64 `json:"seq"`
}

// EngineSnapshot is the engine's state in numbers.
type EngineSnapshot struct {
	Seq      uint64            `json:"seq"`
	Counters map[string]uint64 `json:"counters"`
	TCP      int               `json:"tcp"`
	UDP      int               `json:"udp"`
	Echo     int               `json:"echo"`
	// Express is how many of the TCP flows go by the express path.
	Express int `json:"express,omitempty"`
}

func (*EngineConfig) kind() string          { return "engine.config" }
func (*EngineReady) kind() string           { return "engine.ready" }
func (*EngineFailed) kind() string          { return "engine.failed" }
func (*EngineResolvers) kind() string       { return "engine.resolvers" }
func (*EngineSnapshotRequest) kind() string { return "engine.snapshot-request" }
func (*EngineSnapshot) kind() string        { return "engine.snapshot" }
func (*EngineExpressLost) kind() string     { return "engine.express-lost" }

func (*EngineReady) check() error           { return nil }
func (*EngineFailed) check() error          { return nil }
func (*EngineResolvers) check() error       { return nil }
func (*EngineSnapshotRequest) check() error { return nil }
func (*EngineSnapshot) check() error        { return nil }
func (*EngineExpressLost) check() error     { return nil }

func (m *EngineConfig) check() error {
	switch m.Endpoint {
	case TAP, Packet, BareTAP, Seqpacket:
	default:
		return fmt.Errorf("%w: endpoint %.32q", ErrMalformed, m.Endpoint)
	}
	if m.MTU < 68 || m.MTU > 65535 {
		return fmt.Errorf("%w: MTU %d", ErrMalformed, m.MTU)
	}
	return nil
}
