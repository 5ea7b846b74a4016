package udpout

import (
	"container/list"
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/postern-net/postern/stack/guard"
	"github.com/postern-net/postern/stack/hostsock"
	"github.com/postern-net/postern/stack/internal/flow"
)

// mapping is one address and port of the container with its socket.
type mapping struct {
	t     *Table
	from  netip.AddrPort
	class class
	flow  *flow.Flow
	sock  *hostsock.Socket

	lastUsed atomic.Int64 // age in nanoseconds
	placed   atomic.Int64 // when it was put at its place in the queue
	replied  atomic.Bool

	// queue and element are the place in Table.lru, guarded by Table.mu.
	queue   *list.List
	element *list.Element

	mu    sync.Mutex // guards the fields below
	peers hostsock.Peers
	last  sent
	lane  lane
}

// sent is what is kept of the datagram sent last.
type sent struct {
	to    netip.AddrPort // as the container knows it
	quote quote
}

func (m *mapping) used() time.Duration { return time.Duration(m.lastUsed.Load()) }

// mapping returns the mapping of from, making one if there is none. Without one
// the error says why; it is about the host, not about the destination.
func (t *Table) mapping(from netip.AddrPort, c class) (*mapping, error) {
	t.mu.Lock()
	m := t.knownLocked(from)
	t.mu.Unlock()
	if m != nil {
		return m, nil
	}
	t.opening.Lock()
	defer t.opening.Unlock()
	t.mu.Lock()
	m = t.knownLocked(from) // another goroutine was faster
	closed, victim := t.closed, t.victimLocked(c)
	t.mu.Unlock()
	switch {
	case m != nil:
		return m, nil
	case closed:
		return nil, errLimit
	case victim != nil:
		t.evict(victim)
	}
	return t.open(from, c)
}

// knownLocked returns the mapping of from, which is used now, or nil.
func (t *Table) knownLocked(from netip.AddrPort) *mapping {
	m := t.mappings[from]
	if m != nil {
		age := int64(t.age())
		m.lastUsed.Store(age)
		m.placed.Store(age)
		m.queue.MoveToBack(m.element)
	}
	return m
}

// errLimit says that a limit was reached and counted.
var errLimit = errors.New("too many UDP mappings")

func (t *Table) open(from netip.AddrPort, c class) (*mapping, error) {
	if t.cfg.Guard.Source(from.Addr()) != "" {
		t.cfg.Flows.Counters.Inc(flow.DropSpoofed)
		return nil, errLimit
	}
	f := t.cfg.Flows.Admit(flow.Key{Proto: flow.UDP, Initiating: from})
	if f == nil {
		return nil, errLimit
	}
	s, err := t.openSocket(from)
	if err != nil {
		t.cfg.Flows.Release(f)
		return nil, err
	}
	m := &mapping{t: t, from: from, class: c, flow: f, sock: s}
	m.peers.Max = flow.MaxUDPRemotes
	m.lastUsed.Store(int64(t.age()))
	m.placed.Store(m.lastUsed.Load())
	if err := t.poller.Add(s, m); err != nil {
		t.end(m)
		return nil, err
	}
	if !t.insert(m) {
		t.end(m)
		return nil, errLimit
	}
	if t.express != nil {
		t.express.prepare(from.Addr())
	}
	return m, nil
}

// insert puts m into the table unless that was closed meanwhile.
func (t *Table) insert(m *mapping) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	m.queue = t.lru[m.class][0]
	m.element = m.queue.PushBack(m)
	t.mappings[m.from] = m
	return true
}

// openSocket opens the socket of a mapping. When descriptors have run out, another
// user gives one, once.
func (t *Table) openSocket(from netip.AddrPort) (*hostsock.Socket, error) {
	s, err := t.bind(from)
	if !errors.Is(err, syscall.EMFILE) && !errors.Is(err, syscall.ENFILE) {
		return s, err
	}
	t.logFull(err)
	if t.spare() {
		s, err = t.bind(from)
	}
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		t.cfg.Flows.Counters.Inc(flow.UDPRefusedLimit)
		err = errLimit
	}
	return s, err
}

// spare closes a descriptor that can be done without: that of a flow which goes on
// without the express path, or of a mapping without a reply.
func (t *Table) spare() bool {
	if t.express != nil && t.express.spare() {
		return true
	}
	t.mu.Lock()
	victim := t.unrepliedLocked()
	t.mu.Unlock()
	if victim != nil {
		t.evict(victim)
	}
	return victim != nil
}

// firstUnprivileged is Linux's default of net.ipv4.ip_unprivileged_port_start.
// Ports below are not asked for even where this user could have them: a
// container must not sit on a port that the host's services expect to be theirs.
const firstUnprivileged = 1024

// bind opens a socket with the container's port, or any port if that one is
// taken (RFC 4787 REQ-3: no port overloading).
func (t *Table) bind(from netip.AddrPort) (*hostsock.Socket, error) {
	addr := t.outbound(from.Addr())
	if from.Port() >= firstUnprivileged {
		s, err := hostsock.OpenUDP(addr, from.Port())
		if err == nil || !errors.Is(err, syscall.EADDRINUSE) && !errors.Is(err, syscall.EACCES) {
			return s, err
		}
	}
	return hostsock.OpenUDP(addr, 0)
}

func (t *Table) outbound(a netip.Addr) netip.Addr {
	addr, any := t.cfg.Outbound4, netip.IPv4Unspecified()
	if a.Is6() {
		addr, any = t.cfg.Outbound6, netip.IPv6Unspecified()
	}
	if addr.IsValid() {
		return addr
	}
	return any
}

// sending notes a datagram that is about to be sent.
func (m *mapping) sending(dial, to netip.AddrPort, q *quote) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.peers.Add(dial.Addr())
	m.last.to = to
	m.last.quote = *q
}

// target returns what the container calls a remote address: the gateway for the
// host's loopback, otherwise the same. It is not ok for addresses that the
// container has not sent to.
func (m *mapping) target(remote netip.AddrPort) (netip.AddrPort, bool) {
	m.mu.Lock()
	known := m.peers.Has(remote.Addr())
	m.mu.Unlock()
	if !known {
		return netip.AddrPort{}, false
	}
	if !remote.Addr().IsLoopback() {
		return remote, true
	}
	gateway := netip.AddrPortFrom(m.t.cfg.Guard.Plan.Of(remote.Addr()).Gateway, remote.Port())
	v := m.t.cfg.Guard.Decide(guard.UDP, gateway)
	return gateway, v.Allowed() && v.Dial == remote
}
