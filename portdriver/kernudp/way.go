package kernudp

import (
	"container/list"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/postern-net/postern/portdriver"
	"github.com/postern-net/postern/portdriver/internal/datagram"
	"github.com/postern-net/postern/proto/icmp"
	"github.com/postern-net/postern/stack/hostsock"
)

// state is how far a way is.
type state int

const (
	waiting state = iota // for a socket
	open
	dead // the socket cannot be used
	closed
)

// way is a flow's socket in the container's network namespace.
type way struct {
	d    *Driver
	flow *datagram.Flow
	// place is in Driver.waiting, guarded by Driver.mu; nil once it has left.
	place *list.Element

	mu     sync.Mutex // guards the fields below; locked before Driver.mu
	state  state
	socket *hostsock.Socket
	route  portdriver.Route // final when open
	writer hostsock.Writer
	held   []held
}

// held is what waits for a socket.
type held struct {
	payload []byte
	segment int
}

// Send implements datagram.Way.
func (w *way) Send(payload []byte, segment int) (lost int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch w.state {
	case open:
		return w.transmit(payload, segment)
	case waiting:
		if len(w.held) < maxHeld && w.d.reserve(len(payload)) {
			w.held = append(w.held, held{append([]byte(nil), payload...), segment})
			return 0
		}
	}
	return datagram.Count(payload, segment)
}

// transmit sends on an open way. w.mu is held.
func (w *way) transmit(payload []byte, segment int) (lost int) {
	n, err := w.writer.Send(w.socket, hostsock.Packet{To: w.route.Target, Segment: segment, Payload: payload})
	if err != nil {
		return datagram.Count(payload, segment) - n
	}
	return 0
}

// use takes over a socket and sends what was held for it.
func (w *way) use(fd int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state != waiting {
		_ = unix.Close(fd)
		return
	}
	var lost int
	err := w.open(fd)
	for _, h := range w.release() {
		if err != nil {
			lost += datagram.Count(h.payload, h.segment)
		} else {
			lost += w.transmit(h.payload, h.segment)
		}
	}
	w.d.counters.Add(portdriver.DatagramsLost, uint64(lost))
	if err != nil {
		w.state = dead
		w.d.fail(err)
	}
}

// open makes the way usable. w.mu is held.
func (w *way) open(fd int) error {
	socket, route, err := connect(fd, w.flow)
	if err != nil {
		return err
	}
	w.socket, w.route, w.state = socket, route, open
	if err := w.d.poller.Add(socket, w); err != nil {
		socket.Close()
		return err
	}
	return nil
}

// release returns what was held and gives its memory's share back. w.mu is held.
func (w *way) release() []held {
	all := w.held
	w.held = nil
	for _, h := range all {
		w.d.heldSize.Add(-int64(len(h.payload)))
	}
	return all
}

// Close implements datagram.Way.
func (w *way) Close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	lost := 0
	for _, h := range w.release() {
		lost += datagram.Count(h.payload, h.segment)
	}
	w.d.counters.Add(portdriver.DatagramsLost, uint64(lost))
	w.d.leave(w)
	if w.state == open {
		w.socket.Close()
	}
	w.state = closed
}

// Receive implements hostsock.Handler: it passes an answer on. The socket was bound
// before it was connected; in between, others could send to it.
func (w *way) Receive(m hostsock.Message) {
	w.mu.Lock()
	target := w.route.Target
	w.mu.Unlock()
	if m.From == target {
		w.flow.Reply(m.Payload, m.Segment)
	}
}

// Report implements hostsock.Handler. A server may start late; the flow goes on.
func (w *way) Report(r hostsock.Report) {
	if r.Kind == icmp.PortUnreachable {
		w.d.counters.Inc(portdriver.RefusedTarget)
	}
}
