package rootlesskit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"

	"github.com/rootless-containers/rootlesskit/v3/pkg/api"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/stack/netplan"
)

// Errors of calls that come at the wrong time.
var (
	errNotRunning = errors.New("the port driver does not run")
	errRunning    = errors.New("the port driver runs already")
)

// parentDriver implements port.ParentDriver.
type parentDriver struct {
	cfg Config
	log *slog.Logger

	mu       sync.Mutex // guards the fields below
	started  bool
	registry *portdriver.Registry // nil unless it runs
	child    netip.Addr           // where a spec without a child address leads
	ports    map[int]published    // by the ID that RootlessKit knows
}

// published is one spec in force.
type published struct {
	spec port.Spec
	// rules are ours, in the registry; the first one's ID is RootlessKit's.
	rules []int
}

// NewParentDriver returns the driver for parent.Opt. Its methods may be called from
// several goroutines; RunParentDriver once.
func NewParentDriver(cfg Config) port.ParentDriver {
	return &parentDriver{cfg: cfg, log: cfg.logger(), ports: make(map[int]published)}
}

// Info says what the driver is.
func (d *parentDriver) Info(context.Context) (*api.PortDriverInfo, error) {
	info := &api.PortDriverInfo{Driver: "postern"}
	for _, p := range portdriver.Protos {
		info.Protos = append(info.Protos, string(p))
	}
	return info, nil
}

// OpaqueForChild is what the child driver is told.
func (d *parentDriver) OpaqueForChild() map[string]string {
	return map[string]string{opaqueSocket: d.socket()}
}

func (d *parentDriver) socket() string { return filepath.Join(d.cfg.StateDir, socketName) }

// RunParentDriver waits for the child, closes initComplete, and serves until quit.
func (d *parentDriver) RunParentDriver(initComplete chan struct{}, quit <-chan struct{}, cctx *port.ChildContext) error {
	if err := d.start(); err != nil {
		return err
	}
	target, err := meetChild(d.socket(), quit)
	if errors.Is(err, errQuit) {
		return nil
	}
	if err != nil {
		return err
	}
	defer target.Close()
	plan := netplan.Default()
	addresses := addressesOf(cctx, portdriver.Addresses{Gateway4: plan.V4.Gateway, Gateway6: plan.V6.Gateway})
	engine, err := newEngine(target, addresses, d.cfg.MaxFlows, d.log)
	if err != nil {
		return err
	}
	defer engine.close()
	registry := portdriver.New(portdriver.Config{Backend: engine, Logger: d.log})
	defer registry.Close()
	d.serve(registry, addresses.Container4)
	defer d.serve(nil, netip.Addr{})
	close(initComplete)
	<-quit
	return nil
}

// start makes sure that the driver is run once only.
func (d *parentDriver) start() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.started {
		return errRunning
	}
	d.started = true
	return nil
}

// serve sets what ports are published with.
func (d *parentDriver) serve(r *portdriver.Registry, child netip.Addr) {
	if !child.IsValid() {
		child = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.registry, d.child = r, child
	if r == nil {
		clear(d.ports)
	}
}

// current returns what ports are published with.
func (d *parentDriver) current() (*portdriver.Registry, netip.Addr, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.registry == nil {
		return nil, netip.Addr{}, errNotRunning
	}
	return d.registry, d.child, nil
}

// AddPort puts a spec in force.
func (d *parentDriver) AddPort(ctx context.Context, spec port.Spec) (*port.Status, error) {
	registry, child, err := d.current()
	if err == nil {
		err = ctx.Err()
	}
	var specs []portdriver.Spec
	if err == nil {
		specs, err = specsOf(spec, child)
	}
	if err != nil {
		return nil, fmt.Errorf("publish %s: %w", text(spec), err)
	}
	rules, err := addAll(registry, specs)
	if err != nil {
		return nil, err
	}
	p := published{spec: spec}
	for _, r := range rules {
		p.rules = append(p.rules, r.ID)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.registry != registry { // it has ended, and the rules with it
		return nil, fmt.Errorf("publish %s: %w", text(spec), errNotRunning)
	}
	d.ports[p.rules[0]] = p
	return &port.Status{ID: p.rules[0], Spec: spec}, nil
}

// addAll adds specs, or those of IPv4 where the host has no IPv6.
func addAll(registry *portdriver.Registry, specs []portdriver.Spec) ([]portdriver.Rule, error) {
	rules, err := registry.AddAll(specs)
	if len(specs) > 1 && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
		return registry.AddAll(specs[:1])
	}
	return rules, err
}

// text is a spec as RootlessKit writes it.
func text(s port.Spec) string {
	return fmt.Sprintf("%.64s:%d:%.64s:%d/%.16s", s.ParentIP, s.ParentPort, s.ChildIP, s.ChildPort, s.Proto)
}

// ListPorts returns what is in force, by ID; never nil, which JSON would call null.
func (d *parentDriver) ListPorts(context.Context) ([]port.Status, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	list := make([]port.Status, 0, len(d.ports))
	for id, p := range d.ports {
		list = append(list, port.Status{ID: id, Spec: p.spec})
	}
	slices.SortFunc(list, func(a, b port.Status) int { return cmp.Compare(a.ID, b.ID) })
	return list, nil
}

// RemovePort ends a spec. Connections that exist go on.
func (d *parentDriver) RemovePort(_ context.Context, id int) error {
	d.mu.Lock()
	p, ok := d.ports[id]
	registry := d.registry
	delete(d.ports, id) // so that of two callers one removes it
	d.mu.Unlock()
	if !ok || registry == nil {
		return fmt.Errorf("remove port %d: %w", id, portdriver.ErrNotFound)
	}
	var failed error
	for _, rule := range p.rules {
		failed = errors.Join(failed, registry.Remove(rule))
	}
	return failed
}
