package tcpout

import (
	"context"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/postern-net/postern/stack/internal/stream"
)

// abortRetry is how often a handshake that has to end is looked for while it
// is just beginning.
const abortRetry = 5 * time.Millisecond

// acceptFlow returns nil when the container gave up.
func (o *Out) acceptFlow(ctx context.Context, r *tcp.ForwarderRequest) *stream.Stream {
	ep, wq := o.accept(ctx, r)
	if ep == nil {
		return nil
	}
	return stream.New(ep, wq)
}

// accept completes the container's handshake and the request. The endpoint is
// nil when the container gave up or ctx ended.
func (o *Out) accept(ctx context.Context, r *tcp.ForwarderRequest) (tcpip.Endpoint, *waiter.Queue) {
	wq, id := new(waiter.Queue), r.ID()
	done, aborted := make(chan struct{}), make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(aborted)
		o.abort(id, done)
	})
	ep, err := r.CreateEndpoint(wq)
	close(done)
	if !stop() {
		<-aborted
	}
	r.Complete(false)
	if err != nil {
		return nil, nil
	}
	return ep, wq
}

// abort ends a handshake that would otherwise wait for the container for minutes
// (tcp_synack_retries). Its endpoint may not be there yet.
func (o *Out) abort(id stack.TransportEndpointID, done <-chan struct{}) {
	network := header.IPv4ProtocolNumber
	if id.RemoteAddress.Len() != header.IPv4AddressSize {
		network = header.IPv6ProtocolNumber
	}
	for {
		if ep := o.cfg.Stack.FindTransportEndpoint(network, tcp.ProtocolNumber, id, 0); ep != nil {
			ep.Abort()
			return
		}
		select {
		case <-done:
			return
		case <-time.After(abortRetry):
		}
	}
}
