package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/postern-net/postern/cmd/postern/internal/apisock"
	"github.com/postern-net/postern/proto/dns"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/join"
)

// network is the container's interface and the engine behind it. Only the main
// goroutine calls its methods, apart from snapshot and facts.
type network struct {
	cfg    *Config
	log    *slog.Logger
	target *join.Target // nil if there is no namespace to enter
	make   maker        // nil before connect
	events chan engineEvent
	// timer fires when the next engine or endpoint is due.
	timer *time.Timer

	endpoint endpoint
	express  expressway
	upstream []netip.AddrPort
	search   []string
	started  time.Time // of the present engine, or of the endpoint's last life
	reason   *handoff.EngineFailed
	served   bool // an engine has been ready once
	deaths   deaths
	revivals revivals

	mu sync.Mutex // guards public
	// public is what the control socket may ask for.
	public facts
}

// facts is the network's state as others may see it.
type facts struct {
	engine   *engine // nil between two
	ready    bool
	kind     handoff.EndpointKind
	offloads string
	restarts int
	tcp      apisock.TCP
	upstream []netip.AddrPort
}

func newNetwork(cfg *Config, log *slog.Logger) *network {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return &network{cfg: cfg, log: log, events: make(chan engineEvent), timer: t}
}

// start starts the first engine, which waits for its configuration.
func (n *network) start() error {
	e, err := startEngine(n.cfg.Stderr, n.events, n.log)
	if err != nil {
		return err
	}
	n.started = time.Now()
	n.mu.Lock()
	n.public.engine = e
	n.mu.Unlock()
	return nil
}

// connect makes the interface, which is in the target's network namespace unless that
// is nil, and hands it to the engine. It returns a line for the user, if any.
func (n *network) connect(t *join.Target, make maker) (notice string, err error) {
	n.target, n.make = t, make
	if n.endpoint, notice, err = n.make(); err != nil {
		return "", err
	}
	if err := n.openExpress(); err != nil {
		return "", err
	}
	return notice, n.configure()
}

// configure hands the endpoint to the present engine.
func (n *network) configure() error {
	n.mu.Lock()
	n.public.kind = n.endpoint.kind
	e := n.public.engine
	n.mu.Unlock()
	if e == nil {
		return nil // it died early; its successor is configured when it is due
	}
	has, files, err := n.express.hand(e.express, n.target)
	if err != nil {
		n.log.Warn("the engine goes without the express path", "cause", err)
	}
	defer closeFiles(files.owned)
	c := n.cfg
	err = e.conn.Send(&handoff.EngineConfig{
		Endpoint:          n.endpoint.kind,
		MTU:               c.MTU,
		Static:            c.Configure,
		Network4:          c.Plan.V4.Prefix,
		Network6:          c.Plan.V6.Prefix,
		ContainerMAC:      n.endpoint.mac,
		HostLoopback:      c.HostLoopback,
		HostLoopbackPorts: c.HostLoopbackPorts,
		Outbound4:         c.Outbound4,
		Outbound6:         c.Outbound6,
		Upstreams:         n.upstream,
		Search:            n.search,
		NoDNS:             c.NoDNS,
		DHCPFirst:         c.DHCPFirst,
		DHCPLast:          c.DHCPLast,
		UDPIdle:           c.UDPIdle,
		UDPIdleUnreplied:  c.UDPIdleUnreplied,
		LogLevel:          int(c.LogLevel),
		LogJSON:           c.LogJSON,
		Express:           has,
	}, append([]*os.File{n.endpoint.file}, files.all...)...)
	if errors.Is(err, handoff.ErrTooLong) {
		return err
	}
	return nil // an engine that is gone already reports its end as an event
}

// resolver takes the host's name service over: servers and search list, each
// unless the user has given his own. It tells a running engine.
func (n *network) resolver(host dns.ResolvConf) {
	n.upstream, n.search = upstreams(n.cfg, host), n.cfg.DNSSearch
	if len(n.search) == 0 {
		n.search = host.Search
	}
	n.mu.Lock()
	n.public.upstream = n.upstream
	e, ready := n.public.engine, n.public.ready
	n.mu.Unlock()
	if ready {
		// One that cannot be told is dying; its successor is configured with these.
		_ = e.conn.Send(&handoff.EngineResolvers{Upstreams: n.upstream, Search: n.search})
	}
}

// handle acts on an engine's event. It reports readiness, or an error that ends
// the instance.
func (n *network) handle(ev engineEvent) (ready *handoff.EngineReady, err error) {
	if n.current() != ev.from {
		return nil, nil // the last words of a predecessor
	}
	switch m := ev.message.(type) {
	case *handoff.EngineReady:
		n.mu.Lock()
		n.public.ready, n.public.offloads = true, m.Offloads
		n.served = true
		n.mu.Unlock()
		return m, nil
	case *handoff.EngineFailed:
		n.reason = m
		return nil, nil
	case *handoff.EngineExpressLost:
		n.repairExpress()
		return nil, nil
	case nil:
		return nil, n.ended(ev)
	}
	return nil, nil
}

func (n *network) current() *engine {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.public.engine
}

// ended arranges what follows an engine's end.
func (n *network) ended(ev engineEvent) error {
	reason := n.reason
	n.reason = nil
	n.mu.Lock()
	wasReady := n.public.ready
	n.public.engine, n.public.ready = nil, false
	n.public.restarts++
	n.mu.Unlock()
	ev.from.stop()
	why := ev.end
	if reason != nil {
		why = reason.Reason
	}
	lived := time.Since(n.started)
	if reason != nil && !n.served {
		// It said why it cannot work before any ever did: no use in trying again.
		return errors.New(why)
	}
	if reason != nil && (reason.Device || !wasReady) {
		// An engine that came later cannot use the endpoint that its predecessor
		// could, so that is what has changed.
		if n.target == nil {
			return n.endpoint.lost(why)
		}
		n.endpoint.close()
		pause := n.revivals.next(lived)
		n.log.Warn("the container's interface is gone; making it anew", "cause", why, "pause", pause)
		n.timer.Reset(pause)
		return nil
	}
	pause, again := n.deaths.next(lived)
	if !again {
		return fmt.Errorf("keep an engine running: %d ended within %s each, the last: %s", maxQuickDeaths, quick, why)
	}
	n.log.Warn("the engine ended; starting another", "cause", why, "pause", pause)
	n.timer.Reset(pause)
	return nil
}

// replace ends the present engine, if there is one, and starts another with the same
// endpoint.
func (n *network) replace() error {
	e := n.current()
	if e == nil {
		return nil // the next one is about to come
	}
	n.mu.Lock()
	n.public.engine, n.public.ready = nil, false
	n.public.restarts++
	n.mu.Unlock()
	e.stop()
	if err := n.due(); err != nil {
		n.timer.Reset(firstPause)
		return err
	}
	return nil
}

// due starts what the timer was set for: an engine, and the endpoint if it is gone.
func (n *network) due() error {
	if n.make == nil {
		// The first engine died before there was anything to hand to it.
		return n.start()
	}
	if n.endpoint.file == nil {
		e, _, err := n.make()
		if err != nil {
			pause := n.revivals.next(0)
			n.log.Warn("the container's interface cannot be made anew", "cause", err, "pause", pause)
			n.timer.Reset(pause)
			return nil
		}
		n.endpoint = e
		n.express.repair(n.log)
	}
	if err := n.start(); err != nil {
		return err
	}
	return n.configure()
}

// close ends the engine and gives the endpoint up; the interface goes with it.
func (n *network) close() {
	n.timer.Stop()
	n.mu.Lock()
	e := n.public.engine
	n.public.engine, n.public.ready = nil, false
	n.mu.Unlock()
	if e != nil {
		e.stop()
	}
	n.express.close(n.log)
	if !n.express.keep {
		n.endpoint.remove()
	}
	n.endpoint.close()
	if n.target != nil {
		n.target.Close()
	}
}

// state returns the public facts; safe for concurrent use.
func (n *network) state() facts {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.public
}

// snapshot asks the present engine for its state; safe for concurrent use.
func (n *network) snapshot(ctx context.Context) (*handoff.EngineSnapshot, error) {
	e := n.current()
	if e == nil {
		return nil, errEngineGone
	}
	return e.snapshot(ctx)
}
