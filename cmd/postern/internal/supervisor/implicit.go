package supervisor

import (
	"errors"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/auto"
)

// everywhere is a registry for an auto.Follower that puts rules for the container's own
// address on all addresses of the host, as pasta does with "--tcp-ports=auto". That is
// one rule for each family of the host, of which the Follower knows the first. Only its
// goroutine calls the methods.
type everywhere struct {
	auto.Registry
	// v6 is the address of the second rule.
	v6 netip.Addr
	// second has the second rule's id by the first one's.
	second map[int]int
}

// autoRegistry is where listeners that are followed are published.
func (s *session) autoRegistry() auto.Registry {
	if !s.cfg.RootlessKit.AutoEverywhere {
		return s.ports
	}
	e := &everywhere{Registry: s.ports, v6: netip.IPv6Loopback(), second: make(map[int]int)}
	if s.cfg.Plan.V6.On() {
		e.v6 = netip.IPv6Unspecified()
	}
	return e
}

// AddAuto implements auto.Registry.
func (e *everywhere) AddAuto(spec portdriver.Spec) (portdriver.Rule, error) {
	if spec.Container.Addr.IsValid() || spec.Host.Addr.IsValid() {
		return e.Registry.AddAuto(spec)
	}
	spec.Host.Addr = netip.IPv4Unspecified()
	first, err := e.Registry.AddAuto(spec)
	if err != nil {
		return first, err
	}
	spec.Host.Addr = e.v6
	second, err := e.Registry.AddAuto(spec)
	switch {
	case err == nil:
		e.second[first.ID] = second.ID
	case errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EAFNOSUPPORT):
		// This host has no IPv6.
	default:
		return portdriver.Rule{}, errors.Join(err, e.Registry.Remove(first.ID))
	}
	return first, nil
}

// Remove implements auto.Registry.
func (e *everywhere) Remove(id int) error {
	err := e.Registry.Remove(id)
	if second, ok := e.second[id]; ok {
		delete(e.second, id)
		if more := e.Registry.Remove(second); !errors.Is(more, portdriver.ErrNotFound) {
			err = errors.Join(err, more)
		}
	}
	return err
}

// Rules implements auto.Registry. A first rule that somebody has removed takes the
// second one with it.
func (e *everywhere) Rules() []portdriver.Rule {
	rules := e.Registry.Rules()
	present := make(map[int]bool, len(rules))
	for _, r := range rules {
		present[r.ID] = true
	}
	for first, second := range e.second {
		if !present[first] {
			delete(e.second, first)
			_ = e.Registry.Remove(second) // it may be gone as well
			rules = slices.DeleteFunc(rules, func(r portdriver.Rule) bool { return r.ID == second })
		}
	}
	return rules
}
