package auto

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/userns/rtnl"
	"github.com/postern-net/postern/userns/sockdiag"
)

// Policy says which listeners are published.
type Policy struct {
	// Addresses are the container's.
	Addresses portdriver.Addresses
	// Interface is the index of the container's interface; 0 if it is not known. A
	// socket that is bound to another one is not reachable.
	Interface uint32
	// Exclude are the ports that are not published.
	Exclude Exclusions
	// FirstEphemeral and LastEphemeral are the ports that clients' sockets get by
	// themselves; zero values are the kernel's.
	FirstEphemeral, LastEphemeral uint16
}

// key is a port that somebody listens on.
type key struct {
	udp  bool
	port uint16
}

// where says on which addresses.
type where struct {
	own, loopback4, loopback6 bool
}

// Desired returns the specs that these sockets of the container ask for, beside the
// rules that are in force, and how many more there are than MaxRules. The container's
// ports that a rule has which is not automatic are left alone: the user has decided
// where they appear. Sockets of ours are no listeners.
func (p Policy) Desired(sockets []sockdiag.Socket, rules []portdriver.Rule) (specs []portdriver.Spec, more int) {
	ports := make(map[key]where)
	for _, s := range sockets {
		k := key{s.UDP, s.Bound.Port()}
		if w, ok := p.reach(s, ports[k]); ok && !p.passedOver(k) && !published(k, rules) {
			ports[k] = w
		}
	}
	for _, k := range slices.SortedFunc(maps.Keys(ports), compareKeys) {
		specs = append(specs, ports[k].specs(k)...)
	}
	if len(specs) > MaxRules {
		return specs[:MaxRules], len(specs) - MaxRules
	}
	return specs, 0
}

func compareKeys(a, b key) int {
	if a.udp != b.udp {
		if a.udp {
			return 1
		}
		return -1
	}
	return cmp.Compare(a.port, b.port)
}

// reach adds to w how a socket can be reached; false if it cannot.
func (p Policy) reach(s sockdiag.Socket, w where) (where, bool) {
	addr := s.Bound.Addr()
	has4, has6 := p.Addresses.Container4.IsValid(), p.Addresses.Container6.IsValid()
	switch {
	case rtnl.Ours(s.Mark), s.Device != 0 && s.Device != p.Interface:
		return w, false
	case addr == p.Addresses.Container4, addr == p.Addresses.Container6,
		addr == netip.IPv4Unspecified() && has4,
		addr == netip.IPv6Unspecified() && (has6 || s.Dual && has4):
		w.own = true
	case s.Device != 0:
		return w, false // the interface's loopback address is none of ours
	case addr == loopback4, addr == netip.IPv4Unspecified():
		w.loopback4 = true
	case addr == netip.IPv6Loopback(), addr == netip.IPv6Unspecified():
		w.loopback6 = true
	default:
		return w, false
	}
	return w, true
}

var loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// passedOver reports whether nobody on that port is published.
func (p Policy) passedOver(k key) bool {
	first, last := p.FirstEphemeral, p.LastEphemeral
	if first == 0 {
		first = firstEphemeral
	}
	if last == 0 {
		last = lastEphemeral
	}
	return k.port == 0 || k.udp && first <= k.port && k.port <= last || p.Exclude.Contains(k.port, k.udp)
}

// published reports whether the user has published that port of the container, or
// listens there himself (a reverse rule).
func published(k key, rules []portdriver.Rule) bool {
	for _, r := range rules {
		c := r.Spec.Container
		if r.Auto || c.Path != "" || r.Spec.Proto.IsUDP() != k.udp {
			continue
		}
		if c.Port <= k.port && int(k.port) < int(c.Port)+max(r.Spec.Count, 1) {
			return true
		}
	}
	return false
}

// specs are the rules for one port.
func (w where) specs(k key) []portdriver.Spec {
	both, only4, only6 := portdriver.TCP, portdriver.TCP4, portdriver.TCP6
	if k.udp {
		both, only4, only6 = portdriver.UDP, portdriver.UDP4, portdriver.UDP6
	}
	spec := func(proto portdriver.Proto, to netip.Addr) portdriver.Spec {
		return portdriver.Spec{
			Proto: proto, Count: 1,
			Host: portdriver.Side{Port: k.port}, Container: portdriver.Side{Addr: to, Port: k.port},
		}
	}
	switch {
	case w.own:
		return []portdriver.Spec{spec(both, netip.Addr{})}
	case w.loopback4 && w.loopback6:
		return []portdriver.Spec{spec(only4, loopback4), spec(only6, netip.IPv6Loopback())}
	case w.loopback4:
		return []portdriver.Spec{spec(both, loopback4)}
	default:
		return []portdriver.Spec{spec(both, netip.IPv6Loopback())}
	}
}
