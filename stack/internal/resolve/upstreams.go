package resolve

import (
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/postern-net/postern/proto/dns"
)

const (
	// penalty is how long a silent server stands at the back. After it one
	// lookup pays a Stagger to find out whether the server is back.
	penalty = 10 * time.Second
	// maxMisses is how many lookups in a row another server may have to answer
	// in a server's place. One slow name must not change the order.
	maxMisses = 3
)

// upstreams is the list of servers and what is known about their health.
type upstreams struct {
	mu      sync.Mutex // guards the fields below; nothing is called under it
	servers []netip.AddrPort
	changed chan struct{} // closed when servers is replaced
	// health has entries only for servers, which bounds it.
	health map[netip.AddrPort]health
}

type health struct {
	misses int       // lookups in a row that others answered in its place
	until  time.Time // at the back until then
}

// set replaces the list and reports whether it is another one. A new list starts
// with a clean slate: the network may be another, too.
func (u *upstreams) set(servers []netip.AddrPort) bool {
	list := usable(servers)
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.changed != nil && slices.Equal(list, u.servers) {
		return false
	}
	if u.changed != nil {
		close(u.changed)
	}
	u.servers = list
	u.changed = make(chan struct{})
	u.health = make(map[netip.AddrPort]health)
	return true
}

func usable(servers []netip.AddrPort) []netip.AddrPort {
	var list []netip.AddrPort
	for _, s := range servers {
		s = netip.AddrPortFrom(s.Addr().Unmap(), s.Port())
		if s.IsValid() && s.Port() != 0 && !slices.Contains(list, s) && len(list) < dns.MaxNameservers {
			list = append(list, s)
		}
	}
	return list
}

// order returns the servers in the order to ask them: as listed, but those under
// penalty last. The channel is closed when the list changes.
func (u *upstreams) order(now time.Time) ([]netip.AddrPort, <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	list := make([]netip.AddrPort, 0, len(u.servers))
	for _, back := range []bool{false, true} {
		for _, s := range u.servers {
			if u.health[s].until.After(now) == back {
				list = append(list, s)
			}
		}
	}
	return list, u.changed
}

// answered restores a server's place: it answered, whatever it said.
func (u *upstreams) answered(server netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	delete(u.health, server)
}

// timedOut puts a server to the back: a try at it ended without an answer.
func (u *upstreams) timedOut(server netip.AddrPort, now time.Time) {
	u.miss(server, now, maxMisses)
}

// overtaken counts that a server was silent when a later one answered.
func (u *upstreams) overtaken(server netip.AddrPort, now time.Time) {
	u.miss(server, now, 1)
}

func (u *upstreams) miss(server netip.AddrPort, now time.Time, n int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if !slices.Contains(u.servers, server) {
		return
	}
	h := u.health[server]
	if h.misses += n; h.misses >= maxMisses {
		h.misses = maxMisses // from now on one miss more prolongs the penalty
		h.until = now.Add(penalty)
	}
	u.health[server] = h
}
