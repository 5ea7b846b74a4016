// Package tcpout carries the container's outgoing TCP connections to the host's
// network.
//
// A SYN opens nothing by itself. It is looked at on the packet-reading
// goroutine, which decides in this order, without blocking:
//
//	DNS address, port 53      accept, hand to the name service
//	other address of ours     RST, like any host without that service
//	guard refuses             ICMP administratively prohibited
//	flow table full, too many
//	dials to the destination  dropped; the container's kernel sends it again
//	too many dials altogether the oldest gives way
//	otherwise                 dial
//
// The dial runs in a goroutine of its own, with a socket of the host. Only when
// it has succeeded is the container's handshake completed; when it fails the
// container gets what a host on that network would have got:
//
//	connection refused        RST
//	unreachable, prohibited   the ICMP error, about the SYN as it was sent
//	timeout                   nothing
//
// A SYN that is sent again while its dial is under way starts nothing. Then the
// relay moves bytes until both directions have ended (package relay).
package tcpout

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"

	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/stack/guard"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/refusal"
	"github.com/postern-net/postern/stack/internal/stream"
	"github.com/postern-net/postern/stack/relay"
)

// receiveWindow is the receive buffer of a flow towards the container before
// tuning, in bytes. Half of it is advertised (netstack's rcvAdvWndScale); 4 MiB
// keep 32 super-segments in flight.
const receiveWindow = 4 << 20

// Dialer opens a TCP connection on the host. It must give up when ctx ends.
type Dialer func(ctx context.Context, target netip.AddrPort) (*net.TCPConn, error)

// Config describes an Out. All fields but Logger are needed.
type Config struct {
	Stack  *stack.Stack
	Guard  guard.Policy
	Flows  *flow.Table
	Sender refusal.Sender
	Dial   Dialer
	// Names reports whether the name service answers at an address.
	Names func(netip.AddrPort) bool
	// ServeDNS serves one TCP connection to the name service and closes it.
	ServeDNS func(ctx context.Context, conn net.Conn)
	Logger   *slog.Logger
}

// Out is the outgoing TCP of one engine. Its Handle is the stack's transport
// protocol handler.
type Out struct {
	cfg     Config
	tell    refusal.Teller
	forward *tcp.Forwarder
	ctx     context.Context
	cancel  context.CancelFunc

	mu     sync.Mutex // guards the fields below
	closed bool
	// attempts holds the SYNs whose handshake is under way, until their request
	// is completed; bounded by maxAttempts.
	attempts map[stack.TransportEndpointID]*attempt
	// names holds the connections to the name service from SYN to end; bounded
	// by maxNames.
	names map[stack.TransportEndpointID]struct{}
	// open holds the running relays, to be reset by Close; bounded by the flow table.
	open    map[*stream.Stream]struct{}
	running sync.WaitGroup
}

// New makes an Out. The caller installs Handle.
func New(cfg Config) *Out {
	ctx, cancel := context.WithCancel(context.Background())
	o := &Out{
		cfg: cfg, ctx: ctx, cancel: cancel,
		tell:     refusal.Teller{Counters: &cfg.Flows.Counters, Sender: cfg.Sender, Plan: cfg.Guard.Plan},
		attempts: make(map[stack.TransportEndpointID]*attempt),
		names:    make(map[stack.TransportEndpointID]struct{}),
		open:     make(map[*stream.Stream]struct{}),
	}
	// The forwarder's own limit is never met, and must not be: it drops a SYN
	// without a word, and the attempt would never end.
	o.forward = tcp.NewForwarder(cfg.Stack, receiveWindow, maxAttempts+maxNames, o.handshake)
	return o
}

// Close resets every flow and waits for all goroutines.
func (o *Out) Close() {
	o.cancel()
	o.mu.Lock()
	o.closed = true
	for s := range o.open {
		s.Abort()
	}
	o.mu.Unlock()
	o.running.Wait()
}

// Handle looks at a TCP segment that belongs to no flow. False means that
// netstack shall answer with RST.
func (o *Out) Handle(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	segment := header.TCP(pkt.TransportHeader().Slice())
	if len(segment) < header.TCPMinimumSize {
		return false
	}
	if segment.Flags()&(header.TCPFlagSyn|header.TCPFlagRst) == header.TCPFlagRst {
		// The container gave up before its SYN was answered. netstack has no
		// endpoint for it yet; without this the answer would wait for minutes.
		if a := o.attempt(id); a != nil {
			a.cancel()
		}
		return true // a RST is never answered
	}
	if segment.Flags()&(header.TCPFlagSyn|header.TCPFlagAck) != header.TCPFlagSyn {
		return false
	}
	if segment.Flags()&(header.TCPFlagFin|header.TCPFlagRst) != 0 {
		o.cfg.Flows.Counters.Inc(flow.DropMalformed) // Linux discards it as well
		return true
	}
	initiating := netip.AddrPortFrom(address(id.RemoteAddress), id.RemotePort)
	target := netip.AddrPortFrom(address(id.LocalAddress), id.LocalPort)
	if o.cfg.Names(target) {
		return o.startName(id, pkt)
	}
	verdict := o.cfg.Guard.Decide(guard.TCP, target)
	if !verdict.Allowed() {
		o.cfg.Flows.Counters.Inc(flow.TCPRefusedGuard)
		if o.cfg.Guard.Plan.Owned(target.Addr()) {
			return false
		}
		o.tell.Report(icmp.AdminProhibited, target.Addr(), initiating.Addr(), quote(pkt))
		return true
	}
	return o.start(id, pkt, flow.Key{Proto: flow.TCP, Initiating: initiating, Target: target}, verdict.Dial)
}

// start begins the attempt that a SYN asks for, unless it is under way.
func (o *Out) start(id stack.TransportEndpointID, pkt *stack.PacketBuffer, key flow.Key, dial netip.AddrPort) bool {
	if !o.room(id) {
		return true
	}
	a := &attempt{dial: dial, quote: quote(pkt)}
	a.ctx, a.cancel = context.WithTimeout(o.ctx, flow.DialTimeout)
	if a.flow = o.cfg.Flows.AdmitDial(key, a.cancel); a.flow == nil {
		a.cancel()
		return true
	}
	o.mu.Lock()
	o.attempts[id] = a
	o.mu.Unlock()
	if o.forward.HandlePacket(id, pkt) {
		return true
	}
	// A damaged SYN: the forwarder did not take it.
	o.forget(id, a)
	return false
}

// startName is start for the name service.
func (o *Out) startName(id stack.TransportEndpointID, pkt *stack.PacketBuffer) bool {
	if !o.admitName(id) {
		return true
	}
	if o.forward.HandlePacket(id, pkt) {
		return true
	}
	o.releaseName(id)
	return false
}

// handshake runs in the forwarder's goroutine, one for each SYN that Handle let
// pass. Every path completes the request exactly once, and forgets the attempt
// only then: until it is completed the forwarder ignores further SYNs.
func (o *Out) handshake(r *tcp.ForwarderRequest) {
	id := r.ID()
	a := o.attempt(id)
	if a == nil {
		defer o.releaseName(id)
	}
	if !o.begin() {
		r.Complete(true)
		o.forget(id, a)
		return
	}
	defer o.running.Done()
	if a == nil {
		o.acceptDNS(r)
		return
	}
	host, err := o.cfg.Dial(a.ctx, a.dial)
	if err != nil {
		o.refuse(r, a, err)
		o.forget(id, a)
		return
	}
	s := o.acceptFlow(a.ctx, r)
	o.settle(id, a)
	defer o.cfg.Flows.Release(a.flow)
	if s == nil {
		_ = host.SetLinger(0)
		host.Close()
		return
	}
	o.cfg.Flows.Opened(a.flow)
	o.relay(s, host, a.flow)
}

// refuse tells the container what became of its SYN.
func (o *Out) refuse(r *tcp.ForwarderRequest, a *attempt, err error) {
	answer := o.tell.Judge(err)
	r.Complete(answer.Reset)
	o.tell.Tell(answer, a.flow.Key, a.quote)
}

// relay moves bytes until the flow ends.
func (o *Out) relay(s *stream.Stream, host *net.TCPConn, f *flow.Flow) {
	o.mu.Lock()
	if o.closed {
		s.Abort()
	}
	o.open[s] = struct{}{}
	o.mu.Unlock()
	relay.TCP(s, host, relay.Counts{Out: &f.BytesOut, In: &f.BytesIn})
	o.mu.Lock()
	delete(o.open, s)
	o.mu.Unlock()
}

func (o *Out) acceptDNS(r *tcp.ForwarderRequest) {
	if ep, wq := o.accept(o.ctx, r); ep != nil {
		o.cfg.ServeDNS(o.ctx, gonet.NewTCPConn(wq, ep))
	}
}

// begin counts a goroutine that Close waits for; false after Close.
func (o *Out) begin() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return false
	}
	o.running.Add(1)
	return true
}

// quote copies the headers of a SYN.
func quote(pkt *stack.PacketBuffer) []byte {
	q := append([]byte(nil), pkt.NetworkHeader().Slice()...)
	return append(q, pkt.TransportHeader().Slice()...)
}

func address(a tcpip.Address) netip.Addr {
	if a.Len() == 4 {
		return netip.AddrFrom4(a.As4())
	}
	return netip.AddrFrom16(a.As16())
}
