package netstack

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/internal/admission"
	"github.com/postern-net/postern/stack/relay"
	"github.com/postern-net/postern/stack/sockcall"
)

// TCPEngine is what TCP needs of the engine; *stack.Engine is one.
type TCPEngine interface {
	// DialTCP connects to the container, which sees source; port 0 is any free one.
	// Errors are those of stack.Engine.DialTCP.
	DialTCP(ctx context.Context, source, target netip.AddrPort) (relay.Stream, error)
}

// TCPConfig is what a TCP works with. Addresses and Engine must be set.
type TCPConfig struct {
	Addresses portdriver.Addresses
	Engine    TCPEngine
	// MaxFlows is how many connections there may be. 0 stands for as many as the
	// limit of descriptors allows, at most portdriver.MaxTCP.
	MaxFlows int
	// ConnectTimeout ends a connection that the container has not answered; 0 means
	// portdriver.ConnectTimeout.
	ConnectTimeout time.Duration
	// Counters gets what is counted; nil means counters of its own.
	Counters *portdriver.Counters
	// Logger is told of shortages, not more than once a minute; nil means none.
	Logger *slog.Logger
}

// TCP is a portdriver.Driver for TCP.
type TCP struct {
	cfg     TCPConfig
	places  *admission.Table
	pending atomic.Int64 // connections that the container has not answered
	told    atomic.Int64 // when a shortage was logged last, in Unix nanoseconds
	ctx     context.Context
	cancel  context.CancelFunc
	running sync.WaitGroup // accept loops and connections

	mu        sync.Mutex // guards the fields below
	closed    bool
	ports     int                       // listeners ever opened; numbers them
	listeners map[*tcpListener]struct{} // bounded by portdriver.MaxListeners
	streams   map[relay.Stream]struct{} // being relayed; bounded by places
}

var _ portdriver.Driver = (*TCP)(nil)

// NewTCP returns a driver without listeners.
func NewTCP(c TCPConfig) *TCP {
	if c.MaxFlows <= 0 {
		c.MaxFlows = tcpCapacity(sockcall.OpenFiles())
	}
	if c.ConnectTimeout <= 0 {
		c.ConnectTimeout = portdriver.ConnectTimeout
	}
	if c.Counters == nil {
		c.Counters = new(portdriver.Counters)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	d := &TCP{
		cfg: c, places: admission.NewTable(c.MaxFlows),
		listeners: make(map[*tcpListener]struct{}), streams: make(map[relay.Stream]struct{}),
	}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	return d
}

// Open starts to serve l, whose File it takes over, also when it fails.
func (d *TCP) Open(l portdriver.Listener) error {
	socket, err := listenTCP(l)
	if err == nil {
		err = d.start(l, socket)
	}
	if err != nil {
		return fmt.Errorf("serve tcp %s: %w", l.Bound, err)
	}
	return nil
}

// start begins to accept on a socket, which it takes over.
func (d *TCP) start(l portdriver.Listener, socket acceptor) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		_ = socket.Close()
		return os.ErrClosed
	}
	ln := &tcpListener{d: d, desc: l, socket: socket, port: d.ports, shut: make(chan struct{}), done: make(chan struct{})}
	d.ports++
	d.listeners[ln] = struct{}{}
	d.running.Go(ln.run)
	return nil
}

// Shut ends the service of a rule: when it returns its listeners are closed here.
// Connections go on.
func (d *TCP) Shut(rule int) {
	for _, ln := range d.list(func(ln *tcpListener) bool { return ln.desc.Rule == rule }) {
		ln.end()
	}
}

// list returns some of the listeners.
func (d *TCP) list(which func(*tcpListener) bool) (some []*tcpListener) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for ln := range d.listeners {
		if which(ln) {
			some = append(some, ln)
		}
	}
	return some
}

// forget takes a listener off the list.
func (d *TCP) forget(ln *tcpListener) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.listeners, ln)
}

// Status returns what was counted and how many connections there are.
func (d *TCP) Status() portdriver.Status {
	return portdriver.Status{TCP: d.places.Len(), Counters: d.cfg.Counters.Snapshot()}
}

// Close resets every connection and waits for all goroutines. It may be called again.
func (d *TCP) Close() {
	d.cancel()
	d.mu.Lock()
	d.closed = true
	for s := range d.streams {
		s.Abort()
	}
	d.mu.Unlock()
	for _, ln := range d.list(func(*tcpListener) bool { return true }) {
		ln.end()
	}
	d.running.Wait()
}

// track keeps a stream that is about to be relayed, so that Close can reset it.
func (d *TCP) track(s relay.Stream) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.streams[s] = struct{}{}
	if d.closed {
		s.Abort()
	}
}

func (d *TCP) untrack(s relay.Stream) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.streams, s)
}

// complain logs a shortage, now and then. EINVAL is none: the supervisor has ended the
// rule, and Shut follows.
func (d *TCP) complain(l portdriver.Listener, err error) {
	if errors.Is(err, unix.EINVAL) {
		return
	}
	now, last := time.Now().UnixNano(), d.told.Load()
	if last != 0 && now-last < int64(complainEvery) || !d.told.CompareAndSwap(last, now) {
		return
	}
	d.cfg.Logger.Warn("published port rests", "port", l.Bound, "error", err)
}

// complainEvery bounds how often a shortage is logged.
const complainEvery = time.Minute

// listenTCP makes a listener of a description's File, which it closes.
func listenTCP(l portdriver.Listener) (*net.TCPListener, error) {
	if l.File == nil {
		return nil, errors.New("there is no socket")
	}
	defer l.File.Close()
	if err := servable(l); err != nil {
		return nil, err
	}
	generic, err := net.FileListener(l.File)
	if err != nil {
		return nil, err
	}
	socket, ok := generic.(*net.TCPListener)
	if !ok {
		_ = generic.Close()
		return nil, fmt.Errorf("the socket is of the kind %s: %w", generic.Addr().Network(), os.ErrInvalid)
	}
	return socket, nil
}

// servable reports what is wrong with a listener's description.
func servable(l portdriver.Listener) error {
	switch {
	case l.Network != portdriver.NetTCP, l.TargetPath != "", l.Reverse:
		return fmt.Errorf("the netstack driver has no unix sockets; use the splice driver: %w", os.ErrInvalid)
	case l.Target.Port() == 0:
		return fmt.Errorf("there is no target: %w", os.ErrInvalid)
	case l.Target.Addr().Unmap().IsLoopback():
		return fmt.Errorf("target %s is the container's loopback, which the netstack driver does not reach; "+
			"publish a port of the container's own address, or use the splice driver: %w", l.Target, os.ErrInvalid)
	}
	return nil
}

// tcpCapacity is how many connections there may be with a limit of descriptors, of
// which each takes one here. The reserve is for listeners, the container's outgoing
// flows and everything else that the engine has open.
func tcpCapacity(limit uint64) int {
	reserve := min(limit/4, 2048)
	return int(max(1, min(limit-reserve, portdriver.MaxTCP)))
}
