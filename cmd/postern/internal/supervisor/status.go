package supervisor

import (
	"context"
	"net/netip"
	"os"
	"time"

	"github.com/rootless-containers/rootlesskit/v3/pkg/api"

	"github.com/postern-net/postern/cmd/postern/internal/apisock"
	"github.com/postern-net/postern/cmd/postern/internal/instance"
)

// describe fills in the instance's public description, apart from its process.
func (s *session) describe(command []string) {
	s.info.PID = os.Getpid()
	s.info.Started = time.Now()
	s.info.Command = command
	s.info.Addresses = []netip.Addr{} // [] and not null where there are none
	for _, f := range families(s.shown()) {
		s.info.Addresses = append(s.info.Addresses, f.Container)
	}
}

// status answers the control socket's questions. It is used by many goroutines;
// all it holds is constant, but for net's guarded fields.
type status struct {
	cfg  *Config
	dir  string
	info instance.Info
	net  *network
	kind Net
}

// Info implements apisock.Source.
func (s *status) Info(context.Context) (apisock.Info, error) {
	if !s.kind.served() {
		return s.unservedInfo(), nil
	}
	driver := &api.NetworkDriverInfo{Driver: "postern", IPv6: s.cfg.Plan.V6.On()}
	for _, f := range families(s.cfg.Plan) {
		if !s.cfg.NoDNS {
			driver.DNS = append(driver.DNS, f.Resolver.AsSlice())
		}
		if driver.ChildIP == nil {
			driver.ChildIP = f.Container.AsSlice()
		}
	}
	// Without configuration of ours the container takes what DHCP gives it, which
	// is the same address unless it asks for another.
	driver.DynamicChildIP = !s.cfg.Configure
	return apisock.Info{
		Info: api.Info{
			APIVersion:    api.Version,
			Version:       s.cfg.Version,
			StateDir:      s.dir,
			ChildPID:      s.info.ChildPID,
			NetworkDriver: driver,
		},
		TCP: s.net.state().tcp,
	}, nil
}

// Status implements apisock.Source.
func (s *status) Status(ctx context.Context) (apisock.Status, error) {
	f := s.net.state()
	out := apisock.Status{
		Name:           s.info.Name,
		Endpoint:       s.kind.endpoint(f.kind),
		Offloads:       f.offloads,
		MTU:            s.cfg.MTU,
		EngineRestarts: f.restarts,
		EngineReady:    f.ready,
		TCP:            f.tcp,
		Upstreams:      f.upstream,
		Started:        s.info.Started,
		Counters:       map[string]uint64{},
	}
	if f.engine != nil {
		out.EnginePID = f.engine.process.Pid
	}
	if !f.ready {
		return out, nil
	}
	snap, err := s.net.snapshot(ctx)
	if err != nil {
		// It has just died, or does not answer: that is no reason to keep back the rest.
		out.EngineReady = false
		return out, nil
	}
	out.Counters = snap.Counters
	out.Flows = apisock.Flows{TCP: snap.TCP, Express: snap.Express, UDP: snap.UDP, Echo: snap.Echo}
	return out, nil
}
