package portdriver

import "sync/atomic"

// Counter names one thing that a driver counts.
type Counter uint8

// The counters. Refusals and drops are named for their reason.
const (
	Accepted       Counter = iota // connections accepted
	RefusedTarget                 // reset because the container refused or did not answer
	RefusedLimit                  // reset because the driver is full
	RefusedClient                 // reset because the client or the port has more than its share
	RefusedSockets                // reset because no socket of the container's netns could be had
	Paused                        // times that accepting paused because descriptors or memory ran out
	OtherSource                   // connections whose client's own address and port was taken in the netns
	OtherFamily                   // connections taken to the container's other family
	Datagrams                     // datagrams taken to the container
	Replies                       // datagrams taken back to clients
	Flows                         // UDP flows begun
	Evicted                       // UDP flows that gave way to newer ones
	DatagramsLost                 // datagrams that the container's side could not take
	RepliesLost                   // datagrams that the client's side could not take
	numCounters
)

var counterNames = [numCounters]string{
	Accepted:       "published_accepted",
	RefusedTarget:  "published_refused_target",
	RefusedLimit:   "published_refused_limit",
	RefusedClient:  "published_refused_share",
	RefusedSockets: "published_refused_sockets",
	Paused:         "published_accept_paused",
	OtherSource:    "published_other_source",
	OtherFamily:    "published_other_family",
	Datagrams:      "published_datagrams_in",
	Replies:        "published_datagrams_out",
	Flows:          "published_udp_flows",
	Evicted:        "published_udp_evicted",
	DatagramsLost:  "published_datagrams_lost",
	RepliesLost:    "published_replies_lost",
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
