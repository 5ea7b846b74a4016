package relay

import (
	"errors"
	"os"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrAborted is what Done gets when Abort was given no reason.
var ErrAborted = errors.New("flow was aborted")

// Splice is how two sockets are joined. Every field may be zero.
type Splice struct {
	// A and B are what has been done to the sockets before.
	A, B Preparation
	// Out and In receive how many bytes went from a to b and from b to a: those that
	// the other socket's kernel has taken.
	Out, In *atomic.Uint64
	// Keep, if it is not nil, gets b instead of its being closed when nothing is left of
	// b's connection: both ends of stream have been passed on and acknowledged, and b
	// holds no bytes and no error. b is disconnected (connect(2) with AF_UNSPEC), so
	// it can be bound and connected again unless it was bound to a port by number, and
	// is prepared as before (PreparedTCP). It is called on the loop's thread, before
	// Done. b must be a TCP socket.
	Keep func(b int)
	// Prefix is sent to b before anything that comes from a. It is not counted. It
	// must not change until Done.
	Prefix []byte
	// Done is called once, on the loop's thread, after both sockets were closed, and
	// never before Splice has returned. err is nil if both directions ended in
	// order, ErrClosed or what Abort was given, or wraps the errno (syscall.Errno)
	// with which one side failed.
	Done func(err error)
}

// sides of a flow.
const (
	sideA = iota
	sideB
)

// side is one socket of a flow.
type side struct {
	fd   int32
	slot uint32
	// readable and writable say that a call is worth a try. Events set them, a call
	// that would have blocked clears them.
	readable, writable bool
	// ended says that nothing comes after what can be read, urgent that there was
	// urgent data, broken that the socket has an error.
	ended, urgent, broken bool
	// stream says that a short read means there is no more. It does with TCP, but
	// not with a unix socket, where a read ends at passed descriptors too.
	stream bool
	// watched says that its events tell when it can be written to.
	watched bool
	// shut says that the end of the other side's stream was passed on already.
	shut bool
}

// Flow is two joined sockets. Its methods belong on the loop's thread.
type Flow struct {
	loop    *Loop
	next    *Flow // in the queue
	queued  bool
	closed  bool
	sides   [2]side
	dirs    [2]direction // from the side of the same number to the other one
	failure error        // set once; the flow is reset at its next turn
	keep    func(int)
	done    func(error)
}

// Splice relays between a and b, two connected non-blocking stream sockets (TCP or
// unix), until both directions have ended, and owns them from now on: nobody else
// may hold duplicates, or closing does not reach the peers.
func (l *Loop) Splice(a, b int, o Splice) *Flow {
	f := &Flow{loop: l, keep: o.Keep, done: o.Done}
	f.dirs[sideA].count, f.dirs[sideB].count = o.Out, o.In
	f.dirs[sideA].pending = o.Prefix
	l.flows.Add(1)
	for i, fd := range [2]int{a, b} {
		f.sides[i].fd = int32(fd)
		f.sides[i].writable = true
		f.sides[i].stream = [2]Preparation{o.A, o.B}[i].complete(int32(fd))
		f.sides[i].slot = l.slots.add(slot{flow: f, side: uint8(i)})
	}
	for i := range f.sides {
		// The kernel tells at once what there is already.
		ev := l.slots.event(f.sides[i].slot, sideEvents)
		if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, int(f.sides[i].fd), &ev); err != nil {
			f.Abort(os.NewSyscallError("epoll_ctl", err))
		}
	}
	// A client has often sent something by now. Then its server finds that together
	// with the connection, and need not be woken twice.
	f.sides[sideA].readable = true
	l.ready.push(f)
	if l.ending {
		f.Abort(ErrClosed)
	}
	return f
}

// sideEvents is what a side is registered for at first. That it can be written to is
// true of nearly all sockets and not worth an event each, so EPOLLOUT is only added
// when one has taken nothing.
const sideEvents = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLPRI | unix.EPOLLET

// awaitRoom has the kernel tell when a side can be written to.
func (f *Flow) awaitRoom(s *side) {
	s.writable = false
	if s.watched {
		return
	}
	s.watched = true
	ev := f.loop.slots.event(s.slot, sideEvents|unix.EPOLLOUT) // which tells at once if it can be now
	if err := unix.EpollCtl(f.loop.epoll, unix.EPOLL_CTL_MOD, int(s.fd), &ev); err != nil {
		f.Abort(os.NewSyscallError("epoll_ctl", err))
	}
}

// Abort resets both sides soon; Done gets err. A flow that has ended, or is about to
// for another reason, is left alone. The peer of a unix socket sees an end of
// stream, or ECONNRESET if it had sent what nobody read: it knows no other reset.
func (f *Flow) Abort(err error) {
	if err == nil {
		err = ErrAborted
	}
	if f.closed || f.failure != nil {
		return
	}
	f.failure = err
	f.loop.ready.push(f)
}

// mark notes what an event says of one side.
func (f *Flow) mark(i uint8, events uint32) {
	s := &f.sides[i]
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP|unix.EPOLLERR|unix.EPOLLPRI) != 0 {
		s.readable = true
	}
	if events&(unix.EPOLLOUT|unix.EPOLLHUP|unix.EPOLLERR) != 0 {
		s.writable = true
	}
	s.ended = s.ended || events&(unix.EPOLLRDHUP|unix.EPOLLHUP) != 0
	s.urgent = s.urgent || events&unix.EPOLLPRI != 0
	s.broken = s.broken || events&unix.EPOLLERR != 0
}

// serve is the flow's turn. It reports whether the flow wants another one.
func (f *Flow) serve() (again bool) {
	if f.closed {
		return false
	}
	for i := range f.sides {
		if f.sides[i].broken && f.failure == nil {
			f.sides[i].broken = false
			if errno := pendingError(f.sides[i].fd); errno != 0 {
				f.fail(i, "poll", errno)
			}
		}
	}
	for i := range f.dirs {
		if f.failure == nil && !f.dirs[i].done && f.pump(i) {
			again = true
		}
	}
	switch {
	case f.failure != nil:
		f.close()
		return false
	case f.dirs[sideA].done && f.dirs[sideB].done:
		f.close()
		return false
	}
	return again
}

// fail ends the flow because a side does not work any more. What it had sent before
// goes on to the other side as far as that takes it now, as a peer of its own could
// still have read it.
func (f *Flow) fail(i int, call string, errno syscall.Errno) {
	if f.failure != nil {
		return
	}
	f.failure = os.NewSyscallError(call, errno)
	f.sides[i].readable = true
	for !f.dirs[i].done && f.pump(i) {
	}
}

// close ends the flow, with a reset unless both directions ended in order.
func (f *Flow) close() {
	f.closed = true
	f.unclockAll()
	for i := range f.dirs {
		f.loop.release(&f.dirs[i])
	}
	for i := range f.sides {
		s := &f.sides[i]
		switch {
		case f.failure != nil:
			setLinger(s.fd, true)
			_ = unix.Close(int(s.fd)) // and out of the epoll instance with it
		case i == sideB && f.keep != nil && f.retire(s):
			f.keep(int(s.fd))
		default:
			if !s.shut {
				setLinger(s.fd, false) // the kernel delivers the rest, also without us
			}
			_ = unix.Close(int(s.fd))
		}
		f.loop.slots.remove(s.slot)
	}
	f.loop.flows.Add(-1)
	if f.done != nil {
		f.done(f.failure)
	}
}
