package portdriver

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver/internal/bind"
)

// freeTries is how often a port is looked for that is free for all of a rule: in
// both families, and with those that follow it in a range. Each try costs a
// descriptor for the time of the search.
const freeTries = 64

// free reports whether e is to get any free port.
func (e *entry) free() bool {
	s := e.rule.Spec
	return !s.Reverse && s.Host.Path == "" && s.Host.FD == "" && s.Host.Port == 0
}

// bindFree binds to a port of the kernel's choice, the same on every address, and
// for a range to those that follow it.
func (r *Registry) bindFree(e *entry) error {
	// Single ports stay bound, so that the kernel chooses others; a range might need
	// them in its next try.
	var tried []*os.File
	defer func() {
		for _, f := range tried {
			f.Close()
		}
	}()
	for range freeTries {
		port, err := r.bindAny(e)
		if err == nil && r.claimPort(e, port) {
			return nil
		}
		if e.had != nil && e.rule.Spec.Count == 1 {
			tried, e.owned = append(tried, e.had), e.owned[1:]
		}
		e.undo(0, 0)
		e.had = nil
		if err != nil && !errors.Is(err, unix.EADDRINUSE) {
			return r.explain(err)
		}
	}
	what := "port"
	if n := e.rule.Spec.Count; n > 1 {
		what = fmt.Sprintf("%d ports in a row", n)
	}
	return mark(fmt.Errorf("no free %s found on every address, want the host's ports by number", what), ErrConflict)
}

// bindAny is one try of bindFree.
func (r *Registry) bindAny(e *entry) (uint16, error) {
	spec := e.rule.Spec
	network := string(spec.network())
	var missing error
	for _, addr := range spec.addrs() {
		at := netip.AddrPortFrom(addr, 0)
		f, err := bind.Inet(network, at)
		if err == nil {
			return r.bindBeside(e, addr, f)
		}
		if missing = (&bindError{network, at, err}); !lacking(err) {
			break
		}
		// The other family chooses.
	}
	return 0, missing
}

// bindBeside binds the rest of e's sockets beside its first.
func (r *Registry) bindBeside(e *entry, addr netip.Addr, f *os.File) (uint16, error) {
	e.owned, e.had = append(e.owned, f), f
	port, err := bind.Port(f)
	if err != nil {
		return 0, err
	}
	if int(port)+e.rule.Spec.Count-1 > 65535 {
		return 0, unix.EADDRINUSE
	}
	e.hadAt = netip.AddrPortFrom(addr, port)
	return port, r.bindPorts(e, port)
}

// claimPort records the free port that e has got. It reports whether that port
// conflicts with no other entry.
func (r *Registry) claimPort(e *entry, port uint16) bool {
	spec := e.rule.Spec
	spec.Host.Port = port
	try := &entry{claims: spec.claims()}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, other := range r.entries {
		if other != e && overlap(other.claims, try.claims) {
			return false
		}
	}
	e.rule.Spec, e.claims = spec, try.claims
	return true
}
