// Package apitest has a registry of published ports that binds nothing, for tests of
// the control socket and of the command that uses it.
package apitest

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"

	"github.com/postern-net/postern/portdriver"
)

// FirstFree is the host's port that is given out first where any free one is asked
// for.
const FirstFree = 40000

// Ports implements apisock.Ports. The zero value is ready.
type Ports struct {
	// Name is the driver's, "splice" if it is empty.
	Name string
	// Max is how many rules there may be, 0 for any number.
	Max int
	// Delay holds every change up until it is closed, or its context has ended.
	Delay chan struct{}

	mu    sync.Mutex // guards what follows
	last  int
	free  uint16
	rules []portdriver.Rule
}

// Driver implements apisock.Ports.
func (p *Ports) Driver() string { return cmp.Or(p.Name, "splice") }

// Add implements apisock.Ports.
func (p *Ports) Add(ctx context.Context, specs []portdriver.Spec) ([]portdriver.Rule, error) {
	if err := p.wait(ctx); err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	before := len(p.rules)
	for _, spec := range specs {
		if err := p.addLocked(spec); err != nil {
			p.rules = p.rules[:before]
			return nil, err
		}
	}
	return slices.Clone(p.rules[before:]), nil
}

func (p *Ports) wait(ctx context.Context) error {
	if p.Delay != nil {
		select {
		case <-p.Delay:
		case <-ctx.Done():
		}
	}
	return ctx.Err()
}

func (p *Ports) addLocked(spec portdriver.Spec) error {
	if p.Max > 0 && len(p.rules) >= p.Max {
		return fmt.Errorf("publish %s: %w: %d rules", spec, portdriver.ErrLimit, p.Max)
	}
	if spec.Host == (portdriver.Side{Addr: spec.Host.Addr}) {
		spec.Host.Port = FirstFree + p.free
		p.free++
	}
	for _, other := range p.rules {
		if portdriver.Conflict(other.Spec, spec) {
			return fmt.Errorf("publish %s: %w by rule %d", spec, portdriver.ErrConflict, other.ID)
		}
	}
	r := portdriver.Rule{ID: p.last + 1, Spec: spec, Listeners: listeners(p.last+1, spec)}
	p.last++
	p.rules = append(p.rules, r)
	return nil
}

// listeners is what a real registry would bind.
func listeners(rule int, spec portdriver.Spec) []portdriver.Listener {
	network := portdriver.NetTCP
	switch {
	case spec.Host.Path != "":
		return []portdriver.Listener{{Rule: rule, Network: portdriver.NetUnix}}
	case spec.Proto.IsUDP():
		network = portdriver.NetUDP
	}
	addrs := []netip.Addr{spec.Host.Addr}
	if !spec.Host.Addr.IsValid() {
		addrs = []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	}
	var all []portdriver.Listener
	for _, addr := range addrs {
		for n := range spec.Count {
			all = append(all, portdriver.Listener{
				Rule: rule, Network: network, Bound: netip.AddrPortFrom(addr, spec.Host.Port+uint16(n)),
			})
		}
	}
	return all
}

// Remove implements apisock.Ports.
func (p *Ports) Remove(ctx context.Context, id int) error {
	if err := p.wait(ctx); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, r := range p.rules {
		if r.ID == id {
			p.rules = slices.Delete(p.rules, i, i+1)
			return nil
		}
	}
	return fmt.Errorf("remove rule %d: %w", id, portdriver.ErrNotFound)
}

// Rules implements apisock.Ports.
func (p *Ports) Rules() []portdriver.Rule {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.rules)
}
