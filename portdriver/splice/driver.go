package splice

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

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/internal/admission"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack/relay"
	"github.com/postern-net/postern/stack/sockcall"
)

var _ portdriver.Driver = (*Driver)(nil)

// Stock is where sockets of the container's network namespace come from; a
// *stock.Stock is one.
type Stock interface {
	// Prepare tells that sockets of a kind will be needed.
	Prepare(kind handoff.SocketKind)
	// Take returns a fresh non-blocking socket, which is the caller's, or false if
	// there is none now. It does not wait.
	Take(kind handoff.SocketKind) (fd int, ok bool)
	// Keep puts a socket back whose connection has ended and left nothing in it, and
	// Reuse returns such a one, as Take does.
	Keep(kind handoff.SocketKind, fd int)
	Reuse(kind handoff.SocketKind) (fd int, ok bool)
	// Subscribe has fn called when sockets have arrived.
	Subscribe(fn func(kind handoff.SocketKind)) (cancel func())
	// Shed closes what is in stock, because descriptors have run out.
	Shed() int
}

// Config is what a Driver needs.
type Config struct {
	// Addresses are those of the container's network.
	Addresses portdriver.Addresses
	// Loops relay the connections. They are closed after the driver.
	Loops *relay.Loops
	// Stock provides the sockets in the container's netns.
	Stock Stock
	// Root is the container's root directory, which stays the caller's and open.
	// Without it no unix socket in the container can be a target.
	Root *os.File
	// UnixDialer takes the place of Root for a process that may not connect to unix
	// sockets itself; may be nil.
	UnixDialer UnixDialer
	// MaxFlows is how many connections there may be. 0 stands for as many as the
	// limit of descriptors allows, at most portdriver.MaxTCP.
	MaxFlows int
	// Grace is how long a client waits for a server that is not there yet before it is
	// reset. 0: not at all.
	Grace time.Duration
	// Logger is told of shortages, not more than once a minute. May be nil.
	Logger *slog.Logger
}

// Driver serves TCP and unix listeners. See the package comment.
type Driver struct {
	cfg      Config
	log      *slog.Logger
	places   *admission.Table
	counters portdriver.Counters
	stock    *queue
	local    ports
	lanes    []*lane
	pending  atomic.Int64 // connections whose server has not answered
	waiters  pauses
	lookups  sync.WaitGroup
	gone     chan struct{} // closed by Close
	told     atomic.Int64  // when a shortage was logged last, in Unix nanoseconds

	mu        sync.Mutex // guards the fields below
	closed    bool
	ports     int // listeners ever opened; numbers them
	listeners map[*listener]struct{}
	conns     map[*conn]bool // all; true for those that are relayed
	idle      sync.Cond      // the last listener or connection has ended
}

// New returns a driver without listeners. The error is that of a Config that lacks
// something.
func New(cfg Config) (*Driver, error) {
	if cfg.Loops == nil || cfg.Stock == nil {
		return nil, errors.New("splice driver: needs a relay and a stock of sockets")
	}
	most := cfg.MaxFlows
	if most <= 0 {
		most = capacity(sockcall.OpenFiles())
	}
	d := &Driver{
		cfg:       cfg,
		log:       cfg.Logger,
		places:    admission.NewTable(most),
		gone:      make(chan struct{}),
		listeners: make(map[*listener]struct{}),
		conns:     make(map[*conn]bool),
	}
	if d.log == nil {
		d.log = slog.New(slog.DiscardHandler)
	}
	for _, l := range cfg.Loops.All() {
		d.lanes = append(d.lanes, &lane{Loop: l})
	}
	d.idle.L, d.local.set = &d.mu, setPorts
	d.stock = newQueue(cfg.Stock, d.freed)
	return d, nil
}

// Open starts to serve l. See portdriver.Driver.
func (d *Driver) Open(l portdriver.Listener) error {
	ln, err := d.listen(l)
	if err != nil {
		return fmt.Errorf("serve %s: %w", name(l), err)
	}
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		ln.discard()
		return fmt.Errorf("serve %s: %w", name(l), os.ErrClosed)
	}
	ln.port = d.ports
	ln.lane = d.lanes[d.ports%len(d.lanes)]
	d.ports++
	d.listeners[ln] = struct{}{}
	d.mu.Unlock()
	for _, kind := range ln.kinds {
		d.cfg.Stock.Prepare(kind)
	}
	if !ln.lane.Do(ln.watch) {
		ln.end()
		return fmt.Errorf("serve %s: %w", name(l), relay.ErrClosed)
	}
	return nil
}

// kinds are the kinds of socket that clients of a listener will need. Those of IPv4
// need one for IPv6 only where their server listens on that alone.
func (d *Driver) kinds(l portdriver.Listener) []handoff.SocketKind {
	a := d.cfg.Addresses
	switch addr := l.Target.Addr(); {
	case l.TargetPath != "":
		return nil
	case addr.IsValid():
		return []handoff.SocketKind{kindOf(addr)}
	case !a.Container4.IsValid():
		return []handoff.SocketKind{handoff.SocketTCP6}
	case !a.Container6.IsValid(), l.Bound.Addr().Unmap().Is4():
		return []handoff.SocketKind{handoff.SocketTCP4}
	}
	return []handoff.SocketKind{handoff.SocketTCP6, handoff.SocketTCP4}
}

// kindOf is the kind of socket that reaches an address.
func kindOf(target netip.Addr) handoff.SocketKind {
	if target.Is4() {
		return handoff.SocketTCP4
	}
	return handoff.SocketTCP6
}

// Shut ends the service of a rule: when it returns, its listeners are closed.
// Connections go on.
func (d *Driver) Shut(rule int) {
	d.mu.Lock()
	var list []*listener
	for ln := range d.listeners {
		if ln.desc.Rule == rule {
			list = append(list, ln)
		}
	}
	d.mu.Unlock()
	var ends sync.WaitGroup
	for _, ln := range list {
		ends.Add(1)
		ln.lane.run(func() {
			defer ends.Done()
			ln.end()
		})
	}
	ends.Wait()
}

// Status returns what was counted and how many connections there are.
func (d *Driver) Status() portdriver.Status {
	return portdriver.Status{TCP: d.places.Len(), Counters: d.counters.Snapshot()}
}

// Close resets every connection and waits until nothing is left. The loops must not
// be closed at the same time.
func (d *Driver) Close() {
	d.mu.Lock()
	first := !d.closed
	d.closed = true
	listeners, conns := make([]*listener, 0, len(d.listeners)), make([]*conn, 0, len(d.conns))
	for ln := range d.listeners {
		listeners = append(listeners, ln)
	}
	for c := range d.conns {
		conns = append(conns, c)
	}
	d.mu.Unlock()
	if first {
		close(d.gone)
		d.stock.close()
	}
	for _, ln := range listeners {
		ln.lane.run(ln.end)
	}
	for _, c := range conns {
		c.lane.run(c.abort)
	}
	d.mu.Lock()
	for len(d.listeners)+len(d.conns) > 0 {
		d.idle.Wait()
	}
	d.mu.Unlock()
	d.awaitLookups()
}

// awaitLookups waits for goroutines that look up paths. One that the file system
// does not let go cannot be ended by anything but the end of the process, which
// usually follows.
func (d *Driver) awaitLookups() {
	done := make(chan struct{})
	go func() {
		d.lookups.Wait()
		close(done)
	}()
	patience := time.NewTimer(closePatience)
	defer patience.Stop()
	select {
	case <-done:
	case <-patience.C:
		d.log.Warn("published unix sockets: the file system does not answer")
	}
}

// complain logs a shortage, now and then. EINVAL is none: the supervisor has ended the
// rule, and Shut follows.
func (d *Driver) complain(l portdriver.Listener, err error) {
	if errors.Is(err, unix.EINVAL) {
		return
	}
	now := time.Now().UnixNano()
	last := d.told.Load()
	if last != 0 && now-last < int64(complainEvery) || !d.told.CompareAndSwap(last, now) {
		return
	}
	d.log.Warn("published port rests", "port", name(l), "error", err)
}

// name is a listener in words.
func name(l portdriver.Listener) string {
	switch {
	case l.Bound.IsValid():
		return fmt.Sprintf("%s %s", l.Network, l.Bound)
	case l.Target.IsValid() || l.Target.Port() != 0:
		return fmt.Sprintf("%s socket for port %d", l.Network, l.Target.Port())
	}
	return fmt.Sprintf("%s socket for %s", l.Network, l.TargetPath)
}
