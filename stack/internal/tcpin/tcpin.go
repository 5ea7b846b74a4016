// Package tcpin opens TCP connections into the container: netstack plays the
// client, with whatever address the client is to show.
//
//	Dial ── may the container see these addresses? ── admit ── SYN ─▶ container
//	                                                    │
//	  SYN-ACK   a relay.Stream, until its Close         │
//	  RST       ECONNREFUSED                            │
//	  nothing   SYN again after 1 s, 2 s, 4 s, ...; ctx ends it
//
// What the container sends to the client's address finds the endpoint before the
// handler of outgoing connections is asked (package tcpout): netstack looks for
// one with all four of addresses and ports first. A SYN of the container itself to
// a client that is connected is no exception; as on any network it is answered
// within that connection.
package tcpin

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/postern-net/postern/stack/guard"
	"github.com/postern-net/postern/stack/internal/flow"
	"github.com/postern-net/postern/stack/internal/stream"
	"github.com/postern-net/postern/stack/relay"
)

// Config describes an In. All fields are needed.
type Config struct {
	Stack *stack.Stack
	Guard guard.Policy
	Flows *flow.Table
}

// In is the incoming TCP of one engine.
type In struct {
	cfg    Config
	ctx    context.Context // ended by Close
	cancel context.CancelFunc

	mu     sync.Mutex // guards the fields below
	closed bool
	// open holds the connections that were handed out, to be reset by Close;
	// bounded by the flow table.
	open  map[*connection]struct{}
	dials sync.WaitGroup
}

// New makes an In.
func New(cfg Config) *In {
	in := &In{cfg: cfg, open: make(map[*connection]struct{})}
	in.ctx, in.cancel = context.WithCancel(context.Background())
	return in
}

// Dial connects from source, which the container sees as its client, to target,
// one of the container's addresses. Source port 0 means any free one. Errors wrap:
//
//	ECONNREFUSED     the container has refused
//	ECONNRESET       it has accepted, and reset the connection at once
//	ETIMEDOUT        it has not answered, until ctx's deadline or for minutes
//	EADDRNOTAVAIL    the connection with these four numbers exists, or the
//	                 container cannot be shown source
//	EHOSTUNREACH     target is not the container's
//	ENOBUFS          too many connections
//	context.Canceled and net.ErrClosed
//
// The caller closes the Stream, whose flow is in the table until then.
func (in *In) Dial(ctx context.Context, source, target netip.AddrPort) (relay.Stream, error) {
	if !in.begin() {
		return nil, dialError(source, target, net.ErrClosed)
	}
	defer in.dials.Done()
	if err := in.check(source.Addr(), target); err != nil {
		return nil, dialError(source, target, err)
	}
	c, err := in.dial(ctx, source, target)
	if err != nil {
		in.cfg.Flows.Counters.Inc(flow.TCPInFailed)
		return nil, dialError(source, target, err)
	}
	return c, nil
}

func dialError(source, target netip.AddrPort, err error) error {
	return fmt.Errorf("connect %s to the container's %s: %w", source, target, err)
}

// check refuses addresses with which nothing could come back: replies of others
// than the container are dropped on the link, and an address of the container's
// own network is looked for there, where only the gateway answers.
func (in *In) check(source netip.Addr, target netip.AddrPort) error {
	if reason := in.cfg.Guard.Source(target.Addr()); reason != "" {
		return fmt.Errorf("%s: %w", reason, syscall.EHOSTUNREACH)
	}
	if target.Port() == 0 {
		return fmt.Errorf("%s: %w", guard.ReasonPortZero, syscall.EINVAL)
	}
	plan := in.cfg.Guard.Plan.Of(target.Addr())
	switch {
	case source.Is4() != target.Addr().Is4():
		return syscall.EAFNOSUPPORT
	case source == plan.Gateway:
		return nil
	case source.Zone() != "" || source.Is4In6() || !source.IsGlobalUnicast() || plan.Prefix.Contains(source):
		return syscall.EADDRNOTAVAIL
	}
	return nil
}

// dial makes an endpoint and waits for it to be connected.
func (in *In) dial(ctx context.Context, source, target netip.AddrPort) (*connection, error) {
	wq := new(waiter.Queue)
	ep, err := in.bind(wq, source)
	if err != nil {
		return nil, err
	}
	f, err := in.admit(ep, source.Addr(), target)
	if err != nil {
		ep.Close()
		return nil, err
	}
	if err := in.connect(ctx, ep, wq, target); err != nil {
		ep.Abort()
		in.cfg.Flows.Release(f)
		return nil, err
	}
	in.cfg.Flows.Opened(f)
	c := &connection{Stream: stream.New(ep, wq), in: in, flow: f}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		c.Abort()
	}
	in.open[c] = struct{}{}
	return c, nil
}

// bind makes an endpoint with the client's address.
func (in *In) bind(wq *waiter.Queue, source netip.AddrPort) (tcpip.Endpoint, error) {
	ep, err := in.cfg.Stack.NewEndpoint(tcp.ProtocolNumber, protocol(source.Addr()), wq)
	if err != nil {
		return nil, fromNetstack(err)
	}
	// The same client may be connected to several ports.
	ep.SocketOptions().SetReuseAddress(true)
	if err := ep.Bind(fullAddress(source)); err != nil {
		ep.Close()
		return nil, fromNetstack(err)
	}
	return ep, nil
}

// admit enters the flow, with the port that netstack chose if there was none.
func (in *In) admit(ep tcpip.Endpoint, source netip.Addr, target netip.AddrPort) (*flow.Flow, error) {
	local, err := ep.GetLocalAddress()
	if err != nil {
		return nil, fromNetstack(err)
	}
	f := in.cfg.Flows.Admit(flow.Key{
		Proto: flow.TCPIn, Initiating: netip.AddrPortFrom(source, local.Port), Target: target,
	})
	switch {
	case f != nil:
		return f, nil
	case in.cfg.Flows.Len(flow.TCPIn) >= flow.MaxTCPIn:
		return nil, syscall.ENOBUFS
	}
	return nil, syscall.EADDRNOTAVAIL
}

// connect sends the SYN and waits for what comes of it.
func (in *In) connect(ctx context.Context, ep tcpip.Endpoint, wq *waiter.Queue, target netip.AddrPort) error {
	entry, settled := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventHUp | waiter.EventErr)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	err := ep.Connect(fullAddress(target))
	if _, ok := err.(*tcpip.ErrConnectStarted); !ok && err != nil {
		return fromNetstack(err)
	}
	select {
	case <-settled:
	case <-ctx.Done():
		return fromContext(ctx)
	case <-in.ctx.Done():
		return net.ErrClosed
	}
	// LastError takes the error away: a reset that came so soon after the handshake
	// would look like an end of stream from now on.
	if err := ep.LastError(); err != nil {
		return fromNetstack(err)
	}
	return nil
}

// begin counts a dial that Close waits for; false after Close.
func (in *In) begin() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.closed {
		return false
	}
	in.dials.Add(1)
	return true
}

// Close ends every dial, waits for them, and resets every connection. Their
// Streams still have to be closed by those who have them.
func (in *In) Close() {
	in.cancel()
	in.mu.Lock()
	in.closed = true
	for c := range in.open {
		c.Abort()
	}
	in.mu.Unlock()
	in.dials.Wait()
}

func protocol(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return header.IPv4ProtocolNumber
	}
	return header.IPv6ProtocolNumber
}

func fullAddress(ap netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{Addr: tcpip.AddrFromSlice(ap.Addr().AsSlice()), Port: ap.Port()}
}
