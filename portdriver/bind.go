package portdriver

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver/internal/bind"
)

// bind makes the sockets of e. What it has made is e's also when it fails.
func (r *Registry) bind(e *entry) error {
	switch spec := e.rule.Spec; {
	case spec.Reverse:
		return r.bindInside(e)
	case spec.Host.Path != "":
		return e.bindPath()
	case spec.Host.FD != "":
		for _, in := range e.named {
			e.listen(Listener{Network: Network(in.Network), Bound: in.Addr, File: in.File}, 0)
		}
		return nil
	case spec.Host.Port == 0:
		return r.bindFree(e)
	default:
		return r.explain(r.bindPorts(e, spec.Host.Port))
	}
}

// listen gives e a listener for the nth port of its range.
func (e *entry) listen(l Listener, n int) {
	spec := e.rule.Spec
	l.Rule, l.Proxy, l.Reverse = e.rule.ID, spec.Proxy, spec.Reverse
	switch to := spec.Container; {
	case spec.Reverse:
		l.TargetPath = spec.Host.Path
	case to.Path != "":
		l.TargetPath = to.Path
	default:
		l.Target = addrPort(to.Addr, to.Port, n)
	}
	e.rule.Listeners = append(e.rule.Listeners, l)
}

// bindError says which address could not be bound.
type bindError struct {
	network string
	addr    netip.AddrPort
	err     error
}

func (b *bindError) Error() string { return bind.Explain(b.network, b.addr, b.err).Error() }
func (b *bindError) Unwrap() error { return b.err }

// explain turns a bindError into words, once: that takes a look at all processes.
func (r *Registry) explain(err error) error {
	var b *bindError
	if !errors.As(err, &b) {
		return err
	}
	if in := r.unused(b); in != nil && errors.Is(err, unix.EADDRINUSE) {
		return fmt.Errorf("listen on %s %s: %w; the inherited listener %q is %s, publish fd:%s:CTRPORT",
			b.network, b.addr, b.err, in.Name, in.Addr, in.Name)
	}
	return bind.Explain(b.network, b.addr, b.err)
}

// unused is an inherited listener that no rule has, and that is in the way.
func (r *Registry) unused(b *bindError) *inherited {
	wanted := []claim{{network: Network(b.network), addr: b.addr.Addr(), first: b.addr.Port(), last: b.addr.Port()}}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, in := range r.inherited {
		if in.user == nil && overlap(in.claims(), wanted) {
			return in
		}
	}
	return nil
}

// bindPorts binds every port of e's range from first on, on every address. A family
// that the host lacks is left out if the spec does not insist.
func (r *Registry) bindPorts(e *entry, first uint16) error {
	spec := e.rule.Spec
	var missing error
	for _, addr := range spec.addrs() {
		switch err := r.bindAddr(e, addr, first); {
		case err == nil:
		case !spec.Host.Addr.IsValid() && (lacking(err) || len(e.using) > 0 && errors.Is(err, unix.EACCES)):
			// Somebody who inherits a port has no right to the same one elsewhere.
			missing = err
		default:
			return err
		}
	}
	if len(e.rule.Listeners) == 0 {
		return missing
	}
	return nil
}

// lacking reports whether a host without the address's family says so.
func lacking(err error) bool {
	return errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT)
}

// bindAddr binds every port of e's range on one address, or none.
func (r *Registry) bindAddr(e *entry, addr netip.Addr, first uint16) error {
	spec := e.rule.Spec
	listeners, owned := len(e.rule.Listeners), len(e.owned)
	for i := range spec.Count {
		at := addrPort(addr, first, i)
		if in := e.using[at]; in != nil {
			if !e.has(in.File) { // one that takes both families serves both addresses
				e.listen(Listener{Network: spec.network(), Bound: in.Addr, File: in.File}, i)
			}
			continue
		}
		f := e.had
		if f == nil || e.hadAt != at {
			var err error
			if f, err = r.bindInet(spec.network(), at); err != nil {
				e.undo(listeners, owned)
				return &bindError{string(spec.network()), at, err}
			}
			e.owned = append(e.owned, f)
		}
		e.listen(Listener{Network: spec.network(), Bound: at, File: f}, i)
	}
	return nil
}

func (e *entry) has(f *os.File) bool {
	for _, l := range e.rule.Listeners {
		if l.File == f {
			return true
		}
	}
	return false
}

// undo closes what was bound after a point.
func (e *entry) undo(listeners, owned int) {
	for _, f := range e.owned[owned:] {
		f.Close()
	}
	e.owned, e.rule.Listeners = e.owned[:owned], e.rule.Listeners[:listeners]
}

// bindPath makes the unix socket on the host.
func (e *entry) bindPath() error {
	name := e.rule.Spec.Host.Path
	f, p, err := bind.Unix(name)
	if err != nil {
		return bind.ExplainPath(name, err)
	}
	e.owned, e.path = append(e.owned, f), p
	e.listen(Listener{Network: NetUnix, File: f}, 0)
	return nil
}

// bindInside has the container's side listen.
func (r *Registry) bindInside(e *entry) error {
	spec := e.rule.Spec
	if spec.Container.Path != "" {
		return r.listenInside(e, spec.Container, Listener{Network: NetUnix}, 0)
	}
	var missing error
	for _, addr := range spec.addrs() {
		for i := range spec.Count {
			at := addrPort(addr, spec.Container.Port, i)
			err := r.listenInside(e, Side{Addr: addr, Port: at.Port()}, Listener{Network: NetTCP, Bound: at}, i)
			if err != nil && (spec.Container.Addr.IsValid() || !lacking(err)) {
				return err
			} else if err != nil {
				missing = err
			}
		}
	}
	if len(e.rule.Listeners) == 0 {
		return missing
	}
	return nil
}

func (r *Registry) listenInside(e *entry, side Side, l Listener, n int) error {
	where := side.text(1)
	f, err := r.cfg.ContainerListener(side)
	if err == nil {
		l.File, err = bind.Adopt(f, "container "+where)
	}
	if err != nil {
		return fmt.Errorf("listen in the container on %s: %w", where, err)
	}
	e.owned = append(e.owned, l.File)
	e.listen(l, n)
	return nil
}
