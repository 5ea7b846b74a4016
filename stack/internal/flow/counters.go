package flow

import "sync/atomic"

// Counter names one thing that the engine counts: traffic, or a drop with its
// reason. The string form is what Snapshot prints.
type Counter uint8

// The counters. Drops are named for their reason.
const (
	FramesIn Counter = iota
	FramesOut
	ACKsDelayed
	DropRunt
	DropOversized
	DropMalformed
	DropForeignMAC
	DropChecksum
	DropSpoofed
	DropUnknownProtocol
	DropUnsent
	TCPAdmitted
	TCPRefusedGuard
	TCPRefusedLimit
	TCPRefusedDestination
	TCPEvicted
	TCPDialFailed
	TCPDialTimeout
	TCPExpress
	TCPExpressForeign
	TCPExpressLimit
	TCPExpressAbandoned
	TCPExpressUnpaired
	TCPExpressShort
	TCPExpressUnanswered
	TCPExpressFallback
	TCPExpressPauses
	TCPExpressDiagFailed
	TCPInAdmitted
	TCPInRefusedLimit
	TCPInFailed
	UDPAdmitted
	UDPRefusedGuard
	UDPRefusedLimit
	UDPRefusedFilter
	UDPSendFailed
	UDPEvicted
	UDPExpressFlows
	UDPExpressReturned
	UDPExpressFailed
	UDPExpressUnanswered
	UDPExpressMissing
	UDPExpressForeign
	UDPExpressDropped
	UDPExpressLate
	EchoSent
	EchoRefusedGuard
	EchoRefusedLimit
	EchoUnavailable
	ICMPErrorsSent
	ICMPErrorsLimited
	DNSQueries
	DNSRefusedLimit
	DNSUpstreamFailed
	numCounters
)

var counterNames = [numCounters]string{
	FramesIn:              "frames_in",
	FramesOut:             "frames_out",
	ACKsDelayed:           "acks_delayed",
	DropRunt:              "drop_runt",
	DropOversized:         "drop_oversized",
	DropMalformed:         "drop_malformed",
	DropForeignMAC:        "drop_foreign_mac",
	DropChecksum:          "drop_checksum",
	DropSpoofed:           "drop_spoofed_source",
	DropUnknownProtocol:   "drop_unknown_protocol",
	DropUnsent:            "drop_unsent",
	TCPAdmitted:           "tcp_admitted",
	TCPRefusedGuard:       "tcp_refused_guard",
	TCPRefusedLimit:       "tcp_refused_limit",
	TCPRefusedDestination: "tcp_refused_destination_limit",
	TCPEvicted:            "tcp_pending_evicted",
	TCPDialFailed:         "tcp_dial_failed",
	TCPDialTimeout:        "tcp_dial_timeout",
	TCPExpress:            "tcp_express",
	TCPExpressForeign:     "tcp_express_foreign",
	TCPExpressLimit:       "tcp_express_limit",
	TCPExpressAbandoned:   "tcp_express_abandoned",
	TCPExpressUnpaired:    "tcp_express_unpaired",
	TCPExpressShort:       "tcp_express_short",
	TCPExpressUnanswered:  "tcp_express_unanswered",
	TCPExpressFallback:    "tcp_express_fallback",
	TCPExpressPauses:      "tcp_express_pauses",
	TCPExpressDiagFailed:  "tcp_express_diag_failed",
	TCPInAdmitted:         "tcp_in_admitted",
	TCPInRefusedLimit:     "tcp_in_refused_limit",
	TCPInFailed:           "tcp_in_failed",
	UDPAdmitted:           "udp_admitted",
	UDPRefusedGuard:       "udp_refused_guard",
	UDPRefusedLimit:       "udp_refused_limit",
	UDPRefusedFilter:      "udp_refused_filter",
	UDPSendFailed:         "udp_send_failed",
	UDPEvicted:            "udp_evicted",
	UDPExpressFlows:       "udp_express_flows",
	UDPExpressReturned:    "udp_express_returned",
	UDPExpressFailed:      "udp_express_failed",
	UDPExpressUnanswered:  "udp_express_unanswered",
	UDPExpressMissing:     "udp_express_socket_missing",
	UDPExpressForeign:     "udp_express_foreign",
	UDPExpressDropped:     "udp_express_dropped",
	UDPExpressLate:        "udp_express_late",
	EchoSent:              "echo_sent",
	EchoRefusedGuard:      "echo_refused_guard",
	EchoRefusedLimit:      "echo_refused_limit",
	EchoUnavailable:       "echo_unavailable",
	ICMPErrorsSent:        "icmp_errors_sent",
	ICMPErrorsLimited:     "icmp_errors_limited",
	DNSQueries:            "dns_queries",
	DNSRefusedLimit:       "dns_refused_limit",
	DNSUpstreamFailed:     "dns_upstream_failed",
}

// String returns the counter's name in snake case.
func (c Counter) String() string {
	if c < numCounters {
		return counterNames[c]
	}
	return "unknown"
}

// Counters holds one value a Counter. The zero value is ready; it is safe for
// concurrent use and must not be copied.
type Counters struct {
	v [numCounters]atomic.Uint64
}

// Inc adds one to c.
func (cs *Counters) Inc(c Counter) { cs.v[c].Add(1) }

// Add adds n to c.
func (cs *Counters) Add(c Counter, n uint64) { cs.v[c].Add(n) }

// Load returns the value of c.
func (cs *Counters) Load(c Counter) uint64 { return cs.v[c].Load() }

// Snapshot returns every counter that is not zero, by name.
func (cs *Counters) Snapshot() map[string]uint64 {
	m := make(map[string]uint64)
	for c := Counter(0); c < numCounters; c++ {
		if n := cs.v[c].Load(); n != 0 {
			m[c.String()] = n
		}
	}
	return m
}
