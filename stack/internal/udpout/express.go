package udpout

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack/hostsock"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/link"
)

// Sockets is where sockets of the container's network namespace come from. It is
// the interface of portdriver/stock.Stock, which says what the methods promise.
type Sockets interface {
	Prepare(kind handoff.SocketKind)
	Take(kind handoff.SocketKind) (fd int, ok bool)
}

// Express is what the express path works with; see the package comment.
type Express struct {
	// Catch4 and Catch6 are the sockets on which a container's datagrams arrive
	// that have left the universal path and that no flow's own socket takes. A
	// family without one has no express path. The table closes them.
	Catch4, Catch6 *os.File
	Sockets        Sockets
	// Reinject writes a packet of the container back to it.
	Reinject func(p link.Packet) error
	// Claim sees what the container sends by the express path before anything
	// else, and reports whether it has dealt with it; nil claims nothing. It is
	// called from several goroutines.
	Claim func(from, to netip.AddrPort, payload []byte, segment int) bool
	// Own reports whether a socket of the container's own namespace sends from one
	// address to the other, as opposed to somebody behind it; nil says that all do.
	Own func(from, to netip.AddrPort) bool
	// Lost is told that the container's kernel does not hand flows over; may be nil.
	Lost func()
}

// abandon closes what a table that cannot be would have taken over.
func (e *Express) abandon() {
	if e == nil {
		return
	}
	for _, f := range []*os.File{e.Catch4, e.Catch6} {
		if f != nil {
			f.Close()
		}
	}
}

// express is the part of a Table that moves flows over to sockets of the container's
// namespace. No lock is held while another is taken, but drain, which is outermost,
// and a pair's own.
type express struct {
	t      *Table
	cfg    Express
	poller *hostsock.Poller
	catch  map[bool]*hostsock.Socket // by whether it is IPv6's
	limit  int

	out    hostsock.Writer  // used by poller's goroutine only
	late   outlet           // the same
	behind hostsock.Drainer // the same, for what is older than a pair
	in     hostsock.Writer  // used by Table.poller's goroutine only

	first  hostsock.Drainer // used by the reader only
	moving []*pair          // the same: those that may keep messages back, oldest first
	kept   atomic.Int64     // what those keep, all together, in bytes

	drain    sync.Mutex // guards the two below
	drainer  hostsock.Drainer
	drainOut hostsock.Writer

	lostOnce, failOnce sync.Once // the log lines

	mu     sync.Mutex // guards the fields below; no system call is made under it
	closed bool
	pairs  map[*pair]struct{} // bounded by limit
	talks  map[talkKey]talk   // bounded by maxTalks
	pruned time.Duration      // when talks was looked through last
	// unanswered is how many flows in a row were not handed over by the kernel;
	// until resume no further flow is moved.
	unanswered int
	resume     time.Duration
}

// newExpress starts the express path of t.
func newExpress(t *Table, cfg Express) (*express, error) {
	defer cfg.abandon()
	x := &express{
		t: t, cfg: cfg, catch: make(map[bool]*hostsock.Socket), limit: maxPairs(),
		late:  outlet{t: t},
		pairs: make(map[*pair]struct{}), talks: make(map[talkKey]talk),
	}
	var err error
	if x.poller, err = hostsock.NewPoller(); err != nil {
		return nil, err
	}
	for v6, f := range map[bool]*os.File{false: cfg.Catch4, true: cfg.Catch6} {
		if f == nil {
			continue
		}
		if err := x.intercept(v6, f); err != nil {
			x.close()
			return nil, err
		}
	}
	return x, nil
}

// intercept receives from one of the sockets for what has no pair.
func (x *express) intercept(v6 bool, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("intercept datagrams: %w", err)
	}
	fd := -1
	if cerr := raw.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 3) }); cerr != nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("intercept datagrams: %w", os.NewSyscallError("fcntl", err))
	}
	s, err := hostsock.Intercept(fd)
	if err != nil {
		return err
	}
	if s.LocalAddr().Addr().Is6() != v6 {
		s.Close()
		return fmt.Errorf("intercept datagrams at %s: %w", s.LocalAddr(), unix.EAFNOSUPPORT)
	}
	x.catch[v6] = s
	return x.poller.Add(s, stray{x})
}

// close ends all pairs and waits for the goroutine. Calls that are under way open
// no more.
func (x *express) close() {
	x.mu.Lock()
	x.closed = true
	x.mu.Unlock()
	_ = x.poller.Close() // of no consequence: nothing is received any more
	for _, s := range x.catch {
		s.Close()
	}
	for _, p := range x.choose(func(*pair) bool { return true }) {
		x.end(p)
	}
}

// serves reports whether a mapping's flows can move over at all.
func (x *express) serves(from netip.Addr) bool {
	return x.catch[from.Is6()] != nil && from == x.t.cfg.Guard.Plan.Of(from).Container
}

// prepare has sockets made, so that they are there when a flow moves over.
func (x *express) prepare(from netip.Addr) {
	if x.serves(from) {
		x.cfg.Sockets.Prepare(kindOf(from))
	}
}

func kindOf(a netip.Addr) handoff.SocketKind {
	if a.Is4() {
		return handoff.SocketExpressUDP4
	}
	return handoff.SocketExpressUDP6
}

// open gives the flow from m to a remote its pair, or returns nil. It does not wait.
// Unless the reader is to turn a datagram next, the pair is in use at once.
func (x *express) open(m *mapping, to netip.AddrPort, turn bool) *pair {
	counters := &x.t.cfg.Flows.Counters
	if x.cfg.Own != nil && !x.cfg.Own(m.from, to) {
		counters.Inc(flow.UDPExpressForeign)
		x.rest(m, to, foreignRest)
		return nil
	}
	if !x.room() {
		x.rest(m, to, fullRest)
		return nil
	}
	kind := kindOf(to.Addr())
	fd, ok := x.cfg.Sockets.Take(kind)
	if !ok {
		counters.Inc(flow.UDPExpressMissing)
		x.cfg.Sockets.Prepare(kind)
		x.rest(m, to, missingRest)
		return nil
	}
	s, err := hostsock.Join(fd, to, m.from)
	if err != nil {
		x.failed(err)
		x.rest(m, to, failedRest)
		return nil
	}
	p := &pair{x: x, m: m, to: to, sock: s}
	p.used.Store(int64(x.t.age()))
	if !turn {
		p.inUse()
	}
	if !x.enter(p) {
		s.Close()
		return nil
	}
	if !turn && !p.watch() {
		x.end(p)
		return nil
	}
	m.sock.Enlarge()
	counters.Inc(flow.UDPExpressFlows)
	return p
}

// enter puts a pair into both tables, unless there is one or its owner has ended.
func (x *express) enter(p *pair) bool {
	x.mu.Lock()
	ok := !x.closed && len(x.pairs) < x.limit
	if ok {
		x.pairs[p] = struct{}{}
	}
	x.mu.Unlock()
	if ok && !p.m.enter(p) {
		x.leave(p)
		return false
	}
	return ok
}

// leave takes a pair out of the table and reports whether it was there.
func (x *express) leave(p *pair) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	_, ok := x.pairs[p]
	delete(x.pairs, p)
	return ok
}

// failed counts a socket that could not be used. What the container itself has bound
// is its own affair; anything else should not happen.
func (x *express) failed(err error) {
	x.t.cfg.Flows.Counters.Inc(flow.UDPExpressFailed)
	if errors.Is(err, unix.EADDRINUSE) || errors.Is(err, unix.EADDRNOTAVAIL) {
		return
	}
	x.failOnce.Do(func() {
		x.t.cfg.Logger.Warn("UDP: a flow cannot go by a socket of the container's network, it stays on the slower path",
			slog.Any("error", err))
	})
}
