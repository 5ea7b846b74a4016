// Package flow keeps the table of flows: what talks to what, since when, in
// which state, and how many there may be.
//
// A flow has two sides. The initiating side is the one that sent the first
// packet, the target side the one it was sent to; every address in this package
// is named after its side, never "source" or "local", which change meaning with
// the direction that one looks from.
//
//	Pending ──dial succeeded──▶ Open ──both halves ended, abort──▶ (released)
//	   └──────dial failed, refused, timed out, gave way──────────▶ (released)
//
// UDP and echo flows have no handshake; they are Open from their first packet.
// Admission happens before any descriptor is opened. A released flow must not
// be used again.
package flow

import (
	"container/list"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Proto is the transport protocol of a flow.
type Proto uint8

// The protocols. TCPIn is TCP whose initiating side is outside: a client of a
// published port.
const (
	TCP Proto = iota
	UDP
	Echo
	TCPIn
	numProtos
)

// String returns "tcp", "udp", "icmp" or "tcp-in".
func (p Proto) String() string { return [...]string{"tcp", "udp", "icmp", "tcp-in"}[p] }

// State is where a flow stands; see the package comment.
type State uint32

// The states.
const (
	Pending State = iota
	Open
)

// String returns "pending" or "open".
func (s State) String() string { return [...]string{"pending", "open"}[s] }

// Path is the way that a flow's bytes take.
type Path uint32

// The paths. Universal goes through the device and user space, for TCP through
// netstack; Express is a socket in the container's namespace, beside the device.
const (
	Universal Path = iota
	Express
)

// String returns "universal" or "express".
func (p Path) String() string { return [...]string{"universal", "express"}[p] }

// Key names a flow. For UDP the target is unset: one mapping serves all
// remotes (RFC 4787, endpoint-independent mapping). For echo the initiating
// port is the identifier.
type Key struct {
	Proto      Proto
	Initiating netip.AddrPort
	Target     netip.AddrPort
}

// Flow is one entry of the table. The byte counts are payload bytes by
// direction, seen from the initiating side.
type Flow struct {
	Key
	Started  time.Time
	BytesOut atomic.Uint64
	BytesIn  atomic.Uint64

	state atomic.Uint32
	path  atomic.Uint32
	// cancel ends the dial of a pending flow that has to give way; place is its
	// place among the dials, nil once it has left them.
	cancel func()
	place  *list.Element
}

// State returns where the flow stands.
func (f *Flow) State() State { return State(f.state.Load()) }

// Path returns the way that the flow's bytes take now.
func (f *Flow) Path() Path { return Path(f.path.Load()) }

// SetPath notes the way that the flow's bytes take from now on. It starts as Universal.
func (f *Flow) SetPath(p Path) { f.path.Store(uint32(p)) }

// Table holds the flows of one engine. It is safe for concurrent use.
type Table struct {
	Counters Counters

	mu sync.Mutex // guards the fields below; nothing is called under it
	// flows is bounded by MaxTCP, MaxUDP, MaxEcho and MaxTCPIn together.
	flows map[Key]*Flow
	// pending counts dials under way by target; dials holds their flows, the
	// oldest first. Both are bounded by MaxPendingTCP.
	pending map[netip.AddrPort]int
	dials   *list.List
	number  [numProtos]int // flows by protocol
}

// NewTable returns an empty table.
func NewTable() *Table {
	return &Table{flows: make(map[Key]*Flow), pending: make(map[netip.AddrPort]int), dials: list.New()}
}

var limits = [numProtos]int{TCP: MaxTCP, UDP: MaxUDP, Echo: MaxEcho, TCPIn: MaxTCPIn}

var admitted = [numProtos]Counter{TCP: TCPAdmitted, UDP: UDPAdmitted, Echo: EchoSent, TCPIn: TCPInAdmitted}

var refused = [numProtos]Counter{
	TCP: TCPRefusedLimit, UDP: UDPRefusedLimit, Echo: EchoRefusedLimit, TCPIn: TCPInRefusedLimit,
}

// Admit enters a UDP or echo flow, which is Open at once, or an incoming TCP flow,
// which is Pending until Opened. It returns nil and counts why when the table is
// full for the protocol, and nil when the key is in the table already.
func (t *Table) Admit(k Key) *Flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.enterLocked(k)
	if f != nil {
		if k.Proto != TCPIn {
			f.state.Store(uint32(Open))
		}
		t.Counters.Inc(admitted[k.Proto])
	}
	return f
}

// AdmitDial enters an outgoing TCP flow, which is Pending. Like Admit it returns
// nil when the table is full or the key known, and also when too many dials to the
// same target are under way. When too many are under way altogether, the oldest gives
// way: it is released and its cancel called. A dial that will succeed takes
// milliseconds, so those that lead nowhere are the ones that grow old.
func (t *Table) AdmitDial(k Key, cancel func()) *Flow {
	f, evicted := t.admitDial(k, cancel)
	if evicted != nil {
		evicted.cancel()
	}
	return f
}

func (t *Table) admitDial(k Key, cancel func()) (f, evicted *Flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pending[k.Target] >= MaxPendingPerDestination {
		t.Counters.Inc(TCPRefusedDestination)
		return nil, nil
	}
	if f = t.enterLocked(k); f == nil {
		return nil, nil
	}
	if t.dials.Len() >= MaxPendingTCP {
		evicted = t.dials.Front().Value.(*Flow)
		t.releaseLocked(evicted)
		t.Counters.Inc(TCPEvicted)
	}
	f.cancel = cancel
	f.place = t.dials.PushBack(f)
	t.pending[k.Target]++
	t.Counters.Inc(admitted[TCP])
	return f, evicted
}

func (t *Table) enterLocked(k Key) *Flow {
	if _, ok := t.flows[k]; ok {
		return nil
	}
	if t.number[k.Proto] >= limits[k.Proto] {
		t.Counters.Inc(refused[k.Proto])
		return nil
	}
	f := &Flow{Key: k, Started: time.Now()}
	t.flows[k] = f
	t.number[k.Proto]++
	return f
}

// Opened moves a pending flow to Open and gives its place among the dials back.
func (t *Table) Opened(f *Flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.endDialLocked(f)
	f.state.Store(uint32(Open))
}

// Release takes the flow out of the table. Releasing twice is harmless.
func (t *Table) Release(f *Flow) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.releaseLocked(f)
}

func (t *Table) releaseLocked(f *Flow) {
	if t.flows[f.Key] != f {
		return
	}
	delete(t.flows, f.Key)
	t.number[f.Proto]--
	t.endDialLocked(f)
}

func (t *Table) endDialLocked(f *Flow) {
	if f.place == nil {
		return
	}
	t.dials.Remove(f.place)
	f.place = nil
	if t.pending[f.Target]--; t.pending[f.Target] <= 0 {
		delete(t.pending, f.Target)
	}
}

// Has reports whether the key is in the table.
func (t *Table) Has(k Key) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.flows[k]
	return ok
}

// Len returns how many flows of a protocol there are.
func (t *Table) Len(p Proto) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.number[p]
}

// Flows returns the flows of this moment, in no order.
func (t *Table) Flows() []*Flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	fs := make([]*Flow, 0, len(t.flows))
	for _, f := range t.flows {
		fs = append(fs, f)
	}
	return fs
}
