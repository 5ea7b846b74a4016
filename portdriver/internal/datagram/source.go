package datagram

import (
	"net/netip"

	"github.com/postern-net/postern/portdriver"
)

const (
	// firstDynamic and after are the ports that are shown instead of a client's own:
	// no server has a fixed place there (RFC 6335 section 6).
	firstDynamic = 49152

	// maxSearch is how many ports are tried. With portdriver.MaxUDP flows the range
	// is half empty even if all of them were moved there.
	maxSearch = 64
)

// otherPortLocked returns the source of r with a port that no other flow to the same
// target has. The port is 0 if the search, which is bounded, found none.
func (t *table) otherPortLocked(r portdriver.Route) netip.AddrPort {
	for range maxSearch {
		r.Source = netip.AddrPortFrom(r.Source.Addr(), t.next)
		if t.next++; t.next == 0 {
			t.next = firstDynamic
		}
		if _, taken := t.routes[r]; !taken {
			return r.Source
		}
	}
	return netip.AddrPort{}
}

// otherSource moves a flow to another port of its source.
func (t *table) otherSource(f *Flow) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.ended.Load() {
		return false
	}
	source := t.otherPortLocked(f.route)
	if source.Port() == 0 {
		return false
	}
	delete(t.routes, f.route)
	f.route.Source = source
	t.routes[f.route] = f
	t.counters.Inc(portdriver.OtherSource)
	return true
}
