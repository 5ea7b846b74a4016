package portdriver

import (
	"fmt"
	"net/netip"
	"path"
	"strconv"

	"github.com/postern-net/postern/portdriver/activation"
)

// inherited is a listener that came with the process. It stays open when its rule
// ends, so that another can have it.
type inherited struct {
	activation.Inherited
	user *entry // guarded by Registry.mu; nil if nobody
}

// inheritLocked finds the inherited listeners for e and adds what they take to its
// claims.
func (r *Registry) inheritLocked(e *entry) error {
	spec := e.rule.Spec
	if spec.Host.FD != "" {
		return r.nameLocked(e)
	}
	if spec.Reverse || spec.Host.Path != "" || spec.Host.Port == 0 {
		return nil
	}
	for i := range spec.Count {
		for _, addr := range spec.addrs() {
			at := addrPort(addr, spec.Host.Port, i)
			if in := r.findLocked(spec, at); in != nil {
				if e.using == nil {
					e.using = make(map[netip.AddrPort]*inherited)
				}
				e.using[at] = in
				e.claims = append(e.claims, in.claims()...)
			}
		}
	}
	return r.conflictLocked(e)
}

// findLocked returns an inherited listener that nobody uses and that is bound where
// the spec wants one, nil if there is none.
func (r *Registry) findLocked(spec Spec, at netip.AddrPort) *inherited {
	for _, in := range r.inherited {
		if in.user == nil && in.Network == string(spec.network()) && in.serves(spec, at) {
			return in
		}
	}
	return nil
}

// serves reports whether the listener is what a spec asks for at an address: the same
// address, or for a spec without one every address of the family.
func (in *inherited) serves(spec Spec, at netip.AddrPort) bool {
	bound := in.Addr.Addr()
	switch {
	case in.Addr.Port() != at.Port():
		return false
	case bound == at.Addr():
		return !in.Dual || spec.Proto.Family() == 0
	case in.Dual:
		return spec.Proto.Family() == 0 && (!spec.Host.Addr.IsValid() || at.Addr() == netip.IPv4Unspecified())
	}
	return !spec.Host.Addr.IsValid() && bound.IsUnspecified() && bound.Is4() == at.Addr().Is4()
}

// claims is what the listener takes.
func (in *inherited) claims() []claim {
	if in.Network == string(NetUnix) {
		if in.Path == "" {
			return nil
		}
		return []claim{{network: NetUnix, name: path.Clean(in.Path)}}
	}
	addrs := []netip.Addr{in.Addr.Addr()}
	if in.Dual {
		addrs = append(addrs, netip.IPv4Unspecified())
	}
	var claims []claim
	for _, addr := range addrs {
		claims = append(claims, claim{network: Network(in.Network), addr: addr, first: in.Addr.Port(), last: in.Addr.Port()})
	}
	return claims
}

// nameLocked finds the listeners that e's spec names.
func (r *Registry) nameLocked(e *entry) error {
	spec := e.rule.Spec
	all := r.calledLocked(spec.Host.FD)
	if len(all) == 0 {
		return fmt.Errorf("inherited listener %q: %w; %d came with the process (LISTEN_FDNAMES)", spec.Host.FD, ErrNotFound, len(r.inherited))
	}
	for _, in := range all {
		if !in.fits(spec) {
			continue
		}
		if in.user != nil {
			return fmt.Errorf("%w: rule %d (%s) has inherited listener %q", ErrConflict, in.user.rule.ID, in.user.rule.Spec, spec.Host.FD)
		}
		e.named = append(e.named, in)
		e.claims = append(e.claims, in.claims()...)
	}
	if len(e.named) == 0 {
		return mark(fmt.Errorf("inherited listener %q is %s, which cannot be published as %s%s",
			spec.Host.FD, all[0].text(), spec.Proto, withProxy(spec.Proxy)), ErrSpec)
	}
	return r.conflictLocked(e)
}

// calledLocked returns the listeners of a name, or else the one of a number.
func (r *Registry) calledLocked(name string) (all []*inherited) {
	for _, in := range r.inherited {
		if in.Name == name {
			all = append(all, in)
		}
	}
	if n, err := strconv.Atoi(name); err == nil && all == nil && n >= 0 && n < len(r.inherited) {
		return r.inherited[n : n+1]
	}
	return all
}

// fits reports whether the listener is of the kind that a spec names.
func (in *inherited) fits(spec Spec) bool {
	if in.Network == string(NetUnix) {
		return spec.Proto == TCP && spec.Proxy == 0
	}
	family := 6
	if in.Addr.Addr().Is4() {
		family = 4
	}
	want := spec.Proto.Family()
	return in.Network == string(spec.network()) && (want == 0 || want == family && !in.Dual)
}

// text is what the listener is, for an error.
func (in *inherited) text() string {
	if in.Network == string(NetUnix) {
		return "a unix socket"
	}
	return in.Network + " " + in.Addr.String()
}

func withProxy(version int) string {
	if version == 0 {
		return ""
	}
	return fmt.Sprintf(" with PROXY protocol v%d", version)
}
