// Package refusal tells the container that a connection of its could not be made, in
// the way that a host on its network would: both ways out (tcpout and express) fail
// alike.
//
//	connection refused        RST, which the caller sends
//	unreachable, prohibited   the ICMP error, about the SYN as it was sent
//	timeout, local trouble    nothing
package refusal

import (
	"net/netip"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/hosterr"
	"github.com/postern-net/postern/stack/netplan"
)

// Sender sends ICMP errors to the container; it is the link.
type Sender interface {
	SendError(kind icmp.Kind, mtu uint32, from, to netip.Addr, quote []byte)
}

// Teller tells the container. All fields are needed.
type Teller struct {
	Counters *flow.Counters
	Sender   Sender
	Plan     netplan.Plan
}

// Judge counts a dial that failed and returns the answer to it. The caller ends the
// attempt before it gives the answer: a client may try again at once.
func (t Teller) Judge(err error) hosterr.Outcome {
	answer := hosterr.Of(err)
	count := flow.TCPDialFailed
	if answer.Silent() {
		count = flow.TCPDialTimeout
	}
	t.Counters.Inc(count)
	return answer
}

// Tell sends the ICMP error about a SYN if the answer is one. quote is the SYN's IP
// and TCP header.
func (t Teller) Tell(answer hosterr.Outcome, key flow.Key, quote []byte) {
	if !answer.Reset && !answer.Silent() {
		t.Report(answer.Kind, key.Target.Addr(), key.Initiating.Addr(), quote)
	}
}

// Report sends an ICMP error about a SYN. It comes from the gateway, which is the
// container's next hop: an error that came from 127.0.0.1 would be dropped.
func (t Teller) Report(kind icmp.Kind, target, initiating netip.Addr, quote []byte) {
	from := hosterr.Reporter(kind, target, target, t.Plan)
	t.Sender.SendError(kind, 0, from, initiating, quote)
}
