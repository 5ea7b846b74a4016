package datagram

import (
	"container/list"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/postern-net/postern/portdriver"
)

// key is what makes a flow.
type key struct {
	listener *listener
	from     netip.AddrPort
	// local is the host's address that the client sent to.
	local netip.Addr
	// zone is the index of the interface if the client's or the host's address means
	// something on one link only, otherwise 0.
	zone int
}

// Flow is one client of one listener.
type Flow struct {
	table  *table
	key    key
	client *client

	lastUsed atomic.Int64 // the service's age in nanoseconds
	renewed  atomic.Int64 // likewise: when the place among the others was renewed
	replied  atomic.Bool  // written under table.mu
	ended    atomic.Bool  // written under table.mu

	way Way // written once, under table.mu, before anything is sent on it

	// Guarded by table.mu.
	route   portdriver.Route
	element *list.Element // in client.shares
}

// Route returns the address that the container sees and where the flow goes. It
// changes with OtherSource only.
func (f *Flow) Route() portdriver.Route {
	f.table.mu.RLock()
	defer f.table.mu.RUnlock()
	return f.route
}

// Client returns the client's own address and port.
func (f *Flow) Client() netip.AddrPort {
	return netip.AddrPortFrom(f.key.from.Addr().Unmap(), f.key.from.Port())
}

// OtherSource gives the flow another port to show, after the one it had turned out
// to be taken. It reports whether there was one that no other flow has.
func (f *Flow) OtherSource() bool { return f.table.otherSource(f) }

// Reply sends back to the client what came from the container: a datagram or, with a
// segment above 0, several of that size of which the last may be shorter. It copies
// payload. Any goroutine may call it, also when the flow has ended.
func (f *Flow) Reply(payload []byte, segment int) {
	f.key.listener.service.out.add(f, payload, segment)
}

// reorder is how often a flow in use takes the last place among its client's. It
// spares the lock for most datagrams.
const reorder = time.Second

// touch notes that the flow was used just now, at the given age of the service.
func (f *Flow) touch(age time.Duration) {
	f.lastUsed.Store(int64(age))
	if age-time.Duration(f.renewed.Load()) >= reorder {
		f.renewed.Store(int64(age))
		f.table.renew(f)
	}
}

// answered notes that something came from the container.
func (f *Flow) answered(age time.Duration) {
	f.touch(age)
	if !f.replied.Load() {
		f.table.answered(f)
	}
}

// end closes the way of a flow that is out of the table.
func (f *Flow) end() {
	f.table.mu.RLock()
	way := f.way
	f.table.mu.RUnlock()
	if way != nil {
		way.Close()
	}
}

// kind is the index of the ranking that has the flow.
func (f *Flow) kind() int {
	if f.replied.Load() {
		return replied
	}
	return unreplied
}
