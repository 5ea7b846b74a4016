package link

import (
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"github.com/postern-net/postern/stack/internal/flow"
)

// netstack acknowledges at once whatever it processed. In a dialogue of small
// messages that doubles the frames: the acknowledgement alone, and right behind
// it the answer that would have carried it. This is the delayed acknowledgement
// (RFC 1122 section 4.2.3.2) that netstack lacks, for the one flow that spoke
// last: enough for a dialogue, and nothing to grow. Bulk data is left alone,
// because its sender waits for the window that the acknowledgement opens.

// ackDelay is how long an acknowledgement waits for data to travel with. Linux
// waits 40 ms; Go's timers are good for 1 ms, and less is lost when none comes.
const ackDelay = time.Millisecond

// dialogue is the size of a frame up to which it counts as one of a dialogue.
const dialogue = 4 << 10

// heldACK is the acknowledgement that waits, if there is one.
type heldACK struct {
	mu      sync.Mutex // guards the fields below; frames are sent outside it
	pkt     *stack.PacketBuffer
	flow    stack.TransportEndpointID
	timer   *time.Timer // nil until the first is held
	armed   bool
	stopped bool

	// small says that the last TCP frame received was one of a dialogue.
	small atomic.Bool
}

// received notes the size of a TCP frame from the container. The acknowledgement
// of a handshake does not wait: a server that speaks first waits for it.
func (h *heldACK) received(n int, syn bool) {
	if small := n <= dialogue && !syn; h.small.Load() != small {
		h.small.Store(small)
	}
}

// pass decides about a packet on its way out. It returns an earlier packet that
// has to be sent first, if any, and whether pkt itself is to be sent now. A
// packet that waits is referenced.
func (h *heldACK) pass(pkt *stack.PacketBuffer, flush func()) (first *stack.PacketBuffer, now bool) {
	id, pure, ok := acknowledges(pkt)
	if !ok {
		return nil, true
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.pkt != nil {
		old := h.pkt
		h.pkt = nil
		if h.flow == id {
			// The new packet acknowledges as much and more; of two in a row
			// the second never waits.
			old.DecRef()
			return nil, true
		}
		first = old
	}
	if !pure || !h.small.Load() || h.stopped {
		return first, true
	}
	h.pkt, h.flow = pkt.IncRef(), id
	if !h.armed {
		h.armed = true
		if h.timer == nil {
			h.timer = time.AfterFunc(ackDelay, flush)
		} else {
			h.timer.Reset(ackDelay)
		}
	}
	return first, false
}

// due takes the packet whose time has come.
func (h *heldACK) due() *stack.PacketBuffer {
	h.mu.Lock()
	defer h.mu.Unlock()
	pkt := h.pkt
	h.pkt, h.armed = nil, false
	return pkt
}

// stop gives back what is held; nothing is held any more.
func (h *heldACK) stop() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopped = true
	if h.timer != nil {
		h.timer.Stop()
	}
	if h.pkt != nil {
		h.pkt.DecRef()
		h.pkt = nil
	}
}

// acknowledges reports whether pkt is a TCP segment with an acknowledgement
// and no other control flag, of which flow, and whether it is nothing else: no
// data, no selective acknowledgement, and no closed window.
func acknowledges(pkt *stack.PacketBuffer) (id stack.TransportEndpointID, pure, ok bool) {
	tcp := header.TCP(pkt.TransportHeader().Slice())
	if pkt.TransportProtocolNumber != header.TCPProtocolNumber || len(tcp) < header.TCPMinimumSize {
		return id, false, false
	}
	if tcp.Flags()&^header.TCPFlagPsh != header.TCPFlagAck {
		return id, false, false
	}
	src, dst := addresses(pkt)
	id = stack.TransportEndpointID{LocalPort: tcp.SourcePort(), RemotePort: tcp.DestinationPort(), LocalAddress: src, RemoteAddress: dst}
	// Timestamps alone make 32 bytes of header.
	pure = pkt.Data().Size() == 0 && len(tcp) <= 32 && tcp.WindowSize() != 0
	return id, pure, true
}

func addresses(pkt *stack.PacketBuffer) (src, dst tcpip.Address) {
	ip := pkt.NetworkHeader().Slice()
	if pkt.NetworkProtocolNumber == header.IPv4ProtocolNumber {
		return header.IPv4(ip).SourceAddress(), header.IPv4(ip).DestinationAddress()
	}
	return header.IPv6(ip).SourceAddress(), header.IPv6(ip).DestinationAddress()
}

// flushACK sends the acknowledgement that waited in vain.
func (e *Endpoint) flushACK() {
	if pkt := e.ack.due(); pkt != nil {
		_ = e.writePacket(pkt) // lost like on any wire
		pkt.DecRef()
	}
}

// sendPacket sends a packet, or keeps it back for a moment.
func (e *Endpoint) sendPacket(pkt *stack.PacketBuffer) error {
	seal(pkt)
	first, now := e.ack.pass(pkt, e.flushACK)
	if first != nil {
		_ = e.writePacket(first)
		first.DecRef()
	}
	if !now {
		e.cfg.Counters.Inc(flow.ACKsDelayed)
		return nil
	}
	return e.writePacket(pkt)
}
