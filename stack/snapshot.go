package stack

import (
	"net/netip"
	"time"

	"github.com/postern-net/postern/stack/internal/flow"
)

// Snapshot is the state of an engine at one moment.
type Snapshot struct {
	// Counters by name; those that are zero are left out.
	Counters map[string]uint64
	// TCP, UDP and Echo are how many flows of the container there are, TCPIn how
	// many into it (DialTCP).
	TCP, UDP, Echo, TCPIn int
	// Express is how many open flows, of all protocols, bypass the device.
	Express int
	Flows   []FlowInfo
}

// FlowInfo describes one flow. Target is unset for a UDP mapping.
type FlowInfo struct {
	// Proto is "tcp", "udp", "icmp" or "tcp-in".
	Proto              string
	Initiating, Target netip.AddrPort
	State              string
	// Path is "universal" or "express", which bypasses the device.
	Path    string
	Started time.Time
	// BytesOut and BytesIn are payload bytes, seen from the initiating side.
	BytesOut, BytesIn uint64
}

// Snapshot returns the state of this moment. Flows are in no order.
func (e *Engine) Snapshot() Snapshot {
	s := Snapshot{
		Counters: e.flows.Counters.Snapshot(),
		TCP:      e.flows.Len(flow.TCP), UDP: e.flows.Len(flow.UDP), Echo: e.flows.Len(flow.Echo),
		TCPIn: e.flows.Len(flow.TCPIn),
	}
	for _, f := range e.flows.Flows() {
		if f.Path() == flow.Express && f.State() == flow.Open {
			s.Express++
		}
		s.Flows = append(s.Flows, FlowInfo{
			Proto: f.Proto.String(), Initiating: f.Initiating, Target: f.Target, State: f.State().String(),
			Path: f.Path().String(), Started: f.Started, BytesOut: f.BytesOut.Load(), BytesIn: f.BytesIn.Load(),
		})
	}
	return s
}
