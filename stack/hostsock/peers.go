package hostsock

import "net/netip"

// Peers remembers which addresses a socket has sent to: address-dependent
// filtering (RFC 4787 REQ-8). It is bounded, and forgets about the addresses not
// sent to for longest. The zero value is ready; it is not safe for concurrent
// use.
//
// Nearly every socket has one peer, kept in last. Others are in two generations:
// young fills up, then takes old's place. An address that is sent to moves to
// young, so that every one forgotten was not sent to while at least half of the
// room was filled by others.
type Peers struct {
	// Max is how many addresses to remember, at least 3; 0 means 64.
	Max        int
	last       netip.Addr
	young, old map[netip.Addr]struct{}
}

// Add remembers a.
func (p *Peers) Add(a netip.Addr) {
	if a == p.last {
		return
	}
	if p.last.IsValid() {
		p.keep(p.last)
	}
	p.last = a
}

func (p *Peers) keep(a netip.Addr) {
	if _, ok := p.young[a]; ok {
		return
	}
	delete(p.old, a)
	limit := p.Max
	if limit == 0 {
		limit = 64
	}
	if p.young == nil || len(p.young) >= (limit-1)/2 {
		p.young, p.old = make(map[netip.Addr]struct{}), p.young
	}
	p.young[a] = struct{}{}
}

// Has reports whether a is remembered.
func (p *Peers) Has(a netip.Addr) bool {
	if a == p.last {
		return a.IsValid()
	}
	if _, ok := p.young[a]; ok {
		return true
	}
	_, ok := p.old[a]
	return ok
}
