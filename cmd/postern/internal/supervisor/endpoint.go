package supervisor

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/proto/handoff"
	"github.com/postern-net/postern/userns/join"
	"github.com/postern-net/postern/userns/rtnl"
)

// endpoint is our end of the container's interface.
type endpoint struct {
	kind  handoff.EndpointKind
	file  *os.File
	index int // of the container's interface
	mac   [6]byte
	stays bool // the interface was there before and stays when file is closed
	// route is an rtnetlink socket beside the container's end of a veth pair, else nil.
	route *os.File
}

// remove deletes a veth pair at once. Otherwise the kernel does so when it finds the time
// to clean its far end's namespace up, and until then the name is taken.
func (e *endpoint) remove() {
	if e.file != nil && e.route != nil {
		_ = rtnl.Delete(e.route, e.index) // it may be gone already
	}
}

func (e *endpoint) close() {
	if e.file == nil {
		return
	}
	if e.stays {
		_ = join.ReleaseTAP(e.file) // an interface that is gone needs nothing
	}
	closeFiles(e.file, e.route)
	e.file, e.route = nil, nil
}

// maker makes the container's interface, at the start and when it is gone. The notice
// is a line for the user.
type maker func() (e endpoint, notice string, err error)

// openEndpoint makes the container's interface and configures it. The notice is
// a line for the user when a packet socket takes the place of a TAP.
func openEndpoint(t *join.Target, cfg *Config) (e endpoint, notice string, err error) {
	if cfg.Endpoint != EndpointPacket {
		e, err = openTAP(t, cfg)
		if err == nil || cfg.Endpoint == EndpointTAP || !join.NoTUN(err) {
			return e, "", err
		}
		notice = fmt.Sprintf("/dev/net/tun: %v; using a packet socket (--endpoint=packet)", errnoOf(err))
	}
	e, err = openPacket(t, cfg)
	return e, notice, err
}

// errnoOf returns the errno at the bottom of an error, for a short line.
func errnoOf(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// openTAP makes a TAP, or attaches to one that is there. Without Configure the latter
// is its owner's to configure, who may be about it at this moment: only the links are
// brought up.
func openTAP(t *join.Target, cfg *Config) (endpoint, error) {
	expectAdvertisements(t, cfg) // a TAP that is up has a carrier from Open on
	s, err := t.Open(join.Request{TAP: cfg.IfName})
	if err != nil {
		return endpoint{}, explainInterface(err, cfg.IfName)
	}
	defer closeFiles(s.Route, s.Diag)
	tap, err := join.DescribeTAP(s.TAP)
	if err != nil {
		closeFiles(s.TAP)
		return endpoint{}, err
	}
	want := desired(cfg)
	if tap.Persistent && !cfg.Configure {
		want.MTU = 0
	}
	if !tap.Persistent {
		expectAdvertisements(t, cfg) // it is not up yet
	}
	link, err := rtnl.Configure(s.Route, want)
	if err != nil {
		closeFiles(s.TAP)
		return endpoint{}, err
	}
	e, err := finish(handoff.TAP, s.TAP, link)
	e.stays = tap.Persistent
	return e, err
}

// farName is what the engine's end of a veth pair is called, in a network
// namespace of its own that nobody else sees.
const farName = "postern0"

func openPacket(t *join.Target, cfg *Config) (endpoint, error) {
	s, err := t.Open(join.Request{Packet: true})
	if err != nil {
		return endpoint{}, err
	}
	// The packet socket keeps its network namespace alive, and with it the pair.
	defer closeFiles(s.Diag, s.FarRoute, s.FarNetNS)
	link, err := pair(s, cfg)
	if err != nil {
		closeFiles(s.Packet, s.Route)
		return endpoint{}, err
	}
	e, err := finish(handoff.Packet, s.Packet, link)
	if err != nil {
		closeFiles(s.Route)
		return endpoint{}, err
	}
	e.route = s.Route
	return e, nil
}

// pair makes a veth pair and configures both ends. The far end is up before the
// near one is configured, so that the container finds a carrier.
func pair(s *join.Sockets, cfg *Config) (rtnl.Link, error) {
	if err := rtnl.AddVeth(s.Route, cfg.IfName, farName, s.FarNetNS); err != nil {
		return rtnl.Link{}, explainInterface(err, cfg.IfName)
	}
	index, err := rtnl.FarUp(s.FarRoute, farName, cfg.MTU)
	if err != nil {
		return rtnl.Link{}, err
	}
	if err := rtnl.BindPacket(s.Packet, index); err != nil {
		return rtnl.Link{}, err
	}
	return rtnl.Configure(s.Route, desired(cfg))
}

// desired is the interface's configuration.
func desired(cfg *Config) rtnl.Interface {
	i := rtnl.Interface{Name: cfg.IfName, MTU: cfg.MTU, MAC: cfg.MAC}
	if !cfg.Configure {
		return i
	}
	if p := cfg.Plan.V4; p.On() {
		i.Addrs = append(i.Addrs, netip.PrefixFrom(p.Container, p.Prefix.Bits()))
		i.Gateways = append(i.Gateways, p.Gateway)
	}
	if p := cfg.Plan.V6; p.On() {
		i.Addrs = append(i.Addrs, netip.PrefixFrom(p.Container, p.Prefix.Bits()))
		i.Gateways = append(i.Gateways, p.Gateway)
	}
	return i
}

func finish(kind handoff.EndpointKind, f *os.File, link rtnl.Link) (endpoint, error) {
	if len(link.MAC) != 6 {
		closeFiles(f)
		return endpoint{}, fmt.Errorf("configure the container's interface: hardware address %v, want 6 bytes", link.MAC)
	}
	return endpoint{kind: kind, file: f, index: link.Index, mac: [6]byte(link.MAC)}, nil
}

// explainInterface says what an interface name that is taken means.
func explainInterface(err error, name string) error {
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("%w (the network namespace has an interface %s already; is another engine serving it? Choose another --ifname)", err, name)
	}
	return err
}

func closeFiles(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			_ = f.Close()
		}
	}
}
