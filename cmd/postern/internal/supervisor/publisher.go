package supervisor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"time"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/join"
	"github.com/postern-net/postern/userns/seam"
)

// PortDriver is the user's choice of how published TCP reaches the container.
type PortDriver string

// The choices.
const (
	// PortDriverAuto is splice, or netstack where splice is not to be had.
	PortDriverAuto     PortDriver = "auto"
	PortDriverSplice   PortDriver = "splice"
	PortDriverNetstack PortDriver = "netstack"
	// PortDriverNone publishes nothing.
	PortDriverNone PortDriver = "none"
)

// servedWithin bounds the engine's answer to new listeners.
const servedWithin = 5 * time.Second

// publisher hands published ports to the engine of the moment, and all of them to
// one that replaces it. It is the registry's backend, and safe for concurrent use.
type publisher struct {
	choice PortDriver
	log    *slog.Logger

	mu     sync.Mutex   // guards the fields below
	target *join.Target // nil if its namespaces cannot be entered
	// root opens the container's root directory; the caller closes it.
	root   func() (*os.File, error)
	engine *engine // one that has said that it is ready, else nil
	rules  map[int]portdriver.Rule
	// stocked says that the engine has been told how to reach the container.
	stocked bool
	// driver is the choice made, "" before the first port.
	driver PortDriver

	dials *unixDials
}

func newPublisher(choice PortDriver, log *slog.Logger) *publisher {
	p := &publisher{choice: choice, log: log, rules: make(map[int]portdriver.Rule)}
	p.dials = newUnixDials(p.unixTarget)
	return p
}

// connect says where the container is.
func (p *publisher) connect(t *join.Target, root func() (*os.File, error)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.target, p.root = t, root
}

// Open implements portdriver.Backend. A rule that comes while there is no engine is
// served by the next one.
func (p *publisher) Open(rule portdriver.Rule) error {
	p.mu.Lock()
	p.rules[rule.ID] = rule
	var answers []answer
	var err error
	if p.engine != nil {
		answers, err = p.serveLocked([]portdriver.Rule{rule})
	}
	p.mu.Unlock()
	if err = errors.Join(err, awaitAll(answers)); err != nil {
		p.Shut(rule.ID)
	}
	return err
}

// Shut implements portdriver.Backend.
func (p *publisher) Shut(rule int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.rules, rule)
	if p.engine != nil {
		// One that cannot be told is ending, and its successor does not get the rule.
		_ = p.engine.conn.Send(&handoff.EngineShut{Rule: rule})
	}
}

// serve hands all rules to an engine that is ready, and waits until it serves them.
func (p *publisher) serve(e *engine) error {
	p.mu.Lock()
	p.engine, p.stocked = e, false
	e.dials.Store(p.dials)
	rules := make([]portdriver.Rule, 0, len(p.rules))
	for _, r := range p.rules {
		rules = append(rules, r)
	}
	answers, err := p.serveLocked(rules)
	p.mu.Unlock()
	return errors.Join(err, awaitAll(answers))
}

// follow forgets an engine that is not the present one. A nil publisher publishes
// nothing.
func (p *publisher) follow(present *engine) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.engine != present {
		p.engine = nil
	}
}

// chosen is how published TCP reaches the container. Who asks before the first port
// gets the answer that the first port will get, since Docker asks once.
func (p *publisher) chosen() PortDriver {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.driver == "" && p.root != nil {
		_ = p.chooseLocked() // a failure is reported by the first port
	}
	if p.driver == "" {
		return p.choice
	}
	return p.driver
}

// answer is the engine's answer to one message with listeners, to be waited for.
type answer func(context.Context) (handoff.Message, error)

// awaitAll waits for answers. An engine that ends before it has answered is no
// failure: its successor is handed everything.
func awaitAll(answers []answer) error {
	ctx, cancel := context.WithTimeout(context.Background(), servedWithin)
	defer cancel()
	var failed error
	for _, a := range answers {
		m, err := a(ctx)
		switch m := m.(type) {
		case *handoff.EnginePortsAnswer:
			if m.Reason != "" && failed == nil {
				failed = errors.New(m.Reason)
			}
		case nil:
			if !errors.Is(err, errEngineGone) && failed == nil {
				failed = fmt.Errorf("wait for the engine to serve the port: %w", err)
			}
		}
	}
	return failed
}

func (p *publisher) serveLocked(rules []portdriver.Rule) ([]answer, error) {
	if len(rules) == 0 {
		return nil, nil
	}
	if !p.stocked {
		if err := p.stockLocked(); err != nil {
			return nil, err
		}
		p.stocked = true
	}
	var all []portdriver.Listener
	for _, r := range rules {
		all = append(all, r.Listeners...)
	}
	var answers []answer
	for len(all) > 0 {
		n := min(len(all), handoff.MaxPortsPerMessage)
		wait, err := p.sendLocked(all[:n])
		if errors.Is(err, errEngineGone) {
			return answers, nil
		}
		if err != nil {
			return answers, err
		}
		answers = append(answers, wait)
		all = all[n:]
	}
	return answers, nil
}

// sendLocked hands some listeners over.
func (p *publisher) sendLocked(some []portdriver.Listener) (answer, error) {
	m := &handoff.EnginePorts{}
	files := make([]*os.File, 0, len(some))
	for _, l := range some {
		m.Listeners = append(m.Listeners, handoff.PortListener{
			Rule: l.Rule, Network: string(l.Network), Bound: l.Bound,
			TargetAddr: l.Target.Addr(), TargetPort: l.Target.Port(), TargetPath: l.TargetPath, Reverse: l.Reverse, Proxy: l.Proxy,
		})
		files = append(files, l.File)
	}
	return p.engine.question(func(seq uint64) error {
		m.Seq = seq
		return p.engine.conn.Send(m, files...)
	})
}

// stockLocked tells the engine how to reach the container: with sockets of its
// network namespace if they are to be had, and whether it has a process and thus a
// root directory.
func (p *publisher) stockLocked() error {
	m := &handoff.EngineStock{}
	var files []*os.File
	defer func() { seam.CloseAll(files) }()
	sockets, err := p.socketsLocked()
	if err != nil {
		return err
	}
	if sockets != nil {
		m.Sockets = true
		files = append(files, sockets)
	}
	root, err := p.root()
	if err == nil {
		m.Root = true
		_ = root.Close()
	} else if !errors.Is(err, join.ErrNoProcess) {
		return err
	}
	if err := p.engine.conn.Send(m, files...); err != nil {
		p.log.Debug("the engine ended before it had its ports", "cause", err) // its successor gets them
	}
	return nil
}

// socketsLocked starts the supply of sockets of the container's network namespace;
// nil if they are not to be had or not wanted.
func (p *publisher) socketsLocked() (*os.File, error) {
	if err := p.chooseLocked(); err != nil {
		return nil, err
	}
	if p.driver != PortDriverSplice {
		return nil, nil
	}
	return p.engine.supply.connect(p.target)
}

// chooseLocked makes the choice, for which it prepares the container's network
// namespace. That is done again for each engine: the container's root may have
// undone it.
func (p *publisher) chooseLocked() error {
	if p.choice == PortDriverNetstack || p.choice == PortDriverAuto && p.target == nil {
		p.driver = PortDriverNetstack
		return nil
	}
	err := errNoNetNS
	if p.target != nil {
		err = p.target.PreparePublishing()
	}
	switch {
	case err == nil:
		p.driver = PortDriverSplice
	case p.choice == PortDriverSplice:
		return fmt.Errorf("publish with --port-driver=splice: %w", err)
	case p.driver != PortDriverNetstack:
		p.driver = PortDriverNetstack
		p.log.Warn("published TCP goes through netstack (--port-driver=netstack)", "cause", err)
	}
	return nil
}
