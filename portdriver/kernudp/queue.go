package kernudp

import (
	"container/list"
	"log/slog"

	"github.com/postern-net/postern/portdriver/internal/datagram"
	"github.com/postern-net/postern/proto/handoff"
)

// queue holds the ways that wait for a socket of one kind, in their order. It is
// bounded by the number of flows.
type queue struct{ list.List }

// container is the driver as the container's side of its service.
type container struct{ *Driver }

// Connect implements datagram.Container: it puts the flow in line for a socket. If
// one is in stock the way is open at once.
func (c container) Connect(f *datagram.Flow) (datagram.Way, error) {
	w := &way{d: c.Driver, flow: f}
	kind := kindsOf(f.Route().Target.Addr())[0]
	c.mu.Lock()
	w.place = c.waiting[kind].PushBack(w)
	c.mu.Unlock()
	c.supply(kind)
	return w, nil
}

// supply gives sockets in stock to those that wait.
func (d *Driver) supply(kind handoff.SocketKind) {
	for {
		w, fd := d.match(kind)
		if w == nil {
			return
		}
		w.use(fd)
	}
}

// match takes the first way in line and a socket, or neither. Both happen under one
// lock: whoever gets in line later, or brings sockets, looks again.
func (d *Driver) match(kind handoff.SocketKind) (*way, int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	q := &d.waiting[kind]
	e := q.Front()
	if e == nil {
		return nil, -1
	}
	fd, ok := d.stock.Take(kind)
	if !ok {
		return nil, -1
	}
	w := q.Remove(e).(*way)
	w.place = nil
	return w, fd
}

// leave takes a way out of line.
func (d *Driver) leave(w *way) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if w.place == nil {
		return
	}
	for kind := range d.waiting {
		d.waiting[kind].Remove(w.place) // acts only on the list that has it
	}
	w.place = nil
}

// reserve takes memory for a datagram to be held, and reports whether there is some.
func (d *Driver) reserve(size int) bool {
	if d.heldSize.Add(int64(size)) > maxHeldBytes {
		d.heldSize.Add(-int64(size))
		return false
	}
	return true
}

// fail says once that a socket cannot be used; more would come with every client.
func (d *Driver) fail(err error) {
	d.failed.Do(func() {
		d.logger.Warn("UDP: a published port cannot reach the container's loopback", slog.Any("error", err))
	})
}
