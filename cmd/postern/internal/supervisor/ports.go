package supervisor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/postern-net/postern/cmd/postern/internal/apisock"
	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/userns/join"
)

// openPorts makes the registry and publishes what can be published before there is
// a container, so that a port that is taken is found out at once.
func (s *session) openPorts() error {
	cfg := s.cfg
	if cfg.PortDriver == PortDriverNone {
		return nil
	}
	s.publisher = newPublisher(cfg.PortDriver, s.log)
	s.ports = portdriver.New(portdriver.Config{
		Backend:           s.publisher,
		Inherited:         cfg.Inherited,
		V4:                cfg.Plan.V4.On(),
		V6:                cfg.Plan.V6.On(),
		ContainerListener: s.containerListener,
		Logger:            s.log,
	})
	return s.publish(false)
}

// publish publishes the rules that were asked for at the start: those whose
// listeners are in the container, or the others. All are published or none.
func (s *session) publish(reverse bool) error {
	var specs []portdriver.Spec
	for _, spec := range s.cfg.Publish {
		if spec.Reverse == reverse {
			specs = append(specs, spec)
		}
	}
	rules, err := s.ports.AddAll(specs)
	if err != nil {
		return err
	}
	for i, rule := range rules {
		if host := specs[i].Host; host.Port == 0 && host.Path == "" && host.FD == "" {
			notify(s.cfg.Stderr, "published "+rule.String())
		}
	}
	return nil
}

// containerRoot opens the root directory of the container's process.
func (s *session) containerRoot() (*os.File, error) {
	switch {
	case s.agent != nil:
	case s.net.target == nil:
		return nil, fmt.Errorf("open the container's root directory: %w: %w", errNoNetNS, join.ErrNoProcess)
	default:
		return s.net.target.Root()
	}
	// Also where the network namespace is not the agent's own.
	t, err := join.OpenPID(s.agent.process.PID)
	if err != nil {
		return nil, err
	}
	defer t.Close()
	return t.Root()
}

// publishInside publishes what needs the container to be there: listeners inside
// it, and those that follow its own.
func (s *session) publishInside() error {
	if s.ports == nil {
		return nil
	}
	if err := s.publish(true); err != nil || !s.cfg.PublishAuto {
		return err
	}
	return s.followListeners()
}

// portsSource is what the control socket may do with ports; nil if there are none.
func (s *session) portsSource() apisock.Ports {
	if s.ports == nil {
		return nil
	}
	return &portsAPI{s.ports, s.publisher, s.cfg.RootlessKit, func() { s.listeners.Load().check() }}
}

// serveByEngine hands the published ports to an engine that is ready. At the start a
// failure ends the instance; a port that was served before is only complained about.
func (s *session) serveByEngine() error {
	if s.publisher == nil {
		return nil
	}
	err := s.publisher.serve(s.net.current())
	switch {
	case err == nil:
		return nil
	case s.started:
		s.log.Warn("published ports are not all served", "cause", err)
		return nil
	}
	return fmt.Errorf("publish ports: %w", err)
}

// portsAPI is the registry as the control socket sees it.
type portsAPI struct {
	registry  *portdriver.Registry
	publisher *publisher
	as        RootlessKit
	changed   func() // to be called after a change
}

var _ interface {
	apisock.Ports
	apisock.Defaulter
} = (*portsAPI)(nil)

// Add implements apisock.Ports: all of them or none. What a client asked for who has
// left meanwhile is taken back: he cannot know the ids.
func (p *portsAPI) Add(ctx context.Context, specs []portdriver.Spec) ([]portdriver.Rule, error) {
	defer p.changed()
	rules, err := p.registry.AddAll(specs)
	if err != nil || ctx.Err() == nil {
		return rules, err
	}
	for _, r := range rules {
		_ = p.registry.Remove(r.ID) // it may have been removed already
	}
	return nil, ctx.Err()
}

// Remove implements apisock.Ports.
func (p *portsAPI) Remove(_ context.Context, id int) error {
	defer p.changed()
	return p.registry.Remove(id)
}

// Rules implements apisock.Ports.
func (p *portsAPI) Rules() []portdriver.Rule { return p.registry.Rules() }

// Driver implements apisock.Ports.
func (p *portsAPI) Driver() string { return cmp.Or(p.as.DriverName, string(p.publisher.chosen())) }

// Defaults implements apisock.Defaulter. Netstack's clients come in by the container's
// interface and cannot reach its loopback.
func (p *portsAPI) Defaults() (everywhere bool, child netip.Addr) {
	child = p.as.Child
	if child.IsLoopback() && p.publisher.chosen() == PortDriverNetstack {
		child = netip.Addr{}
	}
	return p.as.Everywhere, child
}

// errNoPorts says what --port-driver=none means for published ports.
var errNoPorts = errors.New("publish ports: --port-driver=none says that there are none")

// CheckPorts refuses combinations that cannot be meant.
func (c *Config) CheckPorts() error {
	if c.PortDriver == PortDriverNone && (len(c.Publish) > 0 || c.PublishAuto || c.Slirp4netnsSocket != "") {
		return errNoPorts
	}
	return nil
}
