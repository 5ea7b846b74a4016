package stack

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/postern-net/postern/proto/inet"
	"github.com/postern-net/postern/stack/guard"
	"github.com/postern-net/postern/stack/internal/echo"
	"github.com/postern-net/postern/stack/internal/express"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/link"
	"github.com/postern-net/postern/stack/internal/link/service"
	"github.com/postern-net/postern/stack/internal/resolve"
	"github.com/postern-net/postern/stack/internal/tcpin"
	"github.com/postern-net/postern/stack/internal/tcpout"
	"github.com/postern-net/postern/stack/internal/udpout"
)

// Engine serves one container. Create it with New, drive it with Run.
type Engine struct {
	cfg    Config
	policy guard.Policy
	flows  *flow.Table

	link     *link.Endpoint
	services *service.Service
	net      *stack.Stack
	tcp      *tcpout.Out
	express  *express.Out  // nil without
	diag     *express.Diag // nil without the express path
	in       *tcpin.In
	udp      *udpout.Table
	echo     *echo.Table
	dns      *resolve.Forwarder

	published atomic.Pointer[published]
	closing   sync.Once
}

// New assembles an engine. It takes ownership of cfg.Device and of the files in
// cfg.Express, also when it fails.
func New(cfg Config) (*Engine, error) {
	c, err := cfg.withDefaults()
	if err != nil {
		cfg.Express.discard()
		if cfg.Device != nil {
			cfg.Device.Close()
		}
		return nil, err
	}
	e := &Engine{cfg: c, policy: c.policy(), flows: flow.NewTable()}
	if err := e.assemble(); err != nil {
		e.Close()
		c.Express.discard()
		return nil, err
	}
	return e, nil
}

func (e *Engine) assemble() error {
	c, policy := e.cfg, e.policy
	e.services = service.New(c.services())
	e.link = link.New(link.Config{
		Device: c.Device, MTU: c.MTU,
		GatewayMAC: gatewayMAC[:], ContainerMAC: c.containerMAC(), MaxFrame: c.MaxFrame,
		WhoHas:   e.services.WhoHas,
		Source:   func(h inet.Header) string { return policy.Source(h.Src) },
		Service:  e.services,
		Handlers: link.Handlers{UDP: e.handleUDP, ICMP: e.handleICMP, SYN: e.handleSYN},
		Counters: &e.flows.Counters,
	})
	var err error
	if e.net, err = newNetstack(e.link); err != nil {
		return err
	}
	e.dns = resolve.New(resolve.Config{
		Upstreams: c.Upstreams, Local: e.localName, Counters: &e.flows.Counters, Logger: c.Logger,
	})
	e.tcp = tcpout.New(tcpout.Config{
		Stack: e.net, Guard: policy, Flows: e.flows, Sender: e.link,
		Dial: tcpout.HostDialer(c.Outbound4, c.Outbound6), Names: c.names, ServeDNS: e.dns.ServeTCP, Logger: c.Logger,
	})
	if err := e.assembleExpress(); err != nil {
		return err
	}
	e.in = tcpin.New(tcpin.Config{Stack: e.net, Guard: policy, Flows: e.flows})
	e.udp, err = udpout.New(udpout.Config{
		Guard: policy, Flows: e.flows, Sender: e.link, Outbound4: c.Outbound4, Outbound6: c.Outbound6,
		Idle: c.UDPIdle, IdleUnreplied: c.UDPIdleUnreplied, Express: e.udpExpress(), Logger: c.Logger,
	})
	if err != nil {
		return err
	}
	e.echo, err = echo.New(echo.Config{
		Guard: policy, Flows: e.flows, Sender: e.link, Outbound4: c.Outbound4, Outbound6: c.Outbound6, Logger: c.Logger,
	})
	if err != nil {
		return err
	}
	c.Device.OnIdle(e.udp.Flush)
	e.net.SetTransportProtocolHandler(tcp.ProtocolNumber, e.tcp.Handle)
	e.installReassembled()
	return nil
}

// Run serves until ctx ends, and then returns nil, or until the device fails.
// Either way the engine is closed when it returns.
func (e *Engine) Run(ctx context.Context) error {
	defer e.Close()
	ended := make(chan struct{})
	var helpers sync.WaitGroup
	helpers.Go(func() {
		select {
		case <-ctx.Done():
			e.cfg.Device.Close() // ends Serve
		case <-ended:
		}
	})
	helpers.Go(func() { e.advertise(ended) })
	err := e.link.Serve()
	close(ended)
	helpers.Wait()
	if ctx.Err() != nil || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return fmt.Errorf("serve the container's network: %w", err)
}

// advertise sends router advertisements at the start and now and then.
func (e *Engine) advertise(ended <-chan struct{}) {
	if !e.cfg.Plan.V6.On() || e.cfg.Static {
		return
	}
	t := time.NewTicker(service.AdvertiseInterval)
	defer t.Stop()
	for {
		e.link.SendFrame(e.services.Advertisement())
		select {
		case <-t.C:
		case <-ended:
			return
		}
	}
}

// Close ends every flow and waits for all goroutines but those of DialTCP's callers,
// whose Streams are reset. It may be called twice. What a failed New did not get to
// make is left out.
func (e *Engine) Close() error {
	e.closing.Do(func() {
		if e.dns != nil {
			e.dns.Close()
		}
		if e.express != nil {
			e.express.Close()
		}
		if e.tcp != nil {
			e.tcp.Close()
		}
		if e.in != nil {
			e.in.Close()
		}
		if e.udp != nil {
			e.udp.Close()
		}
		if e.echo != nil {
			e.echo.Close()
		}
		if e.diag != nil {
			e.diag.Close()
		}
		// The device goes last but one: the parts above still send through it,
		// and netstack's own goroutines must find it closed, not full.
		e.cfg.Device.Close()
		if e.net != nil {
			e.net.Close()
			e.net.Wait()
		}
	})
	return nil
}

// SetUpstreams replaces the name servers; the host moved to another network.
func (e *Engine) SetUpstreams(servers []netip.AddrPort) { e.dns.SetUpstreams(servers) }

// SetSearch replaces the search list that DHCP and RA hand out.
func (e *Engine) SetSearch(search []string) { e.services.SetSearch(search) }

// installReassembled lets UDP and ICMP that came in fragments, which netstack
// puts together, go where unfragmented packets go.
func (e *Engine) installReassembled() {
	whole := func(handle func(link.Packet)) func(stack.TransportEndpointID, *stack.PacketBuffer) bool {
		return func(_ stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
			if p, ok := link.Flatten(pkt); ok {
				handle(p)
			} else {
				e.flows.Counters.Inc(flow.DropMalformed)
			}
			return true
		}
	}
	e.net.SetTransportProtocolHandler(header.UDPProtocolNumber, whole(e.handleUDP))
	e.net.SetTransportProtocolHandler(header.ICMPv4ProtocolNumber, whole(e.handleReassembledICMP))
	e.net.SetTransportProtocolHandler(header.ICMPv6ProtocolNumber, whole(e.handleReassembledICMP))
}
