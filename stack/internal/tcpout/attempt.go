package tcpout

import (
	"context"
	"net/netip"

	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/postern-net/postern/stack/internal/flow"
)

const (
	// maxAttempts bounds the SYNs that have a goroutine. The flow table's limit is
	// lower; what had to give way there takes a moment to end here.
	maxAttempts = 2 * flow.MaxPendingTCP

	// maxNames bounds connections to the name service together with handshakes
	// that are not complete, which it cannot count itself (flow.MaxDNSConns).
	maxNames = 4 * flow.MaxDNSConns
)

// attempt is one SYN on its way.
type attempt struct {
	flow   *flow.Flow
	dial   netip.AddrPort
	ctx    context.Context
	cancel context.CancelFunc
	// quote is the SYN's IP and TCP header, for ICMP errors.
	quote []byte
}

func (o *Out) attempt(id stack.TransportEndpointID) *attempt {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.attempts[id]
}

// room reports whether a new attempt may begin: none is under way for the same
// connection, and there are not too many.
func (o *Out) room(id stack.TransportEndpointID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.attempts[id] != nil {
		return false
	}
	if len(o.attempts) >= maxAttempts {
		o.cfg.Flows.Counters.Inc(flow.TCPRefusedLimit)
		return false
	}
	return true
}

// admitName enters a connection to the name service, unless it is there already
// or there are too many.
func (o *Out) admitName(id stack.TransportEndpointID) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.names[id]; ok {
		return false
	}
	if len(o.names) >= maxNames {
		o.cfg.Flows.Counters.Inc(flow.DNSRefusedLimit)
		return false
	}
	o.names[id] = struct{}{}
	return true
}

func (o *Out) releaseName(id stack.TransportEndpointID) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.names, id)
}

// settle ends an attempt whose flow lives on; forget ends one that failed. Both
// accept nil.
func (o *Out) settle(id stack.TransportEndpointID, a *attempt) {
	if a == nil {
		return
	}
	a.cancel()
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.attempts, id)
}

func (o *Out) forget(id stack.TransportEndpointID, a *attempt) {
	o.settle(id, a)
	if a != nil {
		o.cfg.Flows.Release(a.flow)
	}
}
