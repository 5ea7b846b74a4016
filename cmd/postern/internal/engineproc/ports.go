package engineproc

import (
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/kernudp"
	"github.com/postern-net/postern/portdriver/netstack"
	"github.com/postern-net/postern/portdriver/splice"
	"github.com/postern-net/postern/portdriver/stock"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/stack"
	"github.com/postern-net/postern/stack/netplan"
	"github.com/postern-net/postern/userns/seam"
)

// ports serves published ports. Its methods are called by one goroutine; the
// drivers have their own.
type ports struct {
	conn   *seam.Conn
	engine *stack.Engine
	addrs  portdriver.Addresses
	plan   netplan.Plan
	log    *slog.Logger

	threads *threads
	unix    *unixDialer
	inside  bool // unix sockets of the container can be targets
	// All below are nil until the first ports come.
	stock    *stock.Stock
	arrivals *arrivals // nil without sockets of the container's netns
	splice   *splice.Driver
	netstack *netstack.Driver
}

func newPorts(conn *seam.Conn, engine *stack.Engine, plan netplan.Plan, threads *threads, log *slog.Logger) *ports {
	return &ports{conn: conn, engine: engine, plan: plan, threads: threads, unix: newUnixDialer(conn), log: log, addrs: portdriver.Addresses{
		Container4: plan.V4.Container, Gateway4: plan.V4.Gateway,
		Container6: plan.V6.Container, Gateway6: plan.V6.Gateway,
	}}
}

// stocked makes the drivers, with what the supervisor has sent for them.
func (p *ports) stocked(m *handoff.EngineStock, files []*os.File) error {
	want := 0
	if m.Sockets {
		want = 1
	}
	if len(files) != want || p.stock != nil {
		seam.CloseAll(files)
		return fmt.Errorf("prepare published ports: %d descriptors came, want %d, and once", len(files), want)
	}
	p.inside = m.Root
	p.stock = stock.New(p.order, 0)
	if m.Sockets {
		var err error
		if p.arrivals, err = receiveSockets(files[0], p.stock, p.log); err != nil {
			return err
		}
	}
	return p.drivers()
}

// order asks the supervisor for sockets; one that cannot be asked is gone.
func (p *ports) order(kind handoff.SocketKind, n int) {
	_ = p.conn.Send(&handoff.EngineOrder{Kind: kind, N: n})
}

func (p *ports) drivers() error {
	loops, err := p.threads.get()
	if err != nil {
		return err
	}
	p.splice, err = splice.New(splice.Config{
		Addresses: p.addrs, Loops: loops, Stock: p.stock, UnixDialer: p.unix, Logger: p.log,
	})
	if err != nil {
		return err
	}
	cfg := netstack.Config{Addresses: p.addrs, Engine: p.engine, Logger: p.log}
	cfg.Addresses.Network4, cfg.Addresses.Network6 = p.plan.V4.Prefix, p.plan.V6.Prefix
	if p.arrivals != nil {
		cfg.Loopback, err = kernudp.New(kernudp.Config{Stock: p.stock, Routes: p.addrs.Routes, Logger: p.log})
		if err != nil {
			return err
		}
	}
	p.netstack, err = netstack.New(cfg)
	return err
}

// open serves listeners and answers.
func (p *ports) open(m *handoff.EnginePorts, files []*os.File) {
	reply := handoff.EnginePortsAnswer{Seq: m.Seq}
	if err := p.serve(m.Listeners, files); err != nil {
		reply.Reason = err.Error()
	}
	_ = p.conn.Send(&reply) // a supervisor that cannot be told is gone
}

func (p *ports) serve(listeners []handoff.PortListener, files []*os.File) error {
	if p.netstack == nil || len(files) != len(listeners) {
		seam.CloseAll(files)
		return fmt.Errorf("serve published ports: %d listeners came with %d descriptors", len(listeners), len(files))
	}
	var failed error
	for i, w := range listeners {
		l := portdriver.Listener{
			Rule: w.Rule, Network: portdriver.Network(w.Network), Bound: w.Bound,
			Target:     netip.AddrPortFrom(w.TargetAddr, w.TargetPort),
			TargetPath: w.TargetPath, Reverse: w.Reverse, Proxy: w.Proxy, File: files[i],
		}
		if l.TargetPath != "" && !l.Reverse && !p.inside {
			_ = l.File.Close()
			if failed == nil {
				failed = fmt.Errorf("serve %s: the container's root directory is not known", l.TargetPath)
			}
			continue
		}
		if err := p.driver(l).Open(l); err != nil && failed == nil {
			failed = err // one says it: the others of its rule fail for the same reason
		}
	}
	return failed
}

// driver chooses who serves a listener. Sockets of the container's netns are the
// fast way for TCP, and the only one to its loopback and to unix sockets. Datagrams
// take the TAP, because an unconnected server's replies do not follow a mark.
func (p *ports) driver(l portdriver.Listener) portdriver.Driver {
	inside := l.TargetPath != "" || l.Reverse
	if inside || l.Network != portdriver.NetUDP && p.arrivals != nil {
		return p.splice
	}
	return p.netstack
}

// all are the drivers, if there are any yet.
func (p *ports) all() []portdriver.Driver {
	if p.netstack == nil {
		return nil
	}
	return []portdriver.Driver{p.splice, p.netstack}
}

func (p *ports) shut(rule int) {
	for _, d := range p.all() {
		d.Shut(rule)
	}
}

// count adds what the drivers have counted to a snapshot.
func (p *ports) count(s *handoff.EngineSnapshot) {
	for _, d := range p.all() {
		st := d.Status()
		s.TCP += st.TCP
		s.UDP += st.UDP
		for name, n := range st.Counters {
			s.Counters[name] += n
		}
	}
	if p.stock == nil {
		return
	}
	maps.Copy(s.Counters, p.stock.Stats().Snapshot())
}

// close ends the drivers, then what they use. The engine must have been closed: a
// driver may be waiting for its device.
func (p *ports) close() {
	for _, d := range p.all() {
		d.Close()
	}
	if p.arrivals != nil {
		p.arrivals.close()
	}
	if p.stock != nil {
		p.stock.Close()
	}
}
