package slirpapi

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/proto/slirp4netns"
	"github.com/postern-net/postern/stack/netplan"
)

// changeTimeout is for adding or removing one rule, the other clients' before
// included.
const changeTimeout = 30 * time.Second

// table has the rules of this socket, as many as Ports admits: portdriver.MaxRules.
type table struct {
	ports Ports // nil if nothing can be published
	v4    netplan.Family

	mu      sync.Mutex // guards the fields below
	last    int        // the last id used
	entries []entry    // by id
}

// entry is a rule as the client has asked for it.
type entry struct {
	slirp4netns.Entry
	rule int
}

func newTable(ports Ports, v4 netplan.Family) *table { return &table{ports: ports, v4: v4} }

// do does what a client asks for. The error wraps a slirp4netns.Refusal.
func (t *table) do(ctx context.Context, request slirp4netns.Request) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	switch r := request.(type) {
	case slirp4netns.AddHostFwd:
		id, err := t.add(ctx, r)
		return slirp4netns.AppendAdded(nil, id), err
	case slirp4netns.RemoveHostFwd:
		return slirp4netns.AppendRemoved(nil), t.remove(ctx, r.ID)
	case slirp4netns.ListHostFwd:
		return slirp4netns.AppendList(nil, t.list()), nil
	}
	return nil, slirp4netns.ErrExecute
}

// errNoPorts is for --port-driver=none.
var errNoPorts = errors.New("the instance runs with --port-driver=none")

func (t *table) add(ctx context.Context, r slirp4netns.AddHostFwd) (id int, err error) {
	if t.ports == nil {
		return 0, refused(slirp4netns.ErrAdd, errNoPorts)
	}
	if !r.GuestAddr.IsValid() {
		r.GuestAddr = t.v4.Container
	}
	spec, err := specOf(r, t.v4)
	if err != nil {
		return 0, refused(slirp4netns.ErrAdd, err)
	}
	rules, err := t.ports.Add(ctx, []portdriver.Spec{spec})
	if err == nil && len(rules) != 1 {
		err = fmt.Errorf("publish 1 port: got %d rules", len(rules))
	}
	if err != nil {
		return 0, refused(slirp4netns.ErrAdd, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.entries) >= portdriver.MaxRules { // some have vanished: there cannot be more
		t.dropVanishedLocked()
	}
	t.last++
	t.entries = append(t.entries, entry{
		Entry: slirp4netns.Entry{
			ID: t.last, Proto: r.Proto,
			HostAddr: r.HostAddr, HostPort: r.HostPort, GuestAddr: r.GuestAddr, GuestPort: r.GuestPort,
		},
		rule: rules[0].ID,
	})
	return t.last, nil
}

func (t *table) remove(ctx context.Context, id int) error {
	e, ok := t.find(id)
	if !ok {
		return slirp4netns.ErrRemoveID
	}
	err := t.ports.Remove(ctx, e.rule)
	switch {
	case errors.Is(err, portdriver.ErrNotFound): // somebody was faster
		return refused(slirp4netns.ErrRemoveID, err)
	case err != nil:
		return refused(slirp4netns.ErrRemove, err)
	}
	return nil
}

// find returns a rule that is in force.
func (t *table) find(id int) (entry, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropVanishedLocked()
	i := slices.IndexFunc(t.entries, func(e entry) bool { return e.ID == id })
	if i < 0 {
		return entry{}, false
	}
	return t.entries[i], true
}

func (t *table) list() []slirp4netns.Entry {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dropVanishedLocked()
	all := make([]slirp4netns.Entry, len(t.entries))
	for i, e := range t.entries {
		all[i] = e.Entry
	}
	return all
}

// dropVanishedLocked forgets the rules that were removed, here or elsewhere. Ports
// is asked with the lock held: an entry comes after its rule, so that all rules of
// the entries were there before.
func (t *table) dropVanishedLocked() {
	if len(t.entries) == 0 {
		return
	}
	inForce := make(map[int]bool)
	for _, r := range t.ports.Rules() {
		inForce[r.ID] = true
	}
	t.entries = slices.DeleteFunc(t.entries, func(e entry) bool { return !inForce[e.rule] })
}

// refused is what the client is told, with a reason for the log.
func refused(told slirp4netns.Refusal, cause error) error { return fmt.Errorf("%w: %w", told, cause) }

// specOf puts a request into our words.
func specOf(r slirp4netns.AddHostFwd, v4 netplan.Family) (portdriver.Spec, error) {
	target, err := targetOf(r.GuestAddr, v4)
	return portdriver.Spec{
		Proto:     portdriver.Proto(r.Proto), // in the same words
		Host:      portdriver.Side{Addr: r.HostAddr, Port: r.HostPort},
		Container: portdriver.Side{Addr: target, Port: r.GuestPort},
		Count:     1,
	}, err
}

// targetOf returns where clients of a rule are taken; see the package comment.
func targetOf(guest netip.Addr, v4 netplan.Family) (netip.Addr, error) {
	switch first, _ := v4.Pool(); {
	case !v4.On():
		return guest, errors.New("the instance has no IPv4")
	case guest.IsUnspecified():
		return first, nil
	case v4.Owned(guest):
		return guest, fmt.Errorf("guest_addr %s is postern's own, want the container's %s", guest, v4.Container)
	case guest.IsMulticast(), guest == broadcast, guest == v4.Prefix.Addr(), guest == last(v4.Prefix):
		return guest, fmt.Errorf("guest_addr %s is nobody's own, want the container's %s", guest, v4.Container)
	}
	return guest, nil
}

// broadcast is everybody on the link (RFC 919 section 7).
var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// last is the highest address of an IPv4 network, its directed broadcast address.
func last(p netip.Prefix) netip.Addr {
	a := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		a[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(a)
}
