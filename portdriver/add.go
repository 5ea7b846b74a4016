package portdriver

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

// Add puts a rule in force and returns it when the Backend serves it. Nothing is left
// of one that fails. The error is one line that names the rule and the cause; it
// matches ErrSpec, ErrConflict, ErrNotFound (an inherited listener), ErrLimit or
// ErrClosed where one of them is the reason.
func (r *Registry) Add(spec Spec) (Rule, error) { return r.addOne(spec, false) }

// AddAuto is Add for a rule that follows a listener of the container.
func (r *Registry) AddAuto(spec Spec) (Rule, error) { return r.addOne(spec, true) }

// AddAll puts several rules in force, or none. Those that ask for any free port get
// theirs after the others have what they ask for. The rules come in the order of
// specs, and so do their IDs.
func (r *Registry) AddAll(specs []Spec) ([]Rule, error) { return r.add(specs, false) }

func (r *Registry) addOne(spec Spec, auto bool) (Rule, error) {
	rules, err := r.add([]Spec{spec}, auto)
	if err != nil {
		return Rule{}, err
	}
	return rules[0], nil
}

func (r *Registry) add(specs []Spec, auto bool) ([]Rule, error) {
	if err := r.begin(); err != nil {
		return nil, fmt.Errorf("publish: %w", err)
	}
	defer r.work.Done()
	entries, err := r.reserve(specs, auto)
	if err != nil {
		return nil, err
	}
	if err := r.open(entries); err != nil {
		r.end(entries)
		return nil, err
	}
	return r.commit(entries), nil
}

// end takes entries back, whatever they have got so far.
func (r *Registry) end(entries []*entry) {
	for _, e := range entries {
		e.shut()
		if e.handed {
			r.cfg.Backend.Shut(e.rule.ID)
			r.leave(e)
		}
		if err := e.close(); err != nil {
			r.log.Warn("a published port left something behind", "id", e.rule.ID, "cause", err)
		}
	}
	r.release(entries...)
}

// reserve enters rules that claim what they will have.
func (r *Registry) reserve(specs []Spec, auto bool) ([]*entry, error) {
	var entries []*entry
	for _, spec := range specs {
		e, err := r.reserveOne(spec.normal(), auto)
		if err != nil {
			r.release(entries...)
			return nil, err
		}
		entries = append(entries, e)
	}
	return entries, nil
}

func (r *Registry) reserveOne(spec Spec, auto bool) (*entry, error) {
	if err := r.admit(spec); err != nil {
		return nil, err
	}
	e := &entry{rule: Rule{Spec: spec, Auto: auto}, claims: spec.claims()}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.reserveLocked(e); err != nil {
		return nil, fmt.Errorf("publish %s: %w", spec, err)
	}
	return e, nil
}

// admit checks a spec by itself.
func (r *Registry) admit(spec Spec) error {
	if err := spec.Validate(); err != nil {
		return err
	}
	refuse := func(why string) error { return mark(fmt.Errorf("publish %s: %s", spec, why), ErrSpec) }
	switch to := spec.Container.Addr; {
	case spec.Reverse && r.cfg.ContainerListener == nil:
		return refuse("nothing can listen in this container")
	case to.IsLoopback(), to.IsUnspecified():
		// The container's kernel decides.
	case to.Is4() && !r.cfg.V4, to.Is6() && !r.cfg.V6:
		return refuse(fmt.Sprintf("the container has no address of the family of %s", to))
	}
	return nil
}

// reserveLocked enters e if it can be in force beside the others.
func (r *Registry) reserveLocked(e *entry) error {
	if err := r.conflictLocked(e); err != nil {
		return err
	}
	if err := r.inheritLocked(e); err != nil {
		return err
	}
	e.listeners = max(len(e.named), 1)
	if spec := e.rule.Spec; spec.Host.FD == "" && spec.listening().Path == "" {
		e.listeners = spec.Count * len(spec.addrs())
	}
	switch {
	case len(r.entries) >= MaxRules:
		return fmt.Errorf("%w: %d rules", ErrLimit, MaxRules)
	case r.listeners+e.listeners > MaxListeners:
		return fmt.Errorf("%w: %d sockets beside %d, the limit is %d", ErrLimit, e.listeners, r.listeners, MaxListeners)
	}
	for _, in := range e.named {
		in.user = e
	}
	for _, in := range e.using {
		in.user = e
	}
	r.last++
	e.rule.ID = r.last
	r.entries[e.rule.ID] = e
	r.listeners += e.listeners
	return nil
}

// conflictLocked says which other entry claims the same as e.
func (r *Registry) conflictLocked(e *entry) error {
	var found *entry
	for _, other := range r.entries {
		if other != e && overlap(other.claims, e.claims) && (found == nil || other.rule.ID < found.rule.ID) {
			found = other
		}
	}
	if found == nil {
		return nil
	}
	how := ""
	switch found.state {
	case opening:
		how = ", which is about to be in force"
	case closing:
		how = ", which is about to end"
	}
	return fmt.Errorf("%w: rule %d (%s)%s", ErrConflict, found.rule.ID, found.rule.Spec, how)
}

// open binds entries and has the Backend serve them. The caller ends them if it
// fails.
func (r *Registry) open(entries []*entry) error {
	explicit := slices.Clone(entries)
	slices.SortStableFunc(explicit, func(a, b *entry) int {
		switch {
		case a.free() == b.free():
			return 0
		case b.free():
			return -1
		}
		return 1
	})
	for _, e := range explicit {
		if err := r.bind(e); err != nil {
			return fmt.Errorf("publish %s: %w", e.rule.Spec, r.taken(e, err))
		}
	}
	for _, e := range entries {
		e.handed = true
		if err := r.cfg.Backend.Open(e.rule.clone()); err != nil {
			return fmt.Errorf("publish %s: %w", e.rule.Spec, err)
		}
	}
	return nil
}

// taken makes an error about a port that somebody has an ErrConflict. A rule that
// got the port as a free one while e was on its way is named.
func (r *Registry) taken(e *entry, err error) error {
	if !errors.Is(err, unix.EADDRINUSE) && !errors.Is(err, unix.EEXIST) {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if conflict := r.conflictLocked(e); conflict != nil {
		return conflict
	}
	return mark(err, ErrConflict)
}

// commit makes entries visible.
func (r *Registry) commit(entries []*entry) []Rule {
	rules := make([]Rule, 0, len(entries))
	for _, e := range entries {
		r.log.Debug("port published", "id", e.rule.ID, "rule", e.rule.String())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range entries {
		e.state = open
		r.listeners += len(e.rule.Listeners) - e.listeners
		e.listeners = len(e.rule.Listeners)
		rules = append(rules, e.rule.clone())
	}
	return rules
}

// addrPort is the nth port of a range at an address.
func addrPort(addr netip.Addr, first uint16, n int) netip.AddrPort {
	return netip.AddrPortFrom(addr, first+uint16(n))
}
